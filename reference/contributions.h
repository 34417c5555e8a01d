// What every result of the step is made of. The output and the gradients are sums: over tokens,
// over the experts' owners, over slices of the hidden units, and over paths of the backward pass.
// Given these parts as plain index lists, this splits each result into one term per part, so that
// whoever knows what ranks did can say which terms a wrong gradient holds, and how often.
//
// The forward pass is taken as right: everything behind it is linear in the output cotangent, which
// is what makes the terms add up to the result.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "harness/base/tensor_table.h"
#include "reference/moe_reference.h"

namespace moe::reference {

// Which part each index belongs to, numbered from 0. An empty list is one part that has everything.
struct Partition {
  std::vector<std::int64_t> owner_E;         // experts
  std::vector<std::int64_t> slice_F;         // hidden units of the routed experts
  std::vector<std::int64_t> shared_slice_F;  // hidden units of the shared experts
};

// The part of a [T, D] result that goes along one path, through one owner's experts and one slice
// of their hidden units (`owner` is 0 for the shared experts): the rows of the tokens that have
// one.
struct RowTerm {
  Path path = Path::kRouted;  // routed, gate (of d_x_TD) or shared
  std::int64_t owner = 0;
  std::int64_t slice = 0;
  std::vector<std::int64_t> token_N;  // ascending
  Matrix value_ND;
};

// A parameter's gradient as a sum over tokens: row n of `left` times row n of `right` (outer
// product), from token token_N[n].
struct TokenSum {
  std::vector<std::int64_t> token_N;
  Matrix left_NR;
  Matrix right_NC;
  const Matrix* right_TC = nullptr;  // in its place, where it is the row of the token in this
};

// The terms added up, each times_T[token] times: [R, C].
Matrix SumOf(const TokenSum& sum, std::span<const double> times_T);

class Contributions {
 public:
  // `problem` must outlive this. Runs the step once, with `routing` as the choice of experts.
  Contributions(const Model& model, const Problem& problem, const Routing& routing,
                const Partition& partition);

  // Of a result with rows of tokens, by its name: y_TD or d_x_TD.
  const std::vector<RowTerm>& RowsOf(std::string_view result) const;

  // Of another result that has no slice for each expert. That of the router's parameters by owner
  // and slice of the experts whose outputs the score's gradient came from, that of the shared
  // experts' gate by slice of the hidden units that it came from; of the rest owner and slice are
  // 0.
  const TokenSum& SumFor(std::string_view result, std::int64_t owner, std::int64_t slice) const;

  // What the gate would get if the score of every slot had the gradients of the same slot of all
  // these tokens, token by token, added up; all owners and slices together.
  struct GatePart {
    std::map<std::string, TokenSum> sums;  // by result
    Matrix d_x_TD;
  };
  GatePart GateWithScoresOf(const std::vector<std::vector<std::int64_t>>& tokens_T) const;

  // Of one expert its slices of the results that have one for each, by name; made when asked for.
  std::map<std::string, TokenSum> OfExpert(std::int64_t expert) const;

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
  std::map<std::string, std::vector<RowTerm>, std::less<>> rows_;
  struct Sums {
    std::int64_t slices = 1;
    std::vector<TokenSum> sums;  // by owner * slices + slice
  };
  std::map<std::string, Sums, std::less<>> sums_;
};

}  // namespace moe::reference
