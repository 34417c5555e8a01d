// One expert, forward and backward, written once for every kind of expert and of number:
//
//   gate = r w1^T      up = r w3^T      hidden = a(gate) b(up)      o = hidden w2^T
//
//   d_hidden = d_o w2     d_gate = d_hidden b(up) a'(gate)     d_up = d_hidden a(gate) b'(up)
//   d_r = d_gate w1 + d_up w3
//   d_w1 = d_gate^T r     d_w3 = d_up^T r     d_w2 = d_o^T hidden
//
// r [N, D] enters the expert, o [N, D] leaves it; a and b are those of its kind (expert_kind.h).
// What a product, a sum over hidden units (which ranks may share out) and a sum over tokens are,
// the Math says: a value, a value with its error (expert_estimate.h), terms that are kept apart
// (contributions.cc), a sum with the size of its terms (harness/inputs/exactness.cc).
#pragma once

#include <concepts>
#include <utility>

#include "reference/arithmetic.h"
#include "reference/expert_kind.h"
#include "reference/moe_reference.h"

namespace moe::reference {

// What happens to hidden units, one by one. Rows: [N, F] of them, or [N, D], or a single number.
template <typename Math>
concept HiddenUnitMath = requires(const Math& math, const typename Math::Rows& rows,
                                  const Function& f) {
  { math.Value(f, rows) } -> std::same_as<typename Math::Rows>;        // f of each element
  { math.Slope(f, rows) } -> std::same_as<typename Math::Rows>;        // f' of each element
  { math.Multiply(rows, rows) } -> std::same_as<typename Math::Rows>;  // element by element
};

template <typename Math>
concept ExpertMath = HiddenUnitMath<Math> &&
    requires(const Math& math, const typename Math::Rows& rows, const typename Math::HiddenSum& sum,
             const Operand& weight) {
  { math.Product(rows, weight) } -> std::same_as<typename Math::Rows>;             // a sum over D
  { math.SumOverHidden(rows, weight) } -> std::same_as<typename Math::HiddenSum>;  // [N, D]
  { math.SumOverTokens(rows, rows) } -> std::same_as<typename Math::TokenSum>;     // a^T b
  { math.Add(sum, sum) } -> std::same_as<typename Math::HiddenSum>;
};

// What the backward pass needs of the forward one.
template <HiddenUnitMath Math>
struct HiddenUnits {
  typename Math::Rows gate_NF{};
  typename Math::Rows up_NF{};
  typename Math::Rows a_NF{};  // a(gate)
  typename Math::Rows b_NF{};  // b(up); empty in kinds without b
  typename Math::Rows hidden_NF{};
};

template <HiddenUnitMath Math>
struct HiddenUnitGradients {
  typename Math::Rows d_gate_NF{};
  typename Math::Rows d_up_NF{};
};

template <HiddenUnitMath Math>
HiddenUnits<Math> Activate(const Math& math, const ExpertKind& kind, typename Math::Rows gate_NF,
                           typename Math::Rows up_NF) {
  HiddenUnits<Math> units{.gate_NF = std::move(gate_NF), .up_NF = std::move(up_NF)};
  units.a_NF = math.Value(kind.a, units.gate_NF);
  if (kind.b) {
    units.b_NF = math.Value(*kind.b, units.up_NF);
  }
  units.hidden_NF = math.Multiply(units.a_NF, kind.b ? units.b_NF : units.up_NF);
  return units;
}

template <HiddenUnitMath Math>
HiddenUnitGradients<Math> ActivateBackward(const Math& math, const ExpertKind& kind,
                                           const HiddenUnits<Math>& units,
                                           const typename Math::Rows& d_hidden_NF) {
  HiddenUnitGradients<Math> d;
  d.d_up_NF = math.Multiply(d_hidden_NF, units.a_NF);
  if (kind.b) {
    d.d_up_NF = math.Multiply(d.d_up_NF, math.Slope(*kind.b, units.up_NF));
  }
  d.d_gate_NF = math.Multiply(math.Multiply(d_hidden_NF, kind.b ? units.b_NF : units.up_NF),
                              math.Slope(kind.a, units.gate_NF));
  return d;
}

// Rows that come from outside, r and d_o, are anything that the Math takes a product of.
template <ExpertMath Math>
struct ExpertForward {
  HiddenUnits<Math> units;
  typename Math::HiddenSum o_ND{};
};

template <ExpertMath Math>
ExpertForward<Math> RunForward(const Math& math, const ExpertKind& kind,
                               const ExpertWeights& weights, const auto& r_ND) {
  ExpertForward<Math> f;
  f.units = Activate(math, kind, math.Product(r_ND, Transposed(weights.w1_FD)),
                     math.Product(r_ND, Transposed(weights.w3_FD)));
  f.o_ND = math.SumOverHidden(f.units.hidden_NF, Transposed(weights.w2_DF));
  return f;
}

template <ExpertMath Math>
struct ExpertBackward {
  typename Math::Rows d_hidden_NF{};
  HiddenUnitGradients<Math> units;
  typename Math::HiddenSum d_r_ND{};
};

template <ExpertMath Math>
ExpertBackward<Math> RunBackward(const Math& math, const ExpertKind& kind,
                                 const ExpertWeights& weights, const ExpertForward<Math>& forward,
                                 const auto& d_o_ND) {
  ExpertBackward<Math> b;
  b.d_hidden_NF = math.Product(d_o_ND, weights.w2_DF);
  b.units = ActivateBackward(math, kind, forward.units, b.d_hidden_NF);
  b.d_r_ND = math.Add(math.SumOverHidden(b.units.d_gate_NF, weights.w1_FD),
                      math.SumOverHidden(b.units.d_up_NF, weights.w3_FD));
  return b;
}

template <ExpertMath Math>
WeightGradients<typename Math::TokenSum> GradientsOfWeights(const Math& math,
                                                            const ExpertForward<Math>& forward,
                                                            const ExpertBackward<Math>& backward,
                                                            const auto& r_ND, const auto& d_o_ND) {
  return {.d_w1_FD = math.SumOverTokens(backward.units.d_gate_NF, r_ND),
          .d_w3_FD = math.SumOverTokens(backward.units.d_up_NF, r_ND),
          .d_w2_DF = math.SumOverTokens(d_o_ND, forward.units.hidden_NF)};
}

}  // namespace moe::reference
