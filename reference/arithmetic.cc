#include "reference/arithmetic.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace moe::reference {
namespace {

double Square(double value) {
  return value * value;
}

// out += a b. One branch per layout, so that Eigen sees plain or transposed matrices and packs
// them without a copy.
void Gemm(const Matrix& a, bool a_transposed, const Matrix& b, bool b_transposed, Matrix& out) {
  if (a_transposed && b_transposed) {
    out.noalias() += a.transpose() * b.transpose();
  } else if (a_transposed) {
    out.noalias() += a.transpose() * b;
  } else if (b_transposed) {
    out.noalias() += a * b.transpose();
  } else {
    out.noalias() += a * b;
  }
}

// Worst-case bound of an operand, or zeros.
Matrix WorstOf(const Operand& operand) {
  if (operand.worst_case == nullptr) {
    return Matrix::Zero(operand.value.rows(), operand.value.cols());
  }
  return *operand.worst_case;
}

// Squared deviation of an operand, or zeros.
Matrix VarianceOf(const Operand& operand) {
  if (operand.deviation == nullptr) {
    return Matrix::Zero(operand.value.rows(), operand.value.cols());
  }
  return operand.deviation->cwiseAbs2();
}

// [N, 1] repeated to [N, cols].
auto Spread(const Matrix& column_N1, Eigen::Index cols) {
  return column_N1.replicate(1, cols);
}

}  // namespace

double Arithmetic::RanksOf(Sum sum) const {
  const std::int64_t ranks = sum == Sum::kHidden    ? unit_.hidden_ranks
                             : sum == Sum::kExperts ? unit_.expert_ranks
                             : sum == Sum::kTokens  ? unit_.token_ranks
                                                    : 1;
  return static_cast<double>(ranks);
}

// Adding n terms one by one rounds every partial sum: the variance is u^2 sum_k s_k^2. Terms of
// random sign make s_k^2 grow like the sum of squares of its terms, so that sum_k s_k^2 is at most
// n sum_i term_i^2; terms of one sign make s_k grow evenly up to s, which gives n s^2 / 3. Both
// are counted. Real kernels add in blocks and do better.
//
// The shares of p ranks are stored, then added one by one, since a ring has no blocks. The p shares
// count 1 of the sum of squares or, where signs agree, 1 / p of the square; the partial sums from
// k = 2 to p count sum_k k / p or sum_k (k / p)^2.
Arithmetic::AdditionVariance Arithmetic::VarianceOfAdding(std::int64_t terms, Sum sum,
                                                          const Units& units) const {
  const double local = Square(units.accumulate) * static_cast<double>(terms);
  AdditionVariance variance{.of_squares = local, .of_square = local / 3.0};
  if (const double p = RanksOf(sum); p > 1.0) {
    variance.of_squares += Square(units.reduce) * (1.0 + (p + 1.0) / 2.0 - 1.0 / p);
    variance.of_square +=
        Square(units.reduce) * (1.0 / p + (p + 1.0) * (2.0 * p + 1.0) / (6.0 * p) - 1.0 / (p * p));
  }
  return variance;
}

// How many roundings a term of a sum passes through at most, times what each is off by.
double Arithmetic::AdditionBound(std::int64_t terms, Sum sum, const Units& units) const {
  const double ranks = RanksOf(sum);
  return units.accumulate * static_cast<double>(terms) + (ranks > 1.0 ? units.reduce * ranks : 0.0);
}

std::span<Matrix Estimate::*const> Arithmetic::parts() const {
  static constexpr std::array<Matrix Estimate::*, 3> kParts = {
      &Estimate::value, &Estimate::deviation, &Estimate::worst_case};
  return std::span(kParts).first(bounding_ ? 3 : estimating_ ? 2 : 1);
}

Estimate Arithmetic::Zero(std::int64_t rows, std::int64_t cols) const {
  Estimate zero;
  for (Matrix Estimate::*part : parts()) {
    (zero.*part).setZero(rows, cols);
  }
  return zero;
}

Units Arithmetic::UnitsOf(const Cast& cast) const {
  return {.store = std::max(unit_.store, cast.unit),
          .accumulate = std::max(unit_.accumulate, cast.accumulate),
          .reduce = std::max(unit_.reduce, cast.unit)};
}

Estimate Arithmetic::Rounded(const Operand& a, const Cast& cast) const {
  Estimate z;
  z.value = a.value;
  const bool rounds = cast.unit > 0.0;
  if (estimating_ && (rounds || a.deviation != nullptr)) {
    z.deviation =
        rounds ? Matrix((VarianceOf(a) + Square(cast.unit) * a.value.cwiseAbs2()).cwiseSqrt())
               : *a.deviation;
  }
  if (bounding_ && (rounds || a.worst_case != nullptr)) {
    z.worst_case = rounds ? Matrix(WorstOf(a) + cast.unit * a.value.cwiseAbs()) : *a.worst_case;
  }
  return z;
}

Estimate Arithmetic::Product(const Operand& a, const Operand& b, Sum sum) const {
  return Product(a, b, sum, UnitsOf());
}

Estimate Arithmetic::Product(const Operand& a, const Operand& b, Sum sum,
                             const Units& units) const {
  const Eigen::Index rows = a.transposed ? a.value.cols() : a.value.rows();
  const Eigen::Index terms = a.transposed ? a.value.rows() : a.value.cols();
  const Eigen::Index cols = b.transposed ? b.value.rows() : b.value.cols();
  Estimate z;
  z.value.setZero(rows, cols);
  Gemm(a.value, a.transposed, b.value, b.transposed, z.value);
  if (estimating_) {
    // sum_i a_i^2 (var b_i + additions * b_i^2) + var a_i b_i^2: two products of squares.
    const AdditionVariance additions = VarianceOfAdding(terms, sum, units);
    const Matrix b_squared = b.value.cwiseAbs2();
    Matrix b_variance = additions.of_squares * b_squared;
    if (b.deviation != nullptr) {
      b_variance += b.deviation->cwiseAbs2();
    }
    Matrix variance = (additions.of_square + Square(units.store)) * z.value.cwiseAbs2();
    Gemm(a.value.cwiseAbs2(), a.transposed, b_variance, b.transposed, variance);
    if (a.deviation != nullptr) {
      Gemm(a.deviation->cwiseAbs2(), a.transposed, b_squared, b.transposed, variance);
    }
    z.deviation = variance.cwiseSqrt();
  }
  if (bounding_) {
    // sum_i |a_i| (bound of b_i + additions * |b_i|) + bound of a_i * |b_i|.
    const Matrix b_size = b.value.cwiseAbs();
    Matrix b_bound = AdditionBound(terms, sum, units) * b_size;
    if (b.worst_case != nullptr) {
      b_bound += *b.worst_case;
    }
    z.worst_case = units.store * z.value.cwiseAbs();
    Gemm(a.value.cwiseAbs(), a.transposed, b_bound, b.transposed, z.worst_case);
    if (a.worst_case != nullptr) {
      Gemm(*a.worst_case, a.transposed, b_size, b.transposed, z.worst_case);
    }
  }
  return z;
}

Estimate Arithmetic::Gradient(const Operand& a, const Operand& b) const {
  return Gradient(a, b, UnitsOf());
}

Estimate Arithmetic::Gradient(const Operand& a, const Operand& b, const Units& units) const {
  Estimate z = Product(a, b, Sum::kTokens, units);
  if (!estimating_) {
    return z;
  }
  // With errors da, db and own roundings r:  <z, error> = <z b^T, da> + <a^T z, db> + <z, r>.
  const std::int64_t terms = a.transposed ? a.value.rows() : a.value.cols();
  const AdditionVariance additions = VarianceOfAdding(terms, Sum::kTokens, units);
  const Matrix z_squared = z.value.cwiseAbs2();
  Matrix own = (additions.of_square + Square(units.store)) * z_squared;
  const Matrix scaled = additions.of_squares * b.value.cwiseAbs2();
  Gemm(a.value.cwiseAbs2(), a.transposed, scaled, b.transposed, own);
  z.projection_variance = own.cwiseProduct(z_squared).sum();
  if (a.deviation != nullptr) {
    // In the orientation that a is stored in.
    Matrix factor = Matrix::Zero(a.value.rows(), a.value.cols());
    if (a.transposed) {
      Gemm(b.value, b.transposed, z.value, true, factor);
    } else {
      Gemm(z.value, false, b.value, !b.transposed, factor);
    }
    z.projection_variance += factor.cwiseProduct(*a.deviation).squaredNorm();
  }
  if (b.deviation != nullptr) {
    Matrix factor = Matrix::Zero(b.value.rows(), b.value.cols());
    if (b.transposed) {
      Gemm(z.value, true, a.value, a.transposed, factor);
    } else {
      Gemm(a.value, !a.transposed, z.value, false, factor);
    }
    z.projection_variance += factor.cwiseProduct(*b.deviation).squaredNorm();
  }
  return z;
}

Estimate Arithmetic::RowDots(const Operand& a, const Operand& b, double unit,
                             double accumulate) const {
  const Units units = {.store = unit, .accumulate = accumulate, .reduce = unit};
  Estimate z;
  z.value = a.value.cwiseProduct(b.value).rowwise().sum();
  if (estimating_) {
    const AdditionVariance additions = VarianceOfAdding(a.value.cols(), Sum::kHidden, units);
    const Matrix a_squared = a.value.cwiseAbs2();
    const Matrix b_squared = b.value.cwiseAbs2();
    const Matrix variance_ND =
        a_squared.cwiseProduct(VarianceOf(b) + additions.of_squares * b_squared) +
        VarianceOf(a).cwiseProduct(b_squared);
    const Matrix variance_N1 = variance_ND.rowwise().sum();
    z.deviation =
        (variance_N1 + (additions.of_square + Square(unit)) * z.value.cwiseAbs2()).cwiseSqrt();
  }
  if (bounding_) {
    const double additions = AdditionBound(a.value.cols(), Sum::kHidden, units);
    const Matrix a_size = a.value.cwiseAbs();
    const Matrix b_size = b.value.cwiseAbs();
    const Matrix bound_ND =
        a_size.cwiseProduct(WorstOf(b) + additions * b_size) + WorstOf(a).cwiseProduct(b_size);
    z.worst_case = bound_ND.rowwise().sum() + unit * z.value.cwiseAbs();
  }
  return z;
}

Estimate Arithmetic::Multiply(const Operand& a, const Operand& b, double unit) const {
  Estimate z;
  z.value = a.value.cwiseProduct(b.value);
  if (estimating_) {
    z.deviation =
        (VarianceOf(a).cwiseProduct(b.value.cwiseAbs2()) +
         VarianceOf(b).cwiseProduct(a.value.cwiseAbs2()) + Square(unit) * z.value.cwiseAbs2())
            .cwiseSqrt();
  }
  if (bounding_) {
    z.worst_case = WorstOf(a).cwiseProduct(b.value.cwiseAbs()) +
                   WorstOf(b).cwiseProduct(a.value.cwiseAbs()) + unit * z.value.cwiseAbs();
  }
  return z;
}

Estimate Arithmetic::ScaleRows(const Operand& a_ND, const Operand& b_N1, double unit) const {
  Estimate z;
  z.value = b_N1.value.col(0).asDiagonal() * a_ND.value;
  if (estimating_) {
    const Eigen::Index cols = a_ND.value.cols();
    const Matrix b_squared = b_N1.value.cwiseAbs2();
    const Matrix b_variance = VarianceOf(b_N1);
    z.deviation = (VarianceOf(a_ND).cwiseProduct(Spread(b_squared, cols)) +
                   a_ND.value.cwiseAbs2().cwiseProduct(Spread(b_variance, cols)) +
                   Square(unit) * z.value.cwiseAbs2())
                      .cwiseSqrt();
  }
  if (bounding_) {
    const Eigen::Index cols = a_ND.value.cols();
    const Matrix b_size = b_N1.value.cwiseAbs();
    const Matrix b_bound = WorstOf(b_N1);
    z.worst_case = WorstOf(a_ND).cwiseProduct(Spread(b_size, cols)) +
                   a_ND.value.cwiseAbs().cwiseProduct(Spread(b_bound, cols)) +
                   unit * z.value.cwiseAbs();
  }
  return z;
}

Estimate Arithmetic::Add(const Operand& a, const Operand& b, double unit) const {
  Estimate z;
  z.value = a.value + b.value;
  if (estimating_) {
    z.deviation = (VarianceOf(a) + VarianceOf(b) + Square(unit) * z.value.cwiseAbs2()).cwiseSqrt();
  }
  if (bounding_) {
    z.worst_case = WorstOf(a) + WorstOf(b) + unit * z.value.cwiseAbs();
  }
  return z;
}

void Arithmetic::AddToRows(const Estimate& part, std::span<const std::int64_t> rows,
                           Estimate& total) const {
  AddToRows(part, rows, UnitsOf(), total);
}

void Arithmetic::AddToRows(const Estimate& part, std::span<const std::int64_t> rows,
                           const Units& units, Estimate& total) const {
  // An addition here may be one between ranks (combine of experts that live apart), whose pieces
  // are as large as the part.
  const double reduced = VarianceOfAdding(/*terms=*/0, Sum::kExperts, units).of_squares;
  for (std::size_t n = 0; n < rows.size(); ++n) {
    const auto from = static_cast<Eigen::Index>(n);
    auto value = total.value.row(rows[n]);
    value += part.value.row(from);
    if (estimating_) {
      auto deviation = total.deviation.row(rows[n]);
      deviation =
          (deviation.cwiseAbs2() + part.deviation.row(from).cwiseAbs2() +
           reduced * part.value.row(from).cwiseAbs2() + Square(units.store) * value.cwiseAbs2())
              .cwiseSqrt();
    }
    if (bounding_) {
      // In another order any part may come first and pass through all additions.
      const double additions = AdditionBound(/*terms=*/0, Sum::kExperts, units) +
                               units.store * static_cast<double>(row_parts_);
      total.worst_case.row(rows[n]) +=
          part.worst_case.row(from) + additions * part.value.row(from).cwiseAbs();
    }
  }
}

Estimate Arithmetic::Elementwise(const Operand& u, const OfOne& f, const OfOne& slope,
                                 const OfOne& size, double unit) const {
  Estimate z;
  z.value = u.value.unaryExpr(f);
  if (estimating_) {
    z.deviation = (VarianceOf(u).cwiseProduct(u.value.unaryExpr(slope).cwiseAbs2()) +
                   Square(unit) * u.value.unaryExpr(size).cwiseAbs2())
                      .cwiseSqrt();
  }
  if (bounding_) {
    z.worst_case = WorstOf(u).cwiseProduct(u.value.unaryExpr(slope).cwiseAbs()) +
                   unit * u.value.unaryExpr(size).cwiseAbs();
  }
  return z;
}

Estimate Arithmetic::MinusWeightedMean(const Operand& g, const Operand& w, std::int64_t terms,
                                       double unit) const {
  Estimate z;
  const Matrix products = w.value.cwiseProduct(g.value);
  const Vector mean_T = products.rowwise().sum();
  z.value = g.value.colwise() - mean_T;
  if (estimating_) {
    // z_j = (1 - w_j) g_j - sum_{i != j} w_i g_i. The difference may be 0 where its terms are not;
    // their errors remain.
    const Matrix g_variance = VarianceOf(g);
    const Matrix from_mean = w.value.cwiseAbs2().cwiseProduct(g_variance);
    const Matrix own = (1.0 - w.value.array()).square().matrix().cwiseProduct(g_variance);
    const Vector of_mean_T = (from_mean + g.value.cwiseAbs2().cwiseProduct(VarianceOf(w)) +
                              Square(unit) * static_cast<double>(terms + 1) * products.cwiseAbs2())
                                 .rowwise()
                                 .sum();
    Matrix variance = own - from_mean + Square(unit) * z.value.cwiseAbs2();
    variance.colwise() += of_mean_T;
    z.deviation = variance.cwiseMax(0.0).cwiseSqrt();
  }
  if (bounding_) {
    const Matrix g_bound = WorstOf(g);
    const Matrix from_mean = w.value.cwiseAbs().cwiseProduct(g_bound);
    const Matrix own = (1.0 - w.value.array()).abs().matrix().cwiseProduct(g_bound);
    const Vector of_mean_T = (from_mean + g.value.cwiseAbs().cwiseProduct(WorstOf(w)) +
                              unit * static_cast<double>(terms + 1) * products.cwiseAbs())
                                 .rowwise()
                                 .sum();
    z.worst_case = own - from_mean + unit * z.value.cwiseAbs();
    z.worst_case.colwise() += of_mean_T;
  }
  return z;
}

Matrix RowsOf(const Matrix& whole, std::span<const std::int64_t> rows) {
  Matrix chosen(static_cast<Eigen::Index>(rows.size()), whole.cols());
  for (std::size_t n = 0; n < rows.size(); ++n) {
    chosen.row(static_cast<Eigen::Index>(n)) = whole.row(rows[n]);
  }
  return chosen;
}

double Sigmoid(double z) {
  const double decay = std::exp(-std::abs(z));
  return (z >= 0.0 ? 1.0 : decay) / (1.0 + decay);
}

double SigmoidSlopeOf(double sigmoid) {
  return sigmoid * (1.0 - sigmoid);
}

}  // namespace moe::reference
