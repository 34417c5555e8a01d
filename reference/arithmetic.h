// The few matrix operations that the step is written in. Each one computes its value in float64
// and, when a Rounding is given, also the standard deviation of the error that a correct
// implementation with those unit round-offs makes in each element.
//
// The model is first order with independent errors, so variances add: the probabilistic view of
// rounding error of Higham and Mary, "A new approach to probabilistic rounding error analysis",
// SIAM J. Sci. Comput. 41 (2019). An empty deviation means exact. A value that no term contributes
// to has deviation 0.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "reference/moe_reference.h"

namespace moe::reference {

// What an operation reads: a matrix, exact or estimated, perhaps transposed. Refers, does not own.
struct Operand {
  Operand(const Matrix& exact) : value(exact) {}  // NOLINT(google-explicit-constructor): reads so
  Operand(const Estimate& estimate)               // NOLINT(google-explicit-constructor): reads so
      : value(estimate.value),
        deviation(estimate.deviation.size() > 0 ? &estimate.deviation : nullptr) {}
  Operand(const Operand& operand, bool transpose)
      : value(operand.value), deviation(operand.deviation), transposed(transpose) {}

  const Matrix& value;
  const Matrix* deviation = nullptr;  // null: exact
  bool transposed = false;
};

inline Operand Transposed(const Operand& operand) {
  return {operand, !operand.transposed};
}

// Whether a correct implementation may add a sum's terms in pieces on several ranks.
enum class Sum { kLocal, kReduced };

class Arithmetic {
 public:
  explicit Arithmetic(const std::optional<Rounding>& rounding)
      : estimating_(rounding.has_value()), unit_(rounding.value_or(Rounding{})) {}

  bool estimating() const { return estimating_; }
  // All zero when not estimating.
  const Rounding& unit() const { return unit_; }

  // [rows, cols] of zeros, known exactly.
  Estimate Zero(std::int64_t rows, std::int64_t cols) const;

  // a b, rounded to `unit` on writing (to unit().store where none is given).
  Estimate Product(const Operand& a, const Operand& b, Sum sum) const;
  Estimate Product(const Operand& a, const Operand& b, Sum sum, double unit) const;

  // The dot product of row n of a with row n of b, for every n: [N, 1] from [N, D].
  Estimate RowDots(const Operand& a, const Operand& b, double unit) const;

  // a and b element by element; row n of a times b[n].
  Estimate Multiply(const Operand& a, const Operand& b, double unit) const;
  Estimate ScaleRows(const Operand& a_ND, const Operand& b_N1, double unit) const;

  Estimate Add(const Operand& a, const Operand& b, double unit) const;

  // Adds row n of `part` to row rows[n] of `total`.
  void AddToRows(const Estimate& part, std::span<const std::int64_t> rows, Estimate& total) const;

  // f of each element. `slope` is its derivative; `size` is the size of the largest intermediate
  // result, which is what gets rounded (f itself unless terms of f cancel).
  using Function = double (*)(double);
  Estimate Elementwise(const Operand& u, Function f, Function slope, Function size,
                       double unit) const;

  // g[t,j] - sum_i w[t,i] g[t,i], the factor that softmax and normalisation share in their
  // backward. `terms` is the number of elements of a row of g that may differ from 0.
  Estimate MinusWeightedMean(const Operand& g, const Operand& w, std::int64_t terms,
                             double unit) const;

 private:
  bool estimating_;
  Rounding unit_;
};

// The rows of `whole` with these numbers, in this order.
Matrix RowsOf(const Matrix& whole, std::span<const std::int64_t> rows);

// 1 / (1 + exp(-z)) without overflow, and with a small relative error for very negative z too.
// std::exp rather than Eigen's, which clamps its argument: sigmoid(-1024) must be exactly 0, since
// the dyadic fill is compared with tolerance 0.
double Sigmoid(double z);

// The derivative of sigmoid, from its value.
double SigmoidSlopeOf(double sigmoid);

}  // namespace moe::reference
