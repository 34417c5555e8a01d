#include "reference/moe_reference.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "harness/base/error.h"
#include "harness/base/tensors.h"
#include "reference/arithmetic.h"

namespace moe::reference {
namespace {

// The same numbers in every run, without pattern: the far digits of a sine, in [-size, size).
Matrix Noise(std::int64_t rows, std::int64_t cols, double frequency, double size) {
  Matrix noise(rows, cols);
  for (Eigen::Index i = 0; i < noise.size(); ++i) {
    const double digits = 43758.5453 * std::sin(frequency * static_cast<double>(i + 1));
    noise.data()[i] = size * (2.0 * (digits - std::floor(digits)) - 1.0);
  }
  return noise;
}

struct Layer {
  Model model;
  Problem problem;  // problem.expert is set anew by RunLayer, since it must refer to `experts`
  std::vector<ExpertWeights> experts;
};

struct Outcome {
  StepResult step;
  std::vector<ExpertGradients> experts;
};

Outcome RunLayer(Layer& layer, const StepOptions& options = {}) {
  layer.problem.expert = [&layer](std::int64_t expert) {
    return layer.experts[static_cast<std::size_t>(expert)];
  };
  Outcome outcome;
  outcome.step = RunStep(
      layer.model, layer.problem, options,
      [&outcome](const ExpertGradients& gradients) { outcome.experts.push_back(gradients); });
  return outcome;
}

double Loss(Layer& layer) {
  return RunLayer(layer).step["y_TD"].value.cwiseProduct(layer.problem.d_y_TD).sum();
}

ExpertWeights Weights(std::int64_t f, std::int64_t d, double frequency) {
  return {Noise(f, d, frequency, 0.9), Noise(f, d, frequency + 0.7, 0.8),
          Noise(d, f, frequency + 1.3, 0.7)};
}

Layer MakeLayer(const Model& model) {
  Layer layer;
  layer.model = model;
  layer.problem.x_TD = Noise(model.tokens, model.d_model, 1.9, 1.0);
  layer.problem.d_y_TD = Noise(model.tokens, model.d_model, 2.3, 1.0);
  layer.problem.gate_ED = Noise(model.experts, model.d_model, 0.37, 0.8);
  if (model.gate_bias) {
    layer.problem.gate_bias_E = Noise(model.experts, 1, 5.1, 0.3);
  }
  if (model.expert_bias) {
    // Keeps expert 1 without a token wherever it can be avoided.
    layer.problem.expert_bias_E = Noise(model.experts, 1, 4.3, 0.1);
    layer.problem.expert_bias_E[1] = -3.0;
  }
  for (std::int64_t expert = 0; expert < model.experts; ++expert) {
    layer.experts.push_back(
        Weights(model.d_expert, model.d_model, 3.1 + 0.11 * static_cast<double>(expert)));
  }
  if (model.d_shared > 0) {
    layer.problem.shared = Weights(model.d_shared, model.d_model, 2.71);
  }
  if (model.shared_gate) {
    layer.problem.shared_gate_D = Noise(model.d_model, 1, 1.3, 0.6);
  }
  return layer;
}

// Every option against every other: 4 experts, K = 1, 2 and all.
std::vector<Model> AllModels() {
  std::vector<Model> models;
  for (int bits = 0; bits < 64; ++bits) {
    for (const std::int64_t top_k : {1, 2, 4}) {
      for (const int shared : {0, 1, 2}) {
        Model m{.tokens = 5, .d_model = 3, .d_expert = 2, .experts = 4, .top_k = top_k};
        m.score_function = (bits & 1) != 0 ? ScoreFunction::kSigmoid : ScoreFunction::kSoftmax;
        m.score_placement =
            (bits & 2) != 0 ? ScorePlacement::kBeforeExperts : ScorePlacement::kAfterExperts;
        m.route_norm = (bits & 4) != 0;
        m.route_scale = (bits & 4) != 0 ? 2.5 : 1.0;
        m.gate_bias = (bits & 8) != 0;
        m.expert_bias = (bits & 16) != 0;
        m.expert_groups = (bits & 32) != 0 ? 2 : 1;
        m.d_shared = shared > 0 ? 2 : 0;
        m.shared_gate = shared > 1;
        if (!FindFault(m).has_value()) {
          models.push_back(m);
        }
      }
    }
  }
  return models;
}

std::string Describe(const Model& m) {
  return std::string(ToText(m.score_function)) + " " + std::string(ToText(m.score_placement)) +
         " K=" + std::to_string(m.top_k) + " norm=" + std::to_string(m.route_norm) +
         " gate_bias=" + std::to_string(m.gate_bias) +
         " expert_bias=" + std::to_string(m.expert_bias) +
         " groups=" + std::to_string(m.expert_groups) + " d_shared=" + std::to_string(m.d_shared) +
         " shared_gate=" + std::to_string(m.shared_gate);
}

// `parameter` is part of `layer`. Step 1e-5: the truncation error h^2 f''' / 6 and the rounding
// error u f / h are both near 1e-10 here.
void ExpectCentralDifferences(Layer& layer, Eigen::Ref<Eigen::VectorXd> parameter,
                              const Matrix& gradient, const std::string& name) {
  constexpr double kStep = 1e-5;
  ASSERT_EQ(parameter.size(), gradient.size()) << name;
  Vector differences(parameter.size());
  for (Eigen::Index i = 0; i < parameter.size(); ++i) {
    const double here = parameter[i];
    parameter[i] = here + kStep;
    const double above = Loss(layer);
    parameter[i] = here - kStep;
    const double below = Loss(layer);
    parameter[i] = here;
    differences[i] = (above - below) / (2.0 * kStep);
  }
  const Eigen::Map<const Vector> flat(gradient.data(), gradient.size());
  EXPECT_LE((flat - differences).norm(), 1e-7 * differences.norm() + 1e-9)
      << name << " of " << Describe(layer.model);
}

Eigen::Map<Vector> Flat(Matrix& matrix) {
  return {matrix.data(), matrix.size()};
}

template <typename Check>
void ForAllModels(Check check) {
  for (const Model& model : AllModels()) {
    Layer layer = MakeLayer(model);
    const Outcome outcome = RunLayer(layer);
    // A difference across a change of routing would be no derivative.
    ASSERT_GT(outcome.step.routing.logit_margin_T.minCoeff(), 1e-3) << Describe(model);
    check(layer, outcome);
  }
}

TEST(Reference, FillsExactlyTheResultsOfTheModelInTheirShapes) {
  ForAllModels([](Layer& layer, const Outcome& outcome) {
    std::map<std::string, std::int64_t> filled;
    for (const auto& [name, result] : outcome.step.results) {
      filled[name] += result.value.size();
    }
    for (const ExpertGradients& expert : outcome.experts) {
      for (const auto& [name, result] : expert.results) {
        filled[name] += result.value.size();
      }
    }
    std::map<std::string, std::int64_t> wanted;
    for (const TensorInfo& result : ResultsOf(layer.model)) {
      wanted[result.name] = NumElements(result.shape);
    }
    EXPECT_EQ(filled, wanted) << Describe(layer.model);
  });
}

TEST(Reference, TokenGradientMatchesCentralDifferences) {
  ForAllModels([](Layer& layer, const Outcome& outcome) {
    ExpectCentralDifferences(layer, Flat(layer.problem.x_TD), outcome.step["d_x_TD"].value,
                             "d_x_TD");
  });
}

TEST(Reference, GateGradientMatchesCentralDifferences) {
  ForAllModels([](Layer& layer, const Outcome& outcome) {
    ExpectCentralDifferences(layer, Flat(layer.problem.gate_ED), outcome.step["d_gate_ED"].value,
                             "d_gate_ED");
  });
}

TEST(Reference, GateBiasGradientMatchesCentralDifferences) {
  ForAllModels([](Layer& layer, const Outcome& outcome) {
    if (layer.model.gate_bias) {
      ExpectCentralDifferences(layer, layer.problem.gate_bias_E,
                               outcome.step["d_gate_bias_E"].value, "d_gate_bias_E");
    }
  });
}

TEST(Reference, ExpertGradientsMatchCentralDifferences) {
  ForAllModels([](Layer& layer, const Outcome& outcome) {
    for (const ExpertGradients& got : outcome.experts) {
      ExpertWeights& weights = layer.experts[static_cast<std::size_t>(got.expert)];
      ExpectCentralDifferences(layer, Flat(weights.w1_FD), got["d_w1_EFD"].value, "d_w1_EFD");
      ExpectCentralDifferences(layer, Flat(weights.w3_FD), got["d_w3_EFD"].value, "d_w3_EFD");
      ExpectCentralDifferences(layer, Flat(weights.w2_DF), got["d_w2_EDF"].value, "d_w2_EDF");
    }
  });
}

TEST(Reference, SharedExpertGradientsMatchCentralDifferences) {
  ForAllModels([](Layer& layer, const Outcome& outcome) {
    if (layer.model.d_shared > 0) {
      ExpertWeights& weights = layer.problem.shared;
      const StepResult& got = outcome.step;
      ExpectCentralDifferences(layer, Flat(weights.w1_FD), got["d_shared_w1_FD"].value,
                               "shared w1");
      ExpectCentralDifferences(layer, Flat(weights.w3_FD), got["d_shared_w3_FD"].value,
                               "shared w3");
      ExpectCentralDifferences(layer, Flat(weights.w2_DF), got["d_shared_w2_DF"].value,
                               "shared w2");
    }
  });
}

TEST(Reference, SharedGateGradientMatchesCentralDifferences) {
  ForAllModels([](Layer& layer, const Outcome& outcome) {
    if (layer.model.shared_gate) {
      ExpectCentralDifferences(layer, layer.problem.shared_gate_D,
                               outcome.step["d_shared_gate_D"].value, "d_shared_gate_D");
    }
  });
}

Model SmallModel() {
  return {.tokens = 5, .d_model = 3, .d_expert = 2, .experts = 4, .top_k = 2};
}

// The forward from the definition, one token and one expert at a time, with nothing in common with
// the step but the weights: gradients that match differences cannot tell a wrong forward.
TEST(Reference, OutputIsTheFormulaTokenByToken) {
  Model model = SmallModel();
  model.score_function = ScoreFunction::kSigmoid;
  model.route_norm = true;
  model.route_scale = 2.5;
  model.d_shared = 2;
  Layer layer = MakeLayer(model);
  const Outcome got = RunLayer(layer);
  const auto sigmoid = [](double z) { return 1.0 / (1.0 + std::exp(-z)); };
  const auto ffn = [&sigmoid](const ExpertWeights& w, const Vector& r) -> Vector {
    Vector hidden = w.w1_FD * r;
    const Vector up = w.w3_FD * r;
    for (Eigen::Index f = 0; f < hidden.size(); ++f) {
      hidden[f] *= sigmoid(hidden[f]) * up[f];
    }
    return w.w2_DF * hidden;
  };
  for (Eigen::Index token = 0; token < model.tokens; ++token) {
    const Vector x = layer.problem.x_TD.row(token).transpose();
    const Vector z = layer.problem.gate_ED * x;
    const auto first = got.step.routing.topk_expert_TK(token, 0);
    const auto second = got.step.routing.topk_expert_TK(token, 1);
    const double sum = sigmoid(z[first]) + sigmoid(z[second]);
    const Vector want =
        2.5 * sigmoid(z[first]) / sum * ffn(layer.experts[static_cast<std::size_t>(first)], x) +
        2.5 * sigmoid(z[second]) / sum * ffn(layer.experts[static_cast<std::size_t>(second)], x) +
        ffn(layer.problem.shared, x);
    EXPECT_LE((got.step["y_TD"].value.row(token).transpose() - want).norm(), 1e-14 * want.norm());
  }
}

TEST(Reference, HandsOverEveryExpertInOrderAlsoOneWithoutAToken) {
  Model model = SmallModel();
  model.expert_bias = true;
  Layer layer = MakeLayer(model);
  const Outcome got = RunLayer(layer);
  ASSERT_EQ(got.experts.size(), 4U);
  for (std::size_t expert = 0; expert < 4; ++expert) {
    EXPECT_EQ(got.experts[expert].expert, static_cast<std::int64_t>(expert));
    EXPECT_EQ(got.experts[expert].tokens, got.step.tokens_per_expert_E[expert]);
  }
  EXPECT_EQ(got.experts[1].tokens, 0);
  EXPECT_TRUE(
      (got.experts[1]["d_w1_EFD"].value.array() == 0.0).all());  // exactly: nothing was added
  EXPECT_EQ(got.experts[1]["d_w2_EDF"].value.rows(), 3);
  EXPECT_EQ(got.experts[1]["d_w2_EDF"].deviation.size(), 0);
}

TEST(Reference, ForcedRoutingTakesTheChoiceAndKeepsItsOwnMargins) {
  Layer layer = MakeLayer(SmallModel());
  const Outcome own = RunLayer(layer);
  Routing forced = own.step.routing;
  forced.topk_expert_TK.row(0) << 3, 0;
  forced.margin_T.setZero();
  const Outcome got = RunLayer(layer, {.rounding = {}, .forced_routing = &forced});
  EXPECT_EQ(got.step.routing.topk_expert_TK, forced.topk_expert_TK);
  EXPECT_EQ(got.step.routing.margin_T, own.step.routing.margin_T);

  forced.topk_expert_TK(1, 1) = 4;
  EXPECT_THROW(RunLayer(layer, {.rounding = {}, .forced_routing = &forced}), Error);
  forced.topk_expert_TK(1, 1) = forced.topk_expert_TK(1, 0);
  EXPECT_THROW(RunLayer(layer, {.rounding = {}, .forced_routing = &forced}), Error);
}

// Routing on hand-made logits: one token, the gate's only column holds them, x = 1.
Routing RouteLogits(Model model, const std::vector<double>& logits,
                    const std::vector<double>& bias = {}) {
  model.tokens = 1;
  model.d_model = 1;
  model.experts = std::ssize(logits);
  model.expert_bias = !bias.empty();
  const Eigen::Map<const Vector> gate(logits.data(), std::ssize(logits));
  const Eigen::Map<const Vector> expert_bias(bias.data(), std::ssize(bias));
  return Route(model, Matrix::Ones(1, 1), gate, Vector(), expert_bias);
}

std::vector<std::int64_t> ChosenBy(const Routing& routing) {
  return {routing.topk_expert_TK.data(),
          routing.topk_expert_TK.data() + routing.topk_expert_TK.size()};
}

using Experts = std::vector<std::int64_t>;

TEST(Route, OrdersByScoreAndTiesGoToTheLowerExpert) {
  const Routing routing = RouteLogits({.top_k = 3}, {1.0, 2.0, 2.0, 1.0});
  EXPECT_EQ(ChosenBy(routing), (Experts{1, 2, 0}));
  EXPECT_EQ(routing.margin_T[0], 0.0);
  EXPECT_EQ(routing.logit_margin_T[0], 0.0);
}

TEST(Route, MarginIsTheGapBetweenTheLastChosenAndTheBestLeftOut) {
  const Routing routing =
      RouteLogits({.top_k = 2, .score_function = ScoreFunction::kSigmoid}, {0.0, 3.0, -1.0, 1.5});
  EXPECT_EQ(ChosenBy(routing), (Experts{1, 3}));
  EXPECT_NEAR(routing.margin_T[0], 1.0 / (1.0 + std::exp(-1.5)) - 0.5, 1e-15);
  EXPECT_NEAR(routing.logit_margin_T[0], 1.5, 1e-15);
}

TEST(Route, MarginIsInfiniteWhenEveryExpertIsChosen) {
  const Routing routing = RouteLogits({.top_k = 2}, {0.0, 3.0});
  EXPECT_EQ(routing.margin_T[0], std::numeric_limits<double>::infinity());
  EXPECT_EQ(routing.logit_margin_T[0], std::numeric_limits<double>::infinity());
}

TEST(Route, ExpertBiasTakesPartInTheChoiceAndBoundsTheLogitMargin) {
  const Routing routing = RouteLogits({.top_k = 1, .score_function = ScoreFunction::kSigmoid},
                                      {0.0, 0.0, 0.0}, {0.0, 0.25, 0.125});
  EXPECT_EQ(ChosenBy(routing), (Experts{1}));
  EXPECT_DOUBLE_EQ(routing.margin_T[0], 0.125);
  EXPECT_DOUBLE_EQ(routing.logit_margin_T[0], 0.5);
}

TEST(Route, BoundsTheLogitMarginOfSoftmaxByItsSteepestSlope) {
  // Of two experts softmax tells the difference tanh(dz / 2): slope 1/2, twice that of sigmoid.
  const Routing routing = RouteLogits({.top_k = 1}, {0.01, 0.0}, {0.0, 0.0});
  EXPECT_LE(routing.logit_margin_T[0], 0.01);
  EXPECT_NEAR(routing.logit_margin_T[0], 0.01, 1e-6);
}

TEST(Route, KeepsTheGroupsWithTheTwoBestExpertsTogether) {
  // Expert 0 is the best one, but the pair of group 1 beats the pair of group 0.
  const Model model{.top_k = 2,
                    .score_function = ScoreFunction::kSigmoid,
                    .expert_groups = 2,
                    .limited_groups = 1};
  const Routing routing =
      RouteLogits(model, {0.0, 0.0, 0.0, 0.0, 0.0, 0.0}, {0.5, 0.0, -0.25, 0.375, 0.25, 0.125});
  EXPECT_EQ(ChosenBy(routing), (Experts{3, 4}));
  // Group scores, as means of two: 0.75 and 0.8125. Experts 4 and 5 are 0.125 apart.
  EXPECT_DOUBLE_EQ(routing.margin_T[0], 0.0625);
  EXPECT_DOUBLE_EQ(routing.logit_margin_T[0], 0.25);
}

TEST(Route, AGroupOfOneExpertCountsItOnce) {
  const Model model{.top_k = 1,
                    .score_function = ScoreFunction::kSigmoid,
                    .expert_groups = 3,
                    .limited_groups = 2};
  const Routing routing = RouteLogits(model, {-1.0, 1.0, 0.0});
  EXPECT_EQ(ChosenBy(routing), (Experts{1}));
  EXPECT_NEAR(routing.margin_T[0], 1.0 / (1.0 + std::exp(-1.0)) - 0.5, 1e-15);
}

TEST(Route, BoundsWhatRoundingMayTakeOfTheMargin) {
  // Logits 1 and 1 - 2^-6 from one product each, of which float32 with bfloat16 logits moves each
  // by 2^-8: sigmoid has slope s (1 - s) there.
  Model model = SmallModel();
  model.tokens = 1;
  model.d_model = 1;
  model.experts = 2;
  model.top_k = 1;
  model.score_function = ScoreFunction::kSigmoid;
  Matrix gate_ED(2, 1);
  gate_ED << 1.0, 1.0 - 0x1p-6;
  const Routing routing =
      Route(model, Matrix::Ones(1, 1), gate_ED, {}, {}, Rounding{.logits = 0x1p-8});
  const double slope = SigmoidSlopeOf(Sigmoid(1.0));
  EXPECT_NEAR(routing.margin_T[0], 0x1p-6 * slope, 1e-4);
  EXPECT_NEAR(routing.margin_bound_T[0], 2.0 * 0x1p-8 * slope, 1e-4);
  EXPECT_LT(routing.margin_bound_T[0], routing.margin_T[0]);
  // Four times as coarse, the choice is open.
  const Routing open =
      Route(model, Matrix::Ones(1, 1), gate_ED, {}, {}, Rounding{.logits = 0x1p-6});
  EXPECT_GT(open.margin_bound_T[0], open.margin_T[0]);
}

TEST(Route, BoundsTheMarginBetweenGroupsToo) {
  Model model = SmallModel();
  model.tokens = 1;
  model.d_model = 1;
  model.experts = 4;
  model.top_k = 1;
  model.expert_groups = 2;
  model.limited_groups = 1;
  model.score_function = ScoreFunction::kSigmoid;
  Matrix gate_ED(4, 1);
  gate_ED << 1.0, 1.0, 2.0, 0x1p-6;  // means of the best two: nearly a tie between the groups
  const Routing routing =
      Route(model, Matrix::Ones(1, 1), gate_ED, {}, {}, Rounding{.logits = 0x1p-4});
  EXPECT_GT(routing.margin_bound_T[0], routing.margin_T[0]);
}

TEST(Route, DoesNotOverflow) {
  for (const ScoreFunction function : {ScoreFunction::kSoftmax, ScoreFunction::kSigmoid}) {
    const Routing routing = RouteLogits({.top_k = 1, .score_function = function}, {-1e6, 1e6, 0.0});
    EXPECT_EQ(ChosenBy(routing), (Experts{1}));
    EXPECT_TRUE(std::isfinite(routing.margin_T[0]));
  }
}

TEST(Reference, SigmoidIsExactFarOut) {
  EXPECT_EQ(Sigmoid(-1024.0), 0.0);  // exactly, for the dyadic fill
  EXPECT_EQ(Sigmoid(1024.0), 1.0);
  EXPECT_EQ(Sigmoid(0.0), 0.5);
}

constexpr double kFloat32Unit = 5.9604644775390625e-08;  // 2^-24

Rounding AllUnits(double unit) {
  return {.store = unit,
          .accumulate = unit,
          .logits = unit,
          .scores = unit,
          .reduce = unit,
          .hidden_ranks = 2,
          .expert_ranks = 3,
          .token_ranks = 4};
}

// Every estimate of an outcome but those of experts without a token.
std::vector<Estimate> EstimatesOf(const Outcome& outcome) {
  std::vector<Estimate> all;
  const auto add = [&](const Results& results) {
    for (const auto& [name, estimate] : results) {
      all.push_back(estimate);
    }
  };
  add(outcome.step.results);
  for (const ExpertGradients& expert : outcome.experts) {
    if (expert.tokens > 0) {
      add(expert.results);
    }
  }
  return all;
}

TEST(Deviation, LeavesEveryValueAsItIs) {
  ForAllModels([](Layer& layer, const Outcome& plain) {
    const std::vector<Estimate> want = EstimatesOf(plain);
    const std::vector<Estimate> got = EstimatesOf(RunLayer(layer, {.rounding = AllUnits(1e-6)}));
    ASSERT_EQ(got.size(), want.size());
    for (std::size_t i = 0; i < got.size(); ++i) {
      EXPECT_EQ(got[i].value, want[i].value);  // the same operations, so bitwise
      EXPECT_EQ(want[i].deviation.size(), 0);
    }
  });
}

TEST(Deviation, IsProportionalToTheUnitRoundoff) {
  ForAllModels([](Layer& layer, const Outcome&) {
    const std::vector<Estimate> one = EstimatesOf(RunLayer(layer, {.rounding = AllUnits(1e-6)}));
    const std::vector<Estimate> ten = EstimatesOf(RunLayer(layer, {.rounding = AllUnits(1e-5)}));
    for (std::size_t i = 0; i < one.size(); ++i) {
      EXPECT_LE((ten[i].deviation - 10.0 * one[i].deviation).norm(), 1e-9 * ten[i].deviation.norm())
          << Describe(layer.model);
    }
  });
}

TEST(Deviation, IsPositiveWhereAnythingContributes) {
  ForAllModels([](Layer& layer, const Outcome&) {
    const Outcome got = RunLayer(layer, {.rounding = AllUnits(1e-6)});
    const std::vector<std::int64_t>& tokens_E = got.step.tokens_per_expert_E;
    const bool idle_expert = std::find(tokens_E.begin(), tokens_E.end(), 0) != tokens_E.end();
    for (const Estimate& estimate : EstimatesOf(got)) {
      ASSERT_EQ(estimate.deviation.size(), estimate.value.size());
      EXPECT_TRUE(estimate.deviation.allFinite()) << Describe(layer.model);
      // Under sigmoid the gate's row of an expert without a token receives nothing.
      if (!idle_expert || layer.model.score_function == ScoreFunction::kSoftmax) {
        EXPECT_GT(estimate.deviation.minCoeff(), 0.0) << Describe(layer.model);
      }
    }
  });
}

TEST(Deviation, IsZeroForAnExpertWithoutAToken) {
  Model model = SmallModel();
  model.expert_bias = true;
  model.score_function = ScoreFunction::kSigmoid;
  Layer layer = MakeLayer(model);
  const Outcome got = RunLayer(layer, {.rounding = AllUnits(1e-6)});
  ASSERT_EQ(got.experts[1].tokens, 0);
  ASSERT_EQ(got.experts[1]["d_w1_EFD"].deviation.rows(), 2);
  EXPECT_EQ(got.experts[1]["d_w1_EFD"].deviation.maxCoeff(), 0.0);
  EXPECT_EQ(got.experts[1]["d_w3_EFD"].deviation.maxCoeff(), 0.0);
  EXPECT_EQ(got.experts[1]["d_w2_EDF"].deviation.maxCoeff(), 0.0);
  EXPECT_EQ(got.step["d_gate_ED"].deviation.row(1).maxCoeff(), 0.0);
}

TEST(Deviation, RemainsWhereTheGradientCancels) {
  // One chosen expert, normalised: its score is 1 whatever the gate says, so the gradient is 0; an
  // implementation still takes differences of rounded numbers.
  Model model = SmallModel();
  model.top_k = 1;
  model.route_norm = true;
  Layer layer = MakeLayer(model);
  const Outcome got = RunLayer(layer, {.rounding = AllUnits(1e-6)});
  EXPECT_LT(got.step["d_gate_ED"].value.cwiseAbs().maxCoeff(), 1e-14);
  EXPECT_GT(got.step["d_gate_ED"].deviation.minCoeff(), 1e-9);
}

// The additions alone, measured: dot products in float32, one term after the other, against the
// deviation that Product states for them, for terms of random sign and for terms of one sign.
TEST(Deviation, CoversTheMeasuredErrorOfFloat32DotProducts) {
  const Arithmetic math(Rounding{.store = 0.0, .accumulate = kFloat32Unit});
  for (const bool one_sign : {false, true}) {
    Matrix a = Noise(64, 512, 12.9898, 1.0).cast<float>().cast<double>();
    Matrix b = Noise(64, 512, 78.233, 1.0).cast<float>().cast<double>();
    if (one_sign) {
      a = a.cwiseAbs();
      b = b.cwiseAbs();
    }
    const Estimate want = math.Product(a, Transposed(b), Sum::kLocal);
    double squared_ratio = 0.0;
    for (Eigen::Index i = 0; i < 64; ++i) {
      for (Eigen::Index j = 0; j < 64; ++j) {
        float got = 0.0F;
        for (Eigen::Index k = 0; k < 512; ++k) {
          got = std::fma(static_cast<float>(a(i, k)), static_cast<float>(b(j, k)), got);
        }
        squared_ratio +=
            std::pow((static_cast<double>(got) - want.value(i, j)) / want.deviation(i, j), 2.0);
      }
    }
    // Root mean square in deviations: at most 1, and not so small as to say nothing.
    const double ratio = std::sqrt(squared_ratio / (64.0 * 64.0));
    EXPECT_LT(ratio, 1.0) << "one_sign " << one_sign;
    EXPECT_GT(ratio, 0.1) << "one_sign " << one_sign;
  }
}

TEST(WorstCase, LeavesValuesAndDeviationsAsTheyAre) {
  ForAllModels([](Layer& layer, const Outcome&) {
    const auto want = EstimatesOf(RunLayer(layer, {.rounding = AllUnits(1e-6)}));
    const auto got = EstimatesOf(RunLayer(layer, {.rounding = AllUnits(1e-6), .worst_case = true}));
    for (std::size_t i = 0; i < got.size(); ++i) {
      EXPECT_EQ(got[i].value, want[i].value);
      EXPECT_EQ(got[i].deviation, want[i].deviation);
      EXPECT_EQ(want[i].worst_case.size(), 0);
    }
  });
}

TEST(WorstCase, IsNowhereBelowTheDeviation) {
  ForAllModels([](Layer& layer, const Outcome&) {
    const Outcome got = RunLayer(layer, {.rounding = AllUnits(1e-6), .worst_case = true});
    for (const Estimate& estimate : EstimatesOf(got)) {
      ASSERT_EQ(estimate.worst_case.size(), estimate.value.size());
      EXPECT_GE((estimate.worst_case - estimate.deviation).minCoeff(), 0.0)
          << Describe(layer.model);
    }
  });
}

TEST(WorstCase, IsZeroForAnExpertWithoutAToken) {
  Model model = SmallModel();
  model.expert_bias = true;
  Layer layer = MakeLayer(model);
  const Outcome got = RunLayer(layer, {.rounding = AllUnits(1e-6), .worst_case = true});
  ASSERT_EQ(got.experts[1].tokens, 0);
  EXPECT_EQ(got.experts[1]["d_w1_EFD"].worst_case, Matrix::Zero(2, 3).eval());
}

// Float32 dot products of cancelling terms, summed forwards, backwards and in pairs of halves.
float SumForwards(const std::vector<float>& terms) {
  return std::accumulate(terms.begin(), terms.end(), 0.0F);
}
float SumBackwards(const std::vector<float>& terms) {
  return std::accumulate(terms.rbegin(), terms.rend(), 0.0F);
}
float SumByHalves(std::span<const float> terms) {
  if (terms.size() == 1) {
    return terms[0];
  }
  const std::size_t half = terms.size() / 2;
  return SumByHalves(terms.first(half)) + SumByHalves(terms.subspan(half));
}

TEST(WorstCase, HoldsForFloat32DotProductsInAnyOrder) {
  const Arithmetic math(Rounding{.accumulate = kFloat32Unit}, /*worst_case=*/true);
  const Matrix a = Noise(16, 512, 12.9898, 1.0).cast<float>().cast<double>();
  const Matrix b = Noise(16, 512, 78.233, 1.0).cast<float>().cast<double>();
  const Estimate want = math.Product(a, Transposed(b), Sum::kLocal);
  for (Eigen::Index i = 0; i < 16; ++i) {
    for (Eigen::Index j = 0; j < 16; ++j) {
      std::vector<float> terms;
      for (Eigen::Index k = 0; k < 512; ++k) {
        terms.push_back(static_cast<float>(a(i, k)) * static_cast<float>(b(j, k)));
      }
      for (const float got : {SumForwards(terms), SumBackwards(terms), SumByHalves(terms)}) {
        EXPECT_LE(std::abs(static_cast<double>(got) - want.value(i, j)), want.worst_case(i, j));
      }
    }
  }
}

TEST(WorstCase, IsReachedWhereEveryAdditionLosesItsTerm) {
  // 1 and then 512 times u: each addition is a tie that falls back to 1.
  const Arithmetic math(Rounding{.accumulate = kFloat32Unit}, /*worst_case=*/true);
  Matrix terms_1N = Matrix::Constant(1, 513, kFloat32Unit);
  terms_1N(0, 0) = 1.0;
  const Matrix ones_1N = Matrix::Ones(1, 513);
  const Estimate want = math.Product(terms_1N, Transposed(ones_1N), Sum::kLocal);
  std::vector<float> terms;
  for (Eigen::Index k = 0; k < 513; ++k) {
    terms.push_back(static_cast<float>(terms_1N(0, k)));
  }
  const double error = std::abs(static_cast<double>(SumForwards(terms)) - want.value(0, 0));
  EXPECT_LE(error, want.worst_case(0, 0));
  EXPECT_GT(error, 0.99 * want.worst_case(0, 0));
  EXPECT_GT(error, 10.0 * want.deviation(0, 0));  // the probabilistic form does not cover this
}

TEST(WorstCase, CountsEveryRankOfASumInTheDtypeOfTheCommunication) {
  const Matrix a = Matrix::Constant(1, 4, -0.5);
  const Matrix b = Matrix::Constant(4, 1, 1.0);
  const Rounding rounding{.store = 0.25, .accumulate = 0.0, .reduce = 0.125, .token_ranks = 8};
  const Arithmetic math(rounding, /*worst_case=*/true);
  EXPECT_EQ(math.Product(a, b, Sum::kLocal).worst_case(0, 0), 0.25 * 2.0);
  EXPECT_EQ(math.Product(a, b, Sum::kTokens).worst_case(0, 0), (0.25 + 8 * 0.125) * 2.0);
}

// The projected change of a b for one error at a time, in squares, in every orientation.
TEST(Gradient, AddsUpWhatEachErrorOfItsFactorsDoesAlongTheResult) {
  const Arithmetic math(Rounding{});  // no roundings of its own
  for (const bool a_transposed : {false, true}) {
    for (const bool b_transposed : {false, true}) {
      Estimate a{Noise(a_transposed ? 3 : 2, a_transposed ? 2 : 3, 12.9898, 1.0)};
      Estimate b{Noise(b_transposed ? 4 : 3, b_transposed ? 3 : 4, 78.233, 1.0)};
      a.deviation = a.value.cwiseAbs() * 0.5;
      b.deviation = b.value.cwiseAbs2();
      const auto product = [&] {
        return math.Product({a, a_transposed}, {b, b_transposed}, Sum::kTokens).value.eval();
      };
      const Matrix z = product();
      double want = 0.0;
      for (Estimate* factor : {&a, &b}) {
        for (Eigen::Index i = 0; i < factor->value.size(); ++i) {
          const double value = factor->value.data()[i];
          factor->value.data()[i] += factor->deviation.data()[i];
          want += std::pow((product() - z).cwiseProduct(z).sum(), 2.0);
          factor->value.data()[i] = value;
        }
      }
      const Estimate got = math.Gradient({a, a_transposed}, {b, b_transposed});
      EXPECT_EQ(got.value, z);
      EXPECT_NEAR(got.projection_variance, want, 1e-12 * want);
    }
  }
}

TEST(Gradient, CountsItsOwnRoundingsElementByElement) {
  const Matrix a = Noise(2, 3, 12.9898, 1.0);
  const Matrix b = Noise(3, 4, 78.233, 1.0);
  const Arithmetic math(
      Rounding{.store = 0.25, .accumulate = 0.125, .reduce = 0.5, .token_ranks = 3});
  const Estimate z = math.Gradient(a, b);
  const double want = z.deviation.cwiseProduct(z.value).squaredNorm();
  EXPECT_NEAR(z.projection_variance, want, 1e-14 * want);
}

}  // namespace
}  // namespace moe::reference
