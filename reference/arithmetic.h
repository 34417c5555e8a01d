// The few matrix operations that the step is written in. Each one computes its value in float64
// and, when a Rounding is given, bounds on the error that a correct implementation with those unit
// round-offs makes in each element. Both are first order and start from the same fact, that one
// rounding is off by at most u times its result. An empty bound means exact; a value that no term
// contributes to has bound 0.
//
// `deviation`, the probabilistic form: the roundings are independent and of mean zero, so that
// their squares add. Since each is bounded by u, the sum's tail is that of a normal variable with
// this deviation or lighter (Hoeffding): it exceeds lambda deviations with probability at most
// 2 exp(-lambda^2 / 2), whatever the number of terms, which is how sqrt(n) u comes to replace n u
// (Higham and Mary, "A new approach to probabilistic rounding error analysis", SIAM J. Sci. Comput.
// 41, 2019). The root mean square itself is smaller yet, at most u / sqrt(3) where a rounding is
// uniform within its half unit.
//
// `worst_case`: magnitudes add, nothing cancels, and a sum of n terms passes every term through n
// additions, which holds for every order of summation (gamma_n of Higham, "Accuracy and Stability
// of Numerical Algorithms", 2002, sec. 3.1, to first order). A sum over p > 1 ranks adds p more in
// the dtype of the communication: one to store a rank's share and p - 1 to add it up.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>

#include "reference/moe_reference.h"

namespace moe::reference {

// What an operation reads: a matrix, exact or estimated, perhaps transposed. Refers, does not own.
struct Operand {
  Operand(const Matrix& exact) : value(exact) {}  // NOLINT(google-explicit-constructor): reads so
  Operand(const Estimate& estimate)               // NOLINT(google-explicit-constructor): reads so
      : value(estimate.value),
        deviation(estimate.deviation.size() > 0 ? &estimate.deviation : nullptr),
        worst_case(estimate.worst_case.size() > 0 ? &estimate.worst_case : nullptr) {}
  Operand(const Operand& operand, bool transpose)
      : value(operand.value),
        deviation(operand.deviation),
        worst_case(operand.worst_case),
        transposed(transpose) {}

  const Matrix& value;
  const Matrix* deviation = nullptr;   // null: exact
  const Matrix* worst_case = nullptr;  // null: exact, or not asked for
  bool transposed = false;
};

inline Operand Transposed(const Operand& operand) {
  return {operand, !operand.transposed};
}

// What a sum goes over, where a correct implementation may share it out among ranks (Rounding).
enum class Sum { kLocal, kHidden, kExperts, kTokens };

// Unit round-offs of one operation: of its result, of an addition inside it, and of an addition
// between ranks or a rank's share of it.
struct Units {
  double store = 0.0;
  double accumulate = 0.0;
  double reduce = 0.0;
};

class Arithmetic {
 public:
  // With a rounding, deviations are made; with `worst_case` too, that bound as well. `row_parts` is
  // the most parts that AddToRows adds up to one row.
  explicit Arithmetic(const std::optional<Rounding>& rounding, bool worst_case = false,
                      std::int64_t row_parts = 1)
      : estimating_(rounding.has_value()),
        bounding_(rounding.has_value() && worst_case),
        row_parts_(row_parts),
        unit_(rounding.value_or(Rounding{})) {}

  bool estimating() const { return estimating_; }
  bool bounding() const { return bounding_; }
  // The members of an Estimate that are in use, for what moves elements and computes nothing.
  std::span<Matrix Estimate::*const> parts() const;
  // All zero when not estimating.
  const Rounding& unit() const { return unit_; }
  // Of an operation in the dtype of the step, or in that of a cast where it is coarser.
  Units UnitsOf(const Cast& cast = {}) const;

  // [rows, cols] of zeros, known exactly.
  Estimate Zero(std::int64_t rows, std::int64_t cols) const;

  // As it is after a cast. Not of a transposed operand.
  Estimate Rounded(const Operand& a, const Cast& cast) const;

  // a b, in the dtype of the step where no units are given.
  Estimate Product(const Operand& a, const Operand& b, Sum sum) const;
  Estimate Product(const Operand& a, const Operand& b, Sum sum, const Units& units) const;

  // a b, the gradient of a parameter as a sum over tokens, with the projection variance of its
  // error: errors of a and b are independent of one another, but each of them goes into a whole row
  // or column of the result, so that those of the result are not.
  Estimate Gradient(const Operand& a, const Operand& b) const;
  Estimate Gradient(const Operand& a, const Operand& b, const Units& units) const;

  // The dot product of row n of a with row n of b, for every n: [N, 1] from [N, D]. One of them is
  // a sum over hidden units, and ranks' shares of the result are written as it is.
  Estimate RowDots(const Operand& a, const Operand& b, double unit, double accumulate) const;

  // a and b element by element; row n of a times b[n].
  Estimate Multiply(const Operand& a, const Operand& b, double unit) const;
  Estimate ScaleRows(const Operand& a_ND, const Operand& b_N1, double unit) const;

  Estimate Add(const Operand& a, const Operand& b, double unit) const;

  // Adds row n of `part` to row rows[n] of `total`.
  void AddToRows(const Estimate& part, std::span<const std::int64_t> rows, Estimate& total) const;
  void AddToRows(const Estimate& part, std::span<const std::int64_t> rows, const Units& units,
                 Estimate& total) const;

  // f of each element. `slope` is its derivative; `size` is the size of the largest intermediate
  // result, which is what gets rounded (f itself unless terms of f cancel).
  using OfOne = std::function<double(double)>;
  Estimate Elementwise(const Operand& u, const OfOne& f, const OfOne& slope, const OfOne& size,
                       double unit) const;

  // g[t,j] - sum_i w[t,i] g[t,i], the factor that softmax and normalisation share in their
  // backward. `terms` is the number of elements of a row of g that may differ from 0.
  Estimate MinusWeightedMean(const Operand& g, const Operand& w, std::int64_t terms,
                             double unit) const;

 private:
  // Variance that the additions of a sum leave in it, per unit of sum_i term_i^2 and of the sum's
  // own square.
  struct AdditionVariance {
    double of_squares = 0.0;
    double of_square = 0.0;
  };
  AdditionVariance VarianceOfAdding(std::int64_t terms, Sum sum, const Units& units) const;
  // Worst case per unit of sum_i |term_i|.
  double AdditionBound(std::int64_t terms, Sum sum, const Units& units) const;
  double RanksOf(Sum sum) const;

  bool estimating_;
  bool bounding_;
  std::int64_t row_parts_;
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
