// The router on one rank: who is chosen, with what weight, and what has a gradient.

#include "harness/parallel/route.h"

#include <gtest/gtest.h>

namespace moe::parallel {
namespace {

Model SigmoidModel() {
  return {.tokens = 1,
          .d_model = 2,
          .d_expert = 2,
          .experts = 4,
          .top_k = 2,
          .score_function = ScoreFunction::kSigmoid};
}

// Logits of one token whose sigmoids are these.
at::Tensor LogitsOf(const std::vector<double>& scores) {
  return at::logit(at::tensor(scores, at::kDouble)).unsqueeze(0);
}

std::vector<std::int64_t> ChosenOf(const Choice& choice) {
  const at::Tensor flat = std::get<0>(choice.topk_expert_TK.flatten().sort());
  return {flat.const_data_ptr<std::int64_t>(), flat.const_data_ptr<std::int64_t>() + flat.numel()};
}

bool IsNear(const at::Tensor& got, const std::vector<double>& want) {
  return at::allclose(got.flatten(), at::tensor(want, at::kDouble), /*rtol=*/1e-14, /*atol=*/1e-15);
}

TEST(Logits, OfBfloat16AreComputedInFloat32) {
  const at::Tensor x_TD = at::ones({1, 2}, at::kBFloat16);
  const at::Tensor gate_ED = at::tensor({1.0, 0x1p-10}, at::kDouble).to(at::kBFloat16).view({1, 2});
  const at::Tensor logits_TE = Logits(x_TD, gate_ED, {});
  EXPECT_EQ(logits_TE.scalar_type(), at::kFloat);
  EXPECT_EQ(logits_TE.item<float>(), 1.0F + 0x1p-10F);
}

TEST(Logits, AddTheBiasOfTheGate) {
  const at::Tensor x_TD = at::ones({1, 2}, at::kDouble);
  const at::Tensor bias_E = at::tensor({0.5, -0.5}, at::kDouble);
  EXPECT_TRUE(Logits(x_TD, at::ones({2, 2}, at::kDouble), bias_E)
                  .equal(at::tensor({2.5, 1.5}, at::kDouble).view({1, 2})));
}

TEST(Route, ChoosesTheBestScoresAndWeighsByThem) {
  const Choice choice = Route(SigmoidModel(), LogitsOf({0.25, 0.75, 0.125, 0.5}), {});
  EXPECT_EQ(ChosenOf(choice), (std::vector<std::int64_t>{1, 3}));
  EXPECT_TRUE(IsNear(choice.topk_score_TK, {0.75, 0.5}));
}

TEST(Route, OfASoftmaxDividesByAllExperts) {
  Model model = SigmoidModel();
  model.score_function = ScoreFunction::kSoftmax;
  const at::Tensor logits_TE = at::log(at::tensor({1.0, 4.0, 2.0, 3.0}, at::kDouble)).unsqueeze(0);
  EXPECT_TRUE(IsNear(Route(model, logits_TE, {}).topk_score_TK, {0.4, 0.3}));
}

TEST(Route, ABiasOfTheSelectionChangesTheChoiceAndNoWeight) {
  const at::Tensor expert_bias_E = at::tensor({0.5, 0.0, 0.0, 0.0}, at::kDouble);
  const Choice choice = Route(SigmoidModel(), LogitsOf({0.25, 0.625, 0.125, 0.5}), expert_bias_E);
  EXPECT_EQ(ChosenOf(choice), (std::vector<std::int64_t>{0, 1}));
  EXPECT_TRUE(IsNear(choice.topk_score_TK, {0.25, 0.625}));
}

TEST(Route, KnowsTheScoresOfTheSelection) {
  const at::Tensor expert_bias_E = at::tensor({0.5, 0.0, 0.0, 0.0}, at::kDouble);
  const Choice choice = Route(SigmoidModel(), LogitsOf({0.25, 0.625, 0.125, 0.5}), expert_bias_E);
  EXPECT_TRUE(IsNear(choice.topk_selection_TK, {0.75, 0.625}));
}

// The best expert of all is in a group whose best two together are less.
TEST(Route, ChoosesWithinTheGroupsWhoseTwoBestAreTheMost) {
  Model model = SigmoidModel();
  model.expert_groups = 2;
  model.limited_groups = 1;
  EXPECT_EQ(ChosenOf(Route(model, LogitsOf({0.875, 0.0625, 0.5, 0.625}), {})),
            (std::vector<std::int64_t>{2, 3}));
}

TEST(Route, NormalisesTheChosenScoresAndThenScalesThem) {
  Model model = SigmoidModel();
  model.route_norm = true;
  model.route_scale = 2.0;
  EXPECT_TRUE(
      IsNear(Route(model, LogitsOf({0.25, 0.75, 0.125, 0.5}), {}).topk_score_TK, {1.2, 0.8}));
}

TEST(Route, OnlyTheChosenScoresHaveAGradient) {
  const at::Tensor logits_TE = LogitsOf({0.25, 0.75, 0.125, 0.5}).requires_grad_();
  Route(SigmoidModel(), logits_TE, {}).topk_score_TK.sum().backward();
  EXPECT_TRUE(IsNear(logits_TE.grad(), {0.0, 0.1875, 0.0, 0.25}));
}

}  // namespace
}  // namespace moe::parallel
