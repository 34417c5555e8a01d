// What every result of the step is made of. The output and the gradients are sums: over tokens,
// over the experts' owners, over slices of the hidden units, and over paths of the backward pass.
// Given these parts as plain index lists, this splits each result into one term per part, so that
// whoever knows what ranks did can say which terms a wrong gradient holds, and how often.
//
// The forward pass is taken as right: everything behind it is linear in the output cotangent, which
// is what makes the terms add up to the result.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "reference/moe_reference.h"

namespace moe::reference {

// Which part each index belongs to, numbered from 0. An empty list is one part that has everything.
struct Partition {
  std::vector<std::int64_t> owner_E;         // experts
  std::vector<std::int64_t> slice_F;         // hidden units of the routed experts
  std::vector<std::int64_t> shared_slice_F;  // hidden units of the shared experts
};

// Ways through the layer. Of y_TD: routed and shared; of d_x_TD: all three.
enum class Path { kGate, kRouted, kShared };

// The part of a [T, D] result that goes along one path, through one owner's experts and one slice
// of their hidden units (`owner` is 0 for the shared experts).
struct RowTerm {
  Path path = Path::kRouted;
  std::int64_t owner = 0;
  std::int64_t slice = 0;
  Matrix value_TD;
};

// A parameter's gradient as a sum over tokens: row n of `left` times row n of `right` (outer
// product), from token token_N[n].
struct TokenSum {
  std::vector<std::int64_t> token_N;
  Matrix left_NR;
  Matrix right_NC;
};

// The terms of the tokens that `in_T` marks, added up: [R, C].
Matrix SumOf(const TokenSum& sum, const std::vector<bool>& in_T);

using ExpertSums = WeightGradients<TokenSum>;

class Contributions {
 public:
  // `problem` must outlive this. Runs the step once, with `routing` as the choice of experts.
  Contributions(const Model& model, const Problem& problem, const Routing& routing,
                const Partition& partition);

  const std::vector<RowTerm>& y_TD() const { return y_TD_; }
  const std::vector<RowTerm>& d_x_TD() const { return d_x_TD_; }

  // By owner and slice of the experts whose outputs the score's gradient came from.
  const TokenSum& d_gate_ED(std::int64_t owner, std::int64_t slice) const;
  const TokenSum& d_gate_bias_E(std::int64_t owner, std::int64_t slice) const;
  // By slice of the shared experts' hidden units, which their gate's gradient came from.
  const TokenSum& d_shared_gate_D(std::int64_t shared_slice) const;
  const ExpertSums& shared() const { return shared_; }

  // What the gate would get if the score of every slot had the gradients of the same slot of all
  // these tokens, token by token, added up; all owners and slices together.
  struct GatePart {
    TokenSum d_gate_ED;
    TokenSum d_gate_bias_E;
    Matrix d_x_TD;
  };
  GatePart GateWithScoresOf(const std::vector<std::vector<std::int64_t>>& tokens_T) const;

  // Of one expert, made when asked for.
  ExpertSums OfExpert(std::int64_t expert) const;

 private:
  void RunExperts();
  void RunShared();
  void RunGate();

  const Model model_;
  const Problem& problem_;
  Partition partition_;
  std::int64_t owners_;
  std::int64_t slices_;
  std::int64_t shared_slices_;
  Routing routing_;
  Matrix p_TK_;
  Matrix d_p_TK_;                    // gradient of the slots' scores
  std::vector<Matrix> d_logits_TE_;  // by owner * slices_ + slice
  std::vector<RowTerm> y_TD_;
  std::vector<RowTerm> d_x_TD_;
  std::vector<TokenSum> d_gate_ED_;
  std::vector<TokenSum> d_gate_bias_E_;
  std::vector<TokenSum> d_shared_gate_D_;
  ExpertSums shared_;
};

}  // namespace moe::reference
