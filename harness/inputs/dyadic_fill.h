// The dyadic fill: a problem whose step rounds nowhere, in bfloat16 or finer, whatever the order of
// its additions, so that a correct step equals the reference bit for bit (DESIGN: numerics).
//
// All values are 0 or a few powers of two. The columns of D are cut into three blocks:
//   routing  one column per class of tokens; a token has 1 in its own. Only the gate reads it: the
//            K experts of the class get the logit 0, all others -2^10 or less, so that sigmoid
//            gives 1/2 with slope 1/4 and softmax 1/K
//   feature  one 1 or -1 per token. Only experts read it; what enters SiLU is 0 or at least 2^10 in
//            magnitude, so that SiLU is 0 or its argument, and its slope 1/2, 0 or 1
//   balance  where the shared experts have a gate: one entry that makes x . shared_gate_D exactly 0
// Token t is of class t mod C, so that every share of a few neighbouring tokens has all experts.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "harness/spec/case_spec.h"

namespace moe {

// Why no problem makes a step of this case exact, as one sentence that says what would be right
// ("top_k 3 makes scores of 1/3; use a power of two"); empty when one can.
std::string FindInexact(const CaseSpec& spec);

// The columns of D, in this order.
struct DyadicBlocks {
  std::int64_t routing = 0;  // one per class
  std::int64_t feature = 0;
  std::int64_t balance = 0;
};

class DyadicFill {
 public:
  // FindInexact(spec) must be empty. Draws every hidden unit's part of w1, w3 and w2 until its
  // gradients are not zero and no other unit's of the expert, so that one that is lost, or changes
  // places, shows; keeps the number of redraws per unit. Throws Error(spec.path, ...) when tokens
  // are too few.
  explicit DyadicFill(const CaseSpec& spec);

  // An element of the input tensor `name` (InputsOf) by its global index in each dimension.
  using Element = std::function<double(std::span<const std::int64_t> index)>;
  Element ElementOf(const std::string& name) const;

 private:
  std::int64_t ClassOf(std::int64_t token) const;
  std::int64_t ColumnOf(std::int64_t token, const std::string& block, std::int64_t columns) const;
  std::int64_t FeatureOf(std::int64_t token) const;  // a column of D, as is the next
  std::int64_t BalanceOf(std::int64_t token) const;
  std::int64_t ExpertOf(std::int64_t token_class, std::int64_t slot) const;
  bool IsMember(std::int64_t expert, std::int64_t token_class) const;
  std::int64_t OutputOf(std::int64_t token) const;  // the column of D that the loss sees
  double SharedGate(std::int64_t column) const;
  double GateMagnitude(std::uint64_t index) const;
  bool IsFeature(std::int64_t column) const;

  // Of a hidden unit; the shared experts' follow those of the last expert.
  std::size_t UnitIndex(std::int64_t expert, std::int64_t unit) const;

  double X(std::int64_t token, std::int64_t column) const;
  double DY(std::int64_t token, std::int64_t column) const;
  double Gate(std::int64_t expert, std::int64_t column) const;
  // Projections from D to F: w1 is 0 now and then, and there w3 is twice as large.
  Element Projection(const std::string& name, double scale) const;

  // Of w1 and w3, by feature column, and of w2, each up to one factor.
  using UnitGradients = std::array<std::vector<double>, 3>;
  // Of one expert, or with the index behind the last, of the shared experts, on these tokens.
  UnitGradients GradientsOf(std::int64_t expert, std::int64_t unit,
                            std::span<const std::int64_t> tokens) const;
  void DrawHiddenUnits(std::int64_t expert, std::span<const std::int64_t> tokens,
                       const std::string& where);

  Model model_;
  std::uint64_t seed_;
  std::vector<std::int64_t> busy_experts_;
  DyadicBlocks blocks_;
  std::vector<std::uint64_t> redraws_;  // by UnitIndex
};

}  // namespace moe
