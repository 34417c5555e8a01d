#include "harness/parallel/route.h"

#include <limits>

#include "harness/parallel/tensors.h"

namespace moe::parallel {
namespace {

// Scores outside the best groups become -inf. A group is as good as its two best experts together
// (DeepSeek-V3; torchtitan moe.py).
at::Tensor LimitToGroups(const Model& model, const at::Tensor& scores_TE) {
  const std::int64_t per_group = model.experts / model.expert_groups;
  const at::Tensor grouped = scores_TE.view({-1, model.expert_groups, per_group});
  const at::Tensor group_scores =
      std::get<0>(grouped.topk(std::min<std::int64_t>(2, per_group), /*dim=*/2)).sum(2);
  const at::Tensor best = std::get<1>(group_scores.topk(model.limited_groups, /*dim=*/1));
  const at::Tensor kept = at::zeros_like(group_scores, at::kBool).scatter_(1, best, true);
  return grouped
      .masked_fill(kept.unsqueeze(2).logical_not(), -std::numeric_limits<double>::infinity())
      .view_as(scores_TE);
}

}  // namespace

at::Tensor Logits(const at::Tensor& x_TD, const at::Tensor& gate_ED,
                  const at::Tensor& gate_bias_E) {
  const auto dtype = ScoreType(x_TD.scalar_type());
  const at::Tensor logits = at::mm(x_TD.to(dtype), gate_ED.to(dtype).t());
  return gate_bias_E.defined() ? logits + gate_bias_E.to(dtype) : logits;
}

Choice Route(const Model& model, const at::Tensor& logits_TE, const at::Tensor& expert_bias_E) {
  const at::Tensor scores_TE = model.score_function == ScoreFunction::kSoftmax
                                   ? logits_TE.softmax(/*dim=*/1)
                                   : logits_TE.sigmoid();
  // torch.topk differentiates its values only; the choice itself carries no gradient.
  at::Tensor selection_TE = scores_TE.detach();
  if (expert_bias_E.defined()) {
    selection_TE = selection_TE + expert_bias_E.to(selection_TE.scalar_type());
  }
  if (model.expert_groups > 1) {
    selection_TE = LimitToGroups(model, selection_TE);
  }
  Choice choice;
  choice.topk_expert_TK = std::get<1>(selection_TE.topk(model.top_k, /*dim=*/1));
  choice.topk_selection_TK = selection_TE.gather(1, choice.topk_expert_TK);
  choice.topk_score_TK = scores_TE.gather(1, choice.topk_expert_TK);
  if (model.route_norm) {
    choice.topk_score_TK =
        choice.topk_score_TK / (choice.topk_score_TK.sum(1, /*keepdim=*/true) + 1e-20);
  }
  if (model.route_scale != 1.0) {
    choice.topk_score_TK = choice.topk_score_TK * model.route_scale;
  }
  return choice;
}

}  // namespace moe::parallel
