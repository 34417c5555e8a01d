#include "reference/contributions.h"

#include <gtest/gtest.h>

#include <random>

namespace moe::reference {
namespace {

Matrix Random(std::mt19937& random, std::int64_t rows, std::int64_t cols) {
  Matrix matrix(rows, cols);
  for (Eigen::Index i = 0; i < matrix.size(); ++i) {
    matrix.data()[i] = static_cast<double>(random() % 257) / 128.0 - 1.0;
  }
  return matrix;
}

struct Step {
  Model model;
  Problem problem;
  std::vector<ExpertWeights> experts;

  explicit Step(const Model& m) : model(m) {
    std::mt19937 random(7);
    problem.x_TD = Random(random, m.tokens, m.d_model);
    problem.d_y_TD = Random(random, m.tokens, m.d_model);
    problem.gate_ED = Random(random, m.experts, m.d_model);
    problem.gate_bias_E = Random(random, m.experts, 1);
    for (std::int64_t e = 0; e < m.experts; ++e) {
      experts.push_back({Random(random, m.d_expert, m.d_model),
                         Random(random, m.d_expert, m.d_model),
                         Random(random, m.d_model, m.d_expert)});
    }
    problem.expert = [this](std::int64_t e) { return experts[static_cast<std::size_t>(e)]; };
    if (m.d_shared > 0) {
      problem.shared = {Random(random, m.d_shared, m.d_model),
                        Random(random, m.d_shared, m.d_model),
                        Random(random, m.d_model, m.d_shared)};
      problem.shared_gate_D = Random(random, m.d_model, 1);
    }
  }
};

Model FullModel(ScoreFunction function, ScorePlacement placement) {
  return {.tokens = 20,
          .d_model = 8,
          .d_expert = 6,
          .experts = 4,
          .top_k = 2,
          .score_function = function,
          .score_placement = placement,
          .route_norm = function == ScoreFunction::kSigmoid,
          .route_scale = 2.5,
          .gate_bias = true,
          .d_shared = 4,
          .shared_gate = true};
}

const Partition kParts = {
    .owner_E = {0, 0, 1, 1}, .slice_F = {0, 1, 2, 2, 1, 0}, .shared_slice_F = {0, 0, 1, 1}};

// [tokens, D] of some terms.
Matrix Total(const std::vector<RowTerm>& terms, std::int64_t tokens) {
  Matrix sum = Matrix::Zero(tokens, terms[0].value_ND.cols());
  for (const RowTerm& term : terms) {
    for (std::size_t n = 0; n < term.token_N.size(); ++n) {
      sum.row(term.token_N[n]) += term.value_ND.row(static_cast<Eigen::Index>(n));
    }
  }
  return sum;
}

void ExpectNear(const Matrix& got, const Matrix& want, const std::string& what) {
  ASSERT_EQ(got.rows(), want.rows()) << what;
  ASSERT_EQ(got.cols(), want.cols()) << what;
  EXPECT_GT(want.norm(), 0.0) << what;
  EXPECT_LE((got - want).norm(), 1e-13 * want.norm()) << what;
}

class EveryRouter : public testing::TestWithParam<std::pair<ScoreFunction, ScorePlacement>> {};

TEST_P(EveryRouter, TermsOfEveryResultAddUpToIt) {
  const Step step(FullModel(GetParam().first, GetParam().second));
  std::vector<ExpertGradients> experts;
  const StepResult want = RunStep(step.model, step.problem, {},
                                  [&](const ExpertGradients& e) { experts.push_back(e); });
  const Contributions terms(step.model, step.problem, want.routing, kParts);
  ExpectNear(Total(terms.RowsOf("y_TD"), 20), want["y_TD"].value, "y_TD");
  ExpectNear(Total(terms.RowsOf("d_x_TD"), 20), want["d_x_TD"].value, "d_x_TD");

  const std::vector<double> all(20, 1.0);
  std::vector<double> some(20, 0.0);
  std::vector<double> rest(20, 1.0);
  for (const std::size_t token : {1U, 4U, 5U, 13U}) {
    some[token] = 1.0;
    rest[token] = 0.0;
  }
  Matrix d_gate = Matrix::Zero(4, 8);
  Matrix d_bias = Matrix::Zero(1, 4);
  for (const std::int64_t owner : {0, 1}) {
    for (const std::int64_t slice : {0, 1, 2}) {
      d_gate += SumOf(terms.SumFor("d_gate_ED", owner, slice), all);
      d_bias += SumOf(terms.SumFor("d_gate_bias_E", owner, slice), some) +
                SumOf(terms.SumFor("d_gate_bias_E", owner, slice), rest);
    }
  }
  ExpectNear(d_gate, want["d_gate_ED"].value, "d_gate_ED");
  ExpectNear(d_bias, want["d_gate_bias_E"].value, "d_gate_bias_E");
  ExpectNear(SumOf(terms.SumFor("d_shared_gate_D", 0, 0), all) +
                 SumOf(terms.SumFor("d_shared_gate_D", 0, 1), all),
             want["d_shared_gate_D"].value, "d_shared_gate_D");
  ExpectNear(SumOf(terms.SumFor("d_shared_w1_FD", 0, 0), all), want["d_shared_w1_FD"].value,
             "d_shared_w1_FD");
  ExpectNear(SumOf(terms.SumFor("d_shared_w3_FD", 0, 0), all), want["d_shared_w3_FD"].value,
             "d_shared_w3_FD");
  ExpectNear(SumOf(terms.SumFor("d_shared_w2_DF", 0, 0), all), want["d_shared_w2_DF"].value,
             "d_shared_w2_DF");
  for (const ExpertGradients& expert : experts) {
    const auto sums = terms.OfExpert(expert.expert);
    ExpectNear(SumOf(sums.at("d_w1_EFD"), some) + SumOf(sums.at("d_w1_EFD"), rest),
               expert["d_w1_EFD"].value, "w1");
    ExpectNear(SumOf(sums.at("d_w3_EFD"), all), expert["d_w3_EFD"].value, "w3");
    ExpectNear(SumOf(sums.at("d_w2_EDF"), all), expert["d_w2_EDF"].value, "w2");
  }
}

INSTANTIATE_TEST_SUITE_P(
    Contributions, EveryRouter,
    testing::Values(std::pair{ScoreFunction::kSoftmax, ScorePlacement::kAfterExperts},
                    std::pair{ScoreFunction::kSoftmax, ScorePlacement::kBeforeExperts},
                    std::pair{ScoreFunction::kSigmoid, ScorePlacement::kAfterExperts},
                    std::pair{ScoreFunction::kSigmoid, ScorePlacement::kBeforeExperts}));

TEST(Contributions, ASliceIsWhatTheOtherHiddenUnitsLeaveOut) {
  Step step(FullModel(ScoreFunction::kSoftmax, ScorePlacement::kAfterExperts));
  const Routing routing =
      RunStep(step.model, step.problem, {}, [](const ExpertGradients&) {}).routing;
  const Contributions whole(step.model, step.problem, routing, kParts);
  // Without the other slices' output weights, the whole is the slice.
  for (ExpertWeights& weights : step.experts) {
    for (const Eigen::Index f : {1, 2, 3, 4}) {
      weights.w2_DF.col(f).setZero();
    }
  }
  const Contributions alone(step.model, step.problem, routing, {});
  const std::vector<RowTerm>& terms = whole.RowsOf("y_TD");
  ExpectNear(Total({terms[0], terms[3]}, 20), Total({alone.RowsOf("y_TD")[0]}, 20),
             "slice 0 of both owners");
  EXPECT_EQ(terms[3].owner, 1);
  EXPECT_EQ(terms[3].slice, 0);
}

TEST(SumOf, CountsATokensTermAsOftenAsIsAsked) {
  const TokenSum sum = {
      .token_N = {1, 2}, .left_NR = Matrix::Ones(2, 1), .right_NC = Matrix{{3.0, 4.0}, {5.0, 6.0}}};
  EXPECT_EQ(SumOf(sum, std::vector<double>{9.0, 2.0, 0.0}), (Matrix{{6.0, 8.0}}));
  EXPECT_EQ(SumOf(sum, std::vector<double>{9.0, 1.0, 2.0}), (Matrix{{13.0, 16.0}}));
}

}  // namespace
}  // namespace moe::reference
