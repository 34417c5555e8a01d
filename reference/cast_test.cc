// What a cast inside the step adds to the bounds, counted: roundings of the same tensor, or of what
// is proportional to it, go the same way into a result, so that bounds of two runs are exact
// multiples of one another.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "reference/moe_reference.h"

namespace moe::reference {
namespace {

constexpr double kUnit = 1e-6;

// Two experts and a gate of zeros, so that all tokens choose expert 0 with a score of 1/2, and
// nothing but the experts' rows goes into y and d_x.
constexpr double kScore = 0.5;

struct Layer {
  Model model;
  Problem problem;
};

Matrix Filled(std::int64_t rows, std::int64_t cols, double first) {
  Matrix matrix(rows, cols);
  for (Eigen::Index i = 0; i < matrix.size(); ++i) {
    matrix.data()[i] = 0.3 + 0.5 * std::sin(first + 2.0 * static_cast<double>(i));
  }
  return matrix;
}

// The rows that enter the experts and their output's gradient are the same with either placement.
Layer MakeLayer(ScorePlacement placement, std::int64_t tokens, std::int64_t d_model,
                std::int64_t d_expert) {
  Layer layer;
  layer.model = {.tokens = tokens,
                 .d_model = d_model,
                 .d_expert = d_expert,
                 .experts = 2,
                 .top_k = 1,
                 .score_placement = placement};
  const bool before = placement == ScorePlacement::kBeforeExperts;
  layer.problem.x_TD = Filled(tokens, d_model, 1.0) / (before ? kScore : 1.0);
  layer.problem.d_y_TD = Filled(tokens, d_model, 2.0) * (before ? kScore : 1.0);
  layer.problem.gate_ED = Matrix::Zero(2, d_model);
  layer.problem.expert = [d_model, d_expert](std::int64_t) {
    return ExpertWeights{Filled(d_expert, d_model, 3.0), Filled(d_expert, d_model, 4.0),
                         Filled(d_model, d_expert, 5.0)};
  };
  return layer;
}

struct Outcome {
  StepResult step;
  ExpertGradients expert;  // of expert 0
};

Outcome RunLayer(const Layer& layer, const Rounding& rounding) {
  Outcome outcome;
  outcome.step = RunStep(layer.model, layer.problem, {.rounding = rounding, .worst_case = true},
                         [&](const ExpertGradients& gradients) {
                           if (gradients.expert == 0) {
                             outcome.expert = gradients;
                           }
                         });
  return outcome;
}

struct Placements {
  Outcome before;
  Outcome after;
};

Placements RunBoth(const Rounding& rounding) {
  return {RunLayer(MakeLayer(ScorePlacement::kBeforeExperts, 4, 3, 2), rounding),
          RunLayer(MakeLayer(ScorePlacement::kAfterExperts, 4, 3, 2), rounding)};
}

void ExpectEqual(const Matrix& got, const Matrix& want, const char* what) {
  ASSERT_GT(want.norm(), 0.0) << what;
  EXPECT_LE((got - want).norm(), 1e-9 * want.norm()) << what;
}

// Before the experts x is rounded and so is its product with the score; after them x alone.
TEST(Cast, OfRowsBeforeTheExpertsRoundsTheRowsAndTheirProduct) {
  const auto [before, after] = RunBoth(Rounding{.routed_in = {.unit = kUnit}});
  ExpectEqual(before.step["y_TD"].worst_case, 2.0 / kScore * after.step["y_TD"].worst_case, "y");
  ExpectEqual(before.step["y_TD"].deviation, std::sqrt(2.0) / kScore * after.step["y_TD"].deviation,
              "y");
  for (const auto gradient : {"d_w1_EFD", "d_w3_EFD", "d_w2_EDF"}) {
    ExpectEqual(before.expert[gradient].worst_case, 2.0 * after.expert[gradient].worst_case, "d_w");
  }
  // d_r is rounded, scaled by the score with another rounding, and added up in 4 parts; or rounded
  // and added up.
  ExpectEqual(before.step["d_x_TD"].worst_case,
              2.0 * kScore * after.step["d_x_TD"].worst_case +
                  ((1 + 1 + 4) - 2 * (1 + 4)) * kUnit * before.step["d_x_TD"].value.cwiseAbs(),
              "d_x");
}

// After the experts d_y is rounded and so is its product with the score; before them d_y alone.
TEST(Cast, OfExpertOutputsRoundsTheirGradientAndItsProduct) {
  const auto [before, after] = RunBoth(Rounding{.routed_out = {.unit = kUnit}});
  for (const auto gradient : {"d_w1_EFD", "d_w3_EFD", "d_w2_EDF"}) {
    ExpectEqual(after.expert[gradient].worst_case, 2.0 * before.expert[gradient].worst_case, "d_w");
  }
  ExpectEqual(after.step["d_x_TD"].worst_case, 2.0 / kScore * before.step["d_x_TD"].worst_case,
              "d_x");
  // The output is rounded, multiplied by the score where that comes after it, and added up.
  ExpectEqual(before.step["y_TD"].worst_case,
              (1 + 4) * kUnit * before.step["y_TD"].value.cwiseAbs(), "y");
  ExpectEqual(after.step["y_TD"].worst_case,
              (1 + 1 + 4) * kUnit * after.step["y_TD"].value.cwiseAbs(), "y");
}

// One token, one number per row: what a bound is relative to its tensor.
double Relative(const Estimate& estimate, std::int64_t row = 0) {
  return estimate.worst_case(row, 0) / std::abs(estimate.value(row, 0));
}

// The score's gradient is a dot product of rows: o and d_y, or d_r and x. What enters it, the
// gate's gradient is off by the same multiple of.
TEST(Cast, OfRowsRoundsBothFactorsOfTheScoresGradientAndTheResult) {
  const auto run = [](ScorePlacement placement, const Rounding& rounding) {
    return RunLayer(MakeLayer(placement, 1, 1, 1), rounding).step;
  };
  const Rounding in{.routed_in = {.unit = kUnit}};
  const Rounding out{.routed_out = {.unit = kUnit}};
  const StepResult in_before = run(ScorePlacement::kBeforeExperts, in);
  const StepResult in_after = run(ScorePlacement::kAfterExperts, in);
  const StepResult out_before = run(ScorePlacement::kBeforeExperts, out);
  const StepResult out_after = run(ScorePlacement::kAfterExperts, out);
  // o, d_y and the result are rounded; or d_y, which d_r is proportional to.
  EXPECT_NEAR(Relative(out_after["d_gate_ED"]) / Relative(out_before["d_gate_ED"]), 3.0, 1e-9);
  // x goes into o only; or into d_r twice, which is rounded, as x and the result are.
  const double of_one = Relative(out_before["d_gate_ED"]);  // for a d_p that is off by one unit
  const double into_d_r = Relative(in_after["d_x_TD"]) / kUnit - (1 + 4);
  EXPECT_NEAR(Relative(in_after["d_gate_ED"]) / of_one, Relative(in_after["y_TD"]) / kUnit, 1e-6);
  EXPECT_NEAR(Relative(in_before["d_gate_ED"]) / of_one, 2.0 * into_d_r + 1 + 1 + 1, 1e-6);
}

// Two halves of the hidden units whose shares are 2^20 times as large as their sum.
TEST(Cast, OfSharesThatCancelIsAsLargeAsTheShares) {
  for (const auto placement : {ScorePlacement::kBeforeExperts, ScorePlacement::kAfterExperts}) {
    Layer layer = MakeLayer(placement, 4, 3, 2);
    layer.problem.expert = [expert = layer.problem.expert(0)](std::int64_t) {
      ExpertWeights cancelling = expert;
      cancelling.w1_FD.row(1) = expert.w1_FD.row(0);
      cancelling.w3_FD.row(1) = expert.w3_FD.row(0);
      cancelling.w2_DF.col(1) = -(1.0 - 0x1p-20) * expert.w2_DF.col(0);
      return cancelling;
    };
    const auto run = [&](std::int64_t ranks) {
      return RunLayer(layer, Rounding{.routed_out = {.unit = kUnit}, .hidden_ranks = ranks})
          .step["y_TD"];
    };
    const double size = run(1).value.norm();
    EXPECT_LT(run(1).worst_case.norm(), 0x1p4 * kUnit * size);
    EXPECT_GT(run(2).worst_case.norm(), 0x1p18 * kUnit * size);
  }
}

TEST(Cast, OfRowsBeforeTheExpertsIsOneOfTheSharesOfTheirGradients) {
  const Layer layer = MakeLayer(ScorePlacement::kBeforeExperts, 4, 3, 2);
  const auto bound = [&](std::int64_t ranks) {
    return RunLayer(layer, Rounding{.routed_in = {.unit = kUnit}, .hidden_ranks = ranks})
        .step["d_x_TD"]
        .worst_case.norm();
  };
  EXPECT_GT(bound(2), 1.1 * bound(1));
}

// The score's gradient is a dot product of rows.
TEST(Cast, OfRowsAddsUpTheGradientOfTheScoreInIt) {
  for (const bool before : {false, true}) {
    Rounding rounding;
    (before ? rounding.routed_in : rounding.routed_out).accumulate = kUnit;
    const auto [of_before, of_after] = RunBoth(rounding);
    const Outcome& outcome = before ? of_before : of_after;
    EXPECT_GT(outcome.step["d_gate_ED"].worst_case.norm(), 0.0);
    EXPECT_GT(outcome.step["d_gate_ED"].deviation.norm(), 0.0);
    EXPECT_EQ(outcome.step["y_TD"].worst_case.norm(), 0.0);
    EXPECT_EQ(outcome.expert["d_w1_EFD"].worst_case.norm(), 0.0);
  }
}

// The router's linear layer, where x and the gate have no column in common, so that the logits are
// zero whatever is rounded.
TEST(Cast, OfTheRouterRoundsBothFactorsOfItsGradientsAndTheResults) {
  Layer layer = MakeLayer(ScorePlacement::kAfterExperts, 1, 2, 2);
  layer.model.gate_bias = true;
  layer.problem.gate_bias_E = Vector::Zero(2);
  layer.problem.x_TD(0, 0) = 0.0;
  layer.problem.gate_ED(0, 0) = 0.7;
  layer.problem.gate_ED(1, 0) = -0.4;
  const StepResult rounded = RunLayer(layer, Rounding{.gate = {.unit = kUnit}}).step;
  const Matrix& d_gate = rounded["d_gate_ED"].value;
  const auto sizes_of_d_x = [&] {  // of the two experts' parts
    const Matrix d_logits_E1 = d_gate.col(1) / layer.problem.x_TD(0, 1);
    return d_logits_E1.cwiseProduct(layer.problem.gate_ED.col(0)).eval();
  }();
  ExpectEqual(rounded["d_gate_ED"].worst_case, 2.0 * kUnit * d_gate.cwiseAbs(), "d_gate");
  ExpectEqual(rounded["d_gate_bias_E"].worst_case,
              kUnit * rounded["d_gate_bias_E"].value.cwiseAbs(), "d_gate_bias");
  EXPECT_NEAR(rounded["d_x_TD"].worst_case(0, 0),
              kUnit * (sizes_of_d_x.cwiseAbs().sum() + std::abs(sizes_of_d_x.sum())), 1e-9 * kUnit);
  const StepResult added = RunLayer(layer, Rounding{.gate = {.accumulate = kUnit}}).step;
  ExpectEqual(added["d_gate_ED"].worst_case, kUnit * d_gate.cwiseAbs(), "d_gate");
  EXPECT_NEAR(added["d_x_TD"].worst_case(0, 0), 2.0 * kUnit * sizes_of_d_x.cwiseAbs().sum(),
              1e-9 * kUnit);
}

TEST(Cast, OfTheRouterRoundsBothFactorsOfTheLogits) {
  Layer layer = MakeLayer(ScorePlacement::kAfterExperts, 1, 1, 1);
  layer.problem.gate_ED << 0.9, -0.4;
  const auto y = [&](const Rounding& rounding) {
    return Relative(RunLayer(layer, rounding).step["y_TD"]);
  };
  const double of_logits = y(Rounding{.logits = kUnit});
  ASSERT_GT(of_logits, 0.0);
  EXPECT_NEAR(y(Rounding{.gate = {.unit = kUnit}}) / of_logits, 2.0, 1e-9);
  EXPECT_NEAR(y(Rounding{.gate = {.accumulate = kUnit}}) / of_logits, 1.0, 1e-9);
}

}  // namespace
}  // namespace moe::reference
