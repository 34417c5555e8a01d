// The reference against LibTorch's autograd in float64: two derivations of the same gradients, one
// by hand and one by machine, must agree to rounding for every option of the model, and bit for bit
// where nothing rounds.

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "cases/autograd_step.h"
#include "cases/whole_reference.h"
#include "harness/inputs/generator.h"

namespace moe {
namespace {

// Sums of at most some hundred terms round to about 1e-15; a wrong factor or a term left out shows
// far above.
constexpr double kTolerance = 1e-12;

Model Plain() {
  return {.tokens = 48, .d_model = 24, .d_expert = 20, .experts = 8, .top_k = 2};
}

using Results = std::map<std::string, std::vector<double>>;

double RelativeL2(const std::vector<double>& got, const std::vector<double>& want) {
  double error = 0.0;
  double size = 0.0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    error += (got[i] - want[i]) * (got[i] - want[i]);
    size += want[i] * want[i];
  }
  return std::sqrt(error / size);
}

void ExpectAgreement(const Model& model, const std::vector<std::int64_t>& idle_experts = {}) {
  ASSERT_FALSE(FindFault(model)) << FindFault(model)->what;
  const CaseSpec spec{.name = "autograd",
                      .path = "autograd_test",
                      .model = model,
                      .numerics = {.seed = 1, .idle_experts = idle_experts}};
  const InputGenerator inputs(spec);
  const Results got = WholeReference(model, inputs);
  const Results want = AutogradStep(model, inputs);
  for (const TensorInfo& result : ResultsOf(model)) {
    SCOPED_TRACE(result.name);
    ASSERT_EQ(got.at(result.name).size(), want.at(result.name).size());
    EXPECT_LE(RelativeL2(got.at(result.name), want.at(result.name)), kTolerance);
  }
}

TEST(Autograd, AgreesForBothScoreFunctionsOnEitherSideOfTheExperts) {
  for (const ScoreFunction function : {ScoreFunction::kSoftmax, ScoreFunction::kSigmoid}) {
    for (const ScorePlacement placement :
         {ScorePlacement::kBeforeExperts, ScorePlacement::kAfterExperts}) {
      SCOPED_TRACE(std::string(ToText(function)) + " " + std::string(ToText(placement)));
      Model model = Plain();
      model.score_function = function;
      model.score_placement = placement;
      ExpectAgreement(model);
    }
  }
}

TEST(Autograd, AgreesWithNormalisedAndScaledScores) {
  for (const ScoreFunction function : {ScoreFunction::kSoftmax, ScoreFunction::kSigmoid}) {
    SCOPED_TRACE(ToText(function));
    Model model = Plain();
    model.score_function = function;
    model.top_k = 3;
    model.route_norm = true;
    model.route_scale = 2.5;
    ExpectAgreement(model);
  }
}

TEST(Autograd, AgreesWithScaledScoresThatAreNotNormalised) {
  Model model = Plain();
  model.route_scale = -1.5;
  ExpectAgreement(model);
}

TEST(Autograd, AgreesWithABiasOnTheGate) {
  Model model = Plain();
  model.gate_bias = true;
  ExpectAgreement(model);
}

TEST(Autograd, AgreesWithABiasThatOnlyChooses) {
  Model model = Plain();
  model.score_function = ScoreFunction::kSigmoid;
  model.expert_bias = true;
  model.route_norm = true;
  ExpectAgreement(model);
}

TEST(Autograd, AgreesWithExpertsChosenFromGroups) {
  Model model = Plain();
  model.score_function = ScoreFunction::kSigmoid;
  model.expert_groups = 4;
  model.limited_groups = 2;
  model.top_k = 3;
  model.expert_bias = true;
  ExpectAgreement(model);
}

TEST(Autograd, AgreesWithSharedExperts) {
  Model model = Plain();
  model.d_shared = 28;
  ExpectAgreement(model);
}

TEST(Autograd, AgreesWithGatedSharedExperts) {
  Model model = Plain();
  model.d_shared = 28;
  model.shared_gate = true;
  ExpectAgreement(model);
}

TEST(Autograd, AgreesWithOneExpertPerToken) {
  Model model = Plain();
  model.top_k = 1;
  ExpectAgreement(model);
}

TEST(Autograd, AgreesWhenEveryTokenChoosesEveryExpert) {
  for (const bool route_norm : {false, true}) {
    SCOPED_TRACE(route_norm);
    Model model = Plain();
    model.top_k = model.experts;
    model.route_norm = route_norm;
    ExpectAgreement(model);
  }
}

TEST(Autograd, AgreesWithExpertsThatNoTokenChooses) {
  ExpectAgreement(Plain(), {0, 3, 7});
}

TEST(Autograd, AgreesWithEveryOptionAtOnce) {
  ExpectAgreement({.tokens = 61,
                   .d_model = 24,
                   .d_expert = 20,
                   .experts = 12,
                   .top_k = 3,
                   .score_function = ScoreFunction::kSigmoid,
                   .score_placement = ScorePlacement::kBeforeExperts,
                   .route_norm = true,
                   .route_scale = 2.5,
                   .gate_bias = true,
                   .expert_bias = true,
                   .expert_groups = 4,
                   .limited_groups = 2,
                   .d_shared = 28,
                   .shared_gate = true},
                  {5});
}

// Autograd shares no arithmetic with the reference, adds in an order of its own, runs every token
// through every expert, and rounds everything to the dtype, the scores too.
TEST(Autograd, EqualsTheReferenceBitForBitInEveryDtypeWhereTheFillIsDyadic) {
  int cases = 0;
  for (const CaseSpec& spec : ReadCases(MOEGATE_SOURCE_DIR "/cases")) {
    if (spec.numerics.fill != Fill::kDyadic) {
      continue;
    }
    ++cases;
    const InputGenerator inputs(spec);
    const Results want = WholeReference(spec.model, inputs);
    for (const Dtype dtype : {Dtype::kFloat64, Dtype::kFloat32, Dtype::kBfloat16}) {
      const Results got = AutogradStep(spec.model, inputs, dtype);
      for (const TensorInfo& result : ResultsOf(spec.model)) {
        EXPECT_EQ(got.at(result.name), want.at(result.name))
            << spec.name << " " << result.name << " " << ToText(dtype);
      }
    }
  }
  EXPECT_GE(cases, 4);
}

}  // namespace
}  // namespace moe
