// The step, top to bottom: route, experts one at a time (forward and backward), shared experts,
// router backward. Formulas of a single expert are in expert.h, those of the router in router.cc.
//
// With p the combine weights and E_e expert e, summed over the K slots of each token:
//   before_experts  y = sum E_e(p x)     d_p = <d_r, x>    d_x = p d_r     with r = p x
//   after_experts   y = sum p E_e(x)     d_p = <d_y, o>    d_x = d_r       with o = E_e(x)
#include "reference/moe_reference.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "harness/base/error.h"
#include "reference/arithmetic.h"
#include "reference/expert_estimate.h"
#include "reference/router.h"

namespace moe::reference {
namespace {

// The slots of one expert: its n-th row is token tokens[n], which chose it in slots[n].
struct ExpertSlots {
  std::vector<std::int64_t> tokens;
  std::vector<std::int64_t> slots;
};

std::vector<ExpertSlots> SlotsByExpert(const Model& model, const Routing& routing) {
  std::vector<ExpertSlots> slots_E(static_cast<std::size_t>(model.experts));
  for (Eigen::Index token = 0; token < routing.topk_expert_TK.rows(); ++token) {
    for (Eigen::Index slot = 0; slot < routing.topk_expert_TK.cols(); ++slot) {
      ExpertSlots& slots = slots_E[static_cast<std::size_t>(routing.topk_expert_TK(token, slot))];
      slots.tokens.push_back(token);
      slots.slots.push_back(slot);
    }
  }
  return slots_E;
}

// The elements of a [T, K] estimate that belong to one expert, as [N, 1].
Estimate Gather(const Arithmetic& math, const Estimate& whole_TK, const ExpertSlots& slots) {
  Estimate part_N1 = math.Zero(std::ssize(slots.tokens), 1);
  for (std::size_t n = 0; n < slots.tokens.size(); ++n) {
    const auto row = static_cast<Eigen::Index>(n);
    for (Matrix Estimate::*part : math.parts()) {
      (part_N1.*part)(row, 0) = (whole_TK.*part)(slots.tokens[n], slots.slots[n]);
    }
  }
  return part_N1;
}

void Scatter(const Arithmetic& math, const Estimate& part_N1, const ExpertSlots& slots,
             Estimate& whole_TK) {
  for (std::size_t n = 0; n < slots.tokens.size(); ++n) {
    const auto row = static_cast<Eigen::Index>(n);
    for (Matrix Estimate::*part : math.parts()) {
      (whole_TK.*part)(slots.tokens[n], slots.slots[n]) = (part_N1.*part)(row, 0);
    }
  }
}

// The step's own routing, or with the choice that was asked for.
Routing ChooseRouting(const Model& model, Routing own, const Routing* forced) {
  if (forced == nullptr) {
    return own;
  }
  const auto& topk_expert_TK = forced->topk_expert_TK;
  if (topk_expert_TK.rows() != own.topk_expert_TK.rows() ||
      topk_expert_TK.cols() != own.topk_expert_TK.cols()) {
    throw Error(
        "topk_expert_TK",
        fmt::format("has shape [{}, {}]; tokens and top_k ask for [{}, {}]", topk_expert_TK.rows(),
                    topk_expert_TK.cols(), own.topk_expert_TK.rows(), own.topk_expert_TK.cols()));
  }
  for (Eigen::Index token = 0; token < topk_expert_TK.rows(); ++token) {
    for (Eigen::Index slot = 0; slot < topk_expert_TK.cols(); ++slot) {
      const std::int64_t expert = topk_expert_TK(token, slot);
      if (expert < 0 || expert >= model.experts) {
        throw Error("topk_expert_TK", fmt::format("token {} has expert {}; use 0 to {}", token,
                                                  expert, model.experts - 1));
      }
      if ((topk_expert_TK.row(token).head(slot).array() == expert).any()) {
        throw Error("topk_expert_TK",
                    fmt::format("token {} has expert {} twice; use {} different experts", token,
                                expert, topk_expert_TK.cols()));
      }
    }
  }
  own.topk_expert_TK = topk_expert_TK;
  return own;
}

// One expert, forward and backward: adds to y and d_x, fills in its elements of d_p.
ExpertGradients RunExpert(const Arithmetic& math, const Model& model, const Problem& problem,
                          std::int64_t expert, const ExpertSlots& slots, const Estimate& p_TK,
                          Results& results, Estimate& d_p_TK) {
  const ExpertWeights weights = problem.expert(expert);
  ExpertGradients gradients{.expert = expert, .tokens = std::ssize(slots.tokens)};
  if (slots.tokens.empty()) {
    gradients.results["d_w1_EFD"] = math.Zero(model.d_expert, model.d_model);
    gradients.results["d_w3_EFD"] = math.Zero(model.d_expert, model.d_model);
    gradients.results["d_w2_EDF"] = math.Zero(model.d_model, model.d_expert);
    return gradients;
  }
  const ExpertKind kind = SwiGlu();
  // A cast of rows is one of their gradients too, and what multiplies them is computed in it.
  const Cast& cast_in = math.unit().routed_in;
  const Cast& cast_out = math.unit().routed_out;
  const Units in = math.UnitsOf(cast_in);
  const Units out = math.UnitsOf(cast_out);
  const double scores = math.unit().scores;
  const Estimate p_N1 = Gather(math, p_TK, slots);
  const Estimate x_ND = math.Rounded(RowsOf(problem.x_TD, slots.tokens), cast_in);
  const Estimate d_y_ND = math.Rounded(RowsOf(problem.d_y_TD, slots.tokens), cast_out);

  EstimatedBackward backward;
  if (model.score_placement == ScorePlacement::kBeforeExperts) {
    const Estimate r_ND = math.ScaleRows(x_ND, p_N1, in.store);
    const EstimatedForward forward = EstimateForward(math, kind, weights, r_ND, cast_out);
    math.AddToRows(forward.o_ND, slots.tokens, out, results["y_TD"]);

    backward = EstimateBackward(math, kind, weights, forward, r_ND, d_y_ND, cast_in);
    Scatter(math,
            math.RowDots(backward.d_r_ND, x_ND, std::max(scores, cast_in.unit), in.accumulate),
            slots, d_p_TK);
    math.AddToRows(math.ScaleRows(backward.d_r_ND, p_N1, in.store), slots.tokens, in,
                   results["d_x_TD"]);
  } else {
    const EstimatedForward forward = EstimateForward(math, kind, weights, x_ND, cast_out);
    math.AddToRows(math.ScaleRows(forward.o_ND, p_N1, out.store), slots.tokens, out,
                   results["y_TD"]);

    const Estimate d_o_ND = math.ScaleRows(d_y_ND, p_N1, out.store);
    backward = EstimateBackward(math, kind, weights, forward, x_ND, d_o_ND, cast_in);
    Scatter(math,
            math.RowDots(forward.o_ND, d_y_ND, std::max(scores, cast_out.unit), out.accumulate),
            slots, d_p_TK);
    math.AddToRows(backward.d_r_ND, slots.tokens, in, results["d_x_TD"]);
  }
  gradients.results["d_w1_EFD"] = std::move(backward.weights.d_w1_FD);
  gradients.results["d_w3_EFD"] = std::move(backward.weights.d_w3_FD);
  gradients.results["d_w2_EDF"] = std::move(backward.weights.d_w2_DF);
  return gradients;
}

// Shared experts, y += FFN(x), or with a gate y += a FFN(x), a = sigmoid(x . shared_gate).
void RunSharedExperts(const Arithmetic& math, const Model& model, const Problem& problem,
                      Results& results) {
  const double store = math.unit().store;
  const Matrix& x_TD = problem.x_TD;
  std::vector<std::int64_t> tokens(static_cast<std::size_t>(x_TD.rows()));
  std::iota(tokens.begin(), tokens.end(), 0);

  const ExpertKind kind = SwiGlu();
  const EstimatedForward forward = EstimateForward(math, kind, problem.shared, x_TD);
  EstimatedBackward backward;
  if (model.shared_gate) {
    const Matrix shared_gate_1D = problem.shared_gate_D.transpose();
    const Estimate z_T1 = math.Product(x_TD, Transposed(shared_gate_1D), Sum::kLocal);
    const auto slope = [](double z) { return SigmoidSlopeOf(Sigmoid(z)); };
    const auto curvature = [](double a) { return 1.0 - 2.0 * a; };
    const Estimate a_T1 = math.Elementwise(z_T1, Sigmoid, slope, /*size=*/Sigmoid, store);
    math.AddToRows(math.ScaleRows(forward.o_ND, a_T1, store), tokens, results["y_TD"]);

    const Estimate d_o_TD = math.ScaleRows(problem.d_y_TD, a_T1, store);
    backward = EstimateBackward(math, kind, problem.shared, forward, x_TD, d_o_TD);
    const Estimate d_a_T1 =
        math.RowDots(forward.o_ND, problem.d_y_TD, store, math.unit().accumulate);
    const Estimate slope_T1 =
        math.Elementwise(a_T1, SigmoidSlopeOf, curvature, /*size=*/SigmoidSlopeOf, store);
    const Estimate d_z_T1 = math.Multiply(d_a_T1, slope_T1, store);
    results["d_shared_gate_D"] = math.Gradient(Transposed(d_z_T1), x_TD);
    math.AddToRows(math.Product(d_z_T1, shared_gate_1D, Sum::kHidden), tokens, results["d_x_TD"]);
  } else {
    math.AddToRows(forward.o_ND, tokens, results["y_TD"]);
    backward = EstimateBackward(math, kind, problem.shared, forward, x_TD, problem.d_y_TD);
  }
  math.AddToRows(backward.d_r_ND, tokens, results["d_x_TD"]);
  results["d_shared_w1_FD"] = std::move(backward.weights.d_w1_FD);
  results["d_shared_w3_FD"] = std::move(backward.weights.d_w3_FD);
  results["d_shared_w2_DF"] = std::move(backward.weights.d_w2_DF);
}

// From d_logits to the gate, its bias and the tokens.
void RunGateBackward(const Arithmetic& math, const Model& model, const Problem& problem,
                     const Estimate& d_logits_TE, Results& results) {
  std::vector<std::int64_t> tokens(static_cast<std::size_t>(problem.x_TD.rows()));
  std::iota(tokens.begin(), tokens.end(), 0);

  const Cast& cast = math.unit().gate;
  const Units units = math.UnitsOf(cast);
  const Estimate x_TD = math.Rounded(problem.x_TD, cast);
  const Estimate gate_ED = math.Rounded(problem.gate_ED, cast);
  results["d_gate_ED"] = math.Gradient(Transposed(d_logits_TE), x_TD, units);
  if (model.gate_bias) {
    const Matrix ones_1T = Matrix::Ones(1, problem.x_TD.rows());
    results["d_gate_bias_E"] = math.Gradient(ones_1T, d_logits_TE, units);
  }
  math.AddToRows(math.Product(d_logits_TE, gate_ED, Sum::kExperts, units), tokens,
                 results["d_x_TD"]);
}

}  // namespace

StepResult RunStep(const Model& model, const Problem& problem, const StepOptions& options,
                   const ExpertSink& on_expert) {
  // A token's row of d_x is added up from its slots, the shared experts, their gate and the router.
  const Arithmetic math(options.rounding, options.worst_case, /*row_parts=*/model.top_k + 3);
  const std::int64_t tokens = problem.x_TD.rows();
  StepResult result;

  // Route.
  const Estimate logits_TE =
      Logits(math, model, problem.x_TD, problem.gate_ED, problem.gate_bias_E);
  const Estimate scores_TE = Scores(math, model, logits_TE);
  result.routing =
      ChooseRouting(model, Select(math, model, logits_TE, scores_TE, problem.expert_bias_E),
                    options.forced_routing);
  const CombineWeights weights = WeighSlots(math, model, scores_TE, result.routing);

  // Experts: forward and backward of one before the next, so that only one is held.
  result.results["y_TD"] = math.Zero(tokens, model.d_model);
  result.results["d_x_TD"] = math.Zero(tokens, model.d_model);
  Estimate d_p_TK = math.Zero(tokens, model.top_k);
  const std::vector<ExpertSlots> slots_E = SlotsByExpert(model, result.routing);
  for (std::int64_t expert = 0; expert < model.experts; ++expert) {
    const ExpertSlots& slots = slots_E[static_cast<std::size_t>(expert)];
    result.tokens_per_expert_E.push_back(std::ssize(slots.tokens));
    on_expert(RunExpert(math, model, problem, expert, slots, weights.p_TK, result.results, d_p_TK));
  }
  if (model.d_shared > 0) {
    RunSharedExperts(math, model, problem, result.results);
  }

  // Router backward.
  const Estimate d_logits_TE =
      RouterBackward(math, model, result.routing, scores_TE, weights, d_p_TK);
  RunGateBackward(math, model, problem, d_logits_TE, result.results);
  return result;
}

}  // namespace moe::reference
