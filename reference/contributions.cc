#include "reference/contributions.h"

#include <algorithm>
#include <numeric>
#include <optional>

#include "reference/arithmetic.h"
#include "reference/expert.h"
#include "reference/router.h"

namespace moe::reference {
namespace {

std::int64_t PartsOf(const std::vector<std::int64_t>& part) {
  return part.empty() ? 1 : *std::max_element(part.begin(), part.end()) + 1;
}

std::int64_t PartOf(const std::vector<std::int64_t>& part, std::int64_t index) {
  return part.empty() ? 0 : part[static_cast<std::size_t>(index)];
}

// The hidden units of one slice.
using Slice = std::vector<Eigen::Index>;

std::vector<Slice> SlicesOf(const std::vector<std::int64_t>& slice_F, std::int64_t units) {
  std::vector<Slice> slices(static_cast<std::size_t>(PartsOf(slice_F)));
  for (std::int64_t f = 0; f < units; ++f) {
    slices[static_cast<std::size_t>(PartOf(slice_F, f))].push_back(f);
  }
  return slices;
}

std::vector<std::int64_t> AllTokens(const Matrix& x_TD) {
  std::vector<std::int64_t> tokens(static_cast<std::size_t>(x_TD.rows()));
  std::iota(tokens.begin(), tokens.end(), 0);
  return tokens;
}

void AddRows(const Matrix& part, const std::vector<std::int64_t>& tokens, Matrix& total) {
  for (std::size_t n = 0; n < tokens.size(); ++n) {
    total.row(tokens[n]) += part.row(static_cast<Eigen::Index>(n));
  }
}

// The Math of expert.h that keeps terms apart: plain values, except that a sum over hidden units is
// one matrix for each slice of them and a sum over tokens is the list of its terms.
class TermMath {
 public:
  using Rows = Matrix;
  using HiddenSum = std::vector<Matrix>;
  using TokenSum = reference::TokenSum;

  // Both must outlive this. Row n is of token tokens[n].
  TermMath(const std::vector<Slice>& slices, const std::vector<std::int64_t>& tokens)
      : slices_(slices), tokens_(tokens) {}

  static Matrix Product(const Matrix& a, const Operand& b) {
    return b.transposed ? Matrix(a * b.value.transpose()) : Matrix(a * b.value);
  }
  HiddenSum SumOverHidden(const Matrix& a_NF, const Operand& b) const {
    HiddenSum parts;
    for (const Slice& slice : slices_) {
      const auto a = a_NF(Eigen::all, slice);
      parts.emplace_back(b.transposed ? Matrix(a * b.value(Eigen::all, slice).transpose())
                                      : Matrix(a * b.value(slice, Eigen::all)));
    }
    return parts;
  }
  TokenSum SumOverTokens(const Matrix& a, const Matrix& b) const { return {tokens_, a, b}; }
  static HiddenSum Add(HiddenSum a, const HiddenSum& b) {
    for (std::size_t slice = 0; slice < a.size(); ++slice) {
      a[slice] += b[slice];
    }
    return a;
  }
  static Matrix Multiply(const Matrix& a, const Matrix& b) { return a.cwiseProduct(b); }
  static Matrix Value(const Function& f, const Matrix& u) { return u.unaryExpr(f.value); }
  static Matrix Slope(const Function& f, const Matrix& u) { return u.unaryExpr(f.slope); }

 private:
  const std::vector<Slice>& slices_;
  const std::vector<std::int64_t>& tokens_;
};

// The slots of one expert and what enters and leaves it.
struct ExpertRows {
  std::vector<std::int64_t> tokens;
  std::vector<std::int64_t> slots;
  Matrix x_ND;
  Matrix d_y_ND;
  Matrix p_N1;
  Matrix r_ND;    // what the expert reads
  Matrix d_o_ND;  // cotangent of what it writes
};

ExpertRows RowsOfExpert(const Model& model, const Problem& problem, const Routing& routing,
                        const Matrix& p_TK, std::int64_t expert) {
  ExpertRows rows;
  for (Eigen::Index token = 0; token < routing.topk_expert_TK.rows(); ++token) {
    for (Eigen::Index slot = 0; slot < routing.topk_expert_TK.cols(); ++slot) {
      if (routing.topk_expert_TK(token, slot) == expert) {
        rows.tokens.push_back(token);
        rows.slots.push_back(slot);
      }
    }
  }
  rows.x_ND = RowsOf(problem.x_TD, rows.tokens);
  rows.d_y_ND = RowsOf(problem.d_y_TD, rows.tokens);
  rows.p_N1.resize(std::ssize(rows.tokens), 1);
  for (std::size_t n = 0; n < rows.tokens.size(); ++n) {
    rows.p_N1(static_cast<Eigen::Index>(n), 0) = p_TK(rows.tokens[n], rows.slots[n]);
  }
  const bool before = model.score_placement == ScorePlacement::kBeforeExperts;
  const auto p = rows.p_N1.col(0).asDiagonal();
  rows.r_ND = before ? Matrix(p * rows.x_ND) : rows.x_ND;
  rows.d_o_ND = before ? rows.d_y_ND : Matrix(p * rows.d_y_ND);
  return rows;
}

}  // namespace

Matrix SumOf(const TokenSum& sum, const std::vector<bool>& in_T) {
  std::vector<Eigen::Index> chosen;
  for (std::size_t n = 0; n < sum.token_N.size(); ++n) {
    if (in_T[static_cast<std::size_t>(sum.token_N[n])]) {
      chosen.push_back(static_cast<Eigen::Index>(n));
    }
  }
  return sum.left_NR(chosen, Eigen::all).transpose() * sum.right_NC(chosen, Eigen::all);
}

Contributions::Contributions(const Model& model, const Problem& problem, const Routing& routing,
                             const Partition& partition)
    : model_(model),
      problem_(problem),
      partition_(partition),
      owners_(PartsOf(partition.owner_E)),
      slices_(PartsOf(partition.slice_F)),
      shared_slices_(PartsOf(partition.shared_slice_F)),
      routing_(routing) {
  RunExperts();
  if (model_.d_shared > 0) {
    RunShared();
  }
  RunGate();
}

void Contributions::RunExperts() {
  const Arithmetic math(std::nullopt);
  const Matrix& x_TD = problem_.x_TD;
  const Estimate scores_TE =
      Scores(math, model_, Logits(math, model_, x_TD, problem_.gate_ED, problem_.gate_bias_E));
  const CombineWeights combine = WeighSlots(math, model_, scores_TE, routing_);
  p_TK_ = combine.p_TK.value;

  std::vector<Matrix> d_p_TK;  // by term, as y_TD_
  const Matrix zero_TD = Matrix::Zero(x_TD.rows(), x_TD.cols());
  for (std::int64_t owner = 0; owner < owners_; ++owner) {
    for (std::int64_t slice = 0; slice < slices_; ++slice) {
      y_TD_.push_back({Path::kRouted, owner, slice, zero_TD});
      d_x_TD_.push_back({Path::kRouted, owner, slice, zero_TD});
      d_p_TK.emplace_back(Matrix::Zero(x_TD.rows(), model_.top_k));
    }
  }
  const bool before = model_.score_placement == ScorePlacement::kBeforeExperts;
  const std::vector<Slice> slices = SlicesOf(partition_.slice_F, model_.d_expert);
  for (std::int64_t expert = 0; expert < model_.experts; ++expert) {
    const ExpertRows rows = RowsOfExpert(model_, problem_, routing_, p_TK_, expert);
    if (rows.tokens.empty()) {
      continue;
    }
    const ExpertWeights weights = problem_.expert(expert);
    const TermMath terms(slices, rows.tokens);
    const ExpertForward forward = RunForward(terms, SwiGlu(), weights, rows.r_ND);
    const ExpertBackward backward = RunBackward(terms, SwiGlu(), weights, forward, rows.d_o_ND);
    const auto p = rows.p_N1.col(0).asDiagonal();
    for (std::int64_t slice = 0; slice < slices_; ++slice) {
      const Matrix& o_ND = forward.o_ND[static_cast<std::size_t>(slice)];
      const Matrix& d_r_ND = backward.d_r_ND[static_cast<std::size_t>(slice)];
      const auto term =
          static_cast<std::size_t>(PartOf(partition_.owner_E, expert) * slices_ + slice);
      AddRows(before ? o_ND : Matrix(p * o_ND), rows.tokens, y_TD_[term].value_TD);
      AddRows(before ? Matrix(p * d_r_ND) : d_r_ND, rows.tokens, d_x_TD_[term].value_TD);
      const Vector d_p_N = before ? Vector(d_r_ND.cwiseProduct(rows.x_ND).rowwise().sum())
                                  : Vector(o_ND.cwiseProduct(rows.d_y_ND).rowwise().sum());
      for (std::size_t n = 0; n < rows.tokens.size(); ++n) {
        d_p_TK[term](rows.tokens[n], rows.slots[n]) = d_p_N[static_cast<Eigen::Index>(n)];
      }
    }
  }
  d_p_TK_ = Matrix::Zero(x_TD.rows(), model_.top_k);
  for (const Matrix& part_TK : d_p_TK) {
    d_p_TK_ += part_TK;
  }
  // The router's backward is linear in d_p, so each term goes through it alone.
  for (const Matrix& part_TK : d_p_TK) {
    d_logits_TE_.push_back(
        RouterBackward(math, model_, routing_, scores_TE, combine, {part_TK, Matrix()}).value);
  }
}

void Contributions::RunShared() {
  const Matrix& x_TD = problem_.x_TD;
  const std::vector<std::int64_t> tokens = AllTokens(x_TD);
  Vector a_T = Vector::Ones(x_TD.rows());
  if (model_.shared_gate) {
    a_T = (x_TD * problem_.shared_gate_D).unaryExpr(&Sigmoid);
  }
  const Matrix d_o_TD = a_T.asDiagonal() * problem_.d_y_TD;
  const std::vector<Slice> slices = SlicesOf(partition_.shared_slice_F, model_.d_shared);
  const TermMath terms(slices, tokens);
  const ExpertForward forward = RunForward(terms, SwiGlu(), problem_.shared, x_TD);
  const ExpertBackward backward = RunBackward(terms, SwiGlu(), problem_.shared, forward, d_o_TD);
  shared_ = GradientsOfWeights(terms, forward, backward, x_TD, d_o_TD);
  for (std::int64_t slice = 0; slice < shared_slices_; ++slice) {
    const Matrix& o_TD = forward.o_ND[static_cast<std::size_t>(slice)];
    Matrix d_x_TD = backward.d_r_ND[static_cast<std::size_t>(slice)];
    if (model_.shared_gate) {
      const Vector d_z_T = o_TD.cwiseProduct(problem_.d_y_TD)
                               .rowwise()
                               .sum()
                               .cwiseProduct(a_T.unaryExpr(&SigmoidSlopeOf));
      d_x_TD += d_z_T * problem_.shared_gate_D.transpose();
      d_shared_gate_D_.push_back({tokens, d_z_T, x_TD});
    }
    y_TD_.push_back({Path::kShared, 0, slice, a_T.asDiagonal() * o_TD});
    d_x_TD_.push_back({Path::kShared, 0, slice, std::move(d_x_TD)});
  }
}

void Contributions::RunGate() {
  const std::vector<std::int64_t> tokens = AllTokens(problem_.x_TD);
  const Matrix ones_T1 = Matrix::Ones(problem_.x_TD.rows(), 1);
  for (std::int64_t owner = 0; owner < owners_; ++owner) {
    for (std::int64_t slice = 0; slice < slices_; ++slice) {
      const Matrix& d_logits_TE = d_logits_TE_[static_cast<std::size_t>(owner * slices_ + slice)];
      d_x_TD_.push_back({Path::kGate, owner, slice, d_logits_TE * problem_.gate_ED});
      d_gate_ED_.push_back({tokens, d_logits_TE, problem_.x_TD});
      d_gate_bias_E_.push_back({tokens, ones_T1, d_logits_TE});
    }
  }
}

const TokenSum& Contributions::d_gate_ED(std::int64_t owner, std::int64_t slice) const {
  return d_gate_ED_.at(static_cast<std::size_t>(owner * slices_ + slice));
}

const TokenSum& Contributions::d_gate_bias_E(std::int64_t owner, std::int64_t slice) const {
  return d_gate_bias_E_.at(static_cast<std::size_t>(owner * slices_ + slice));
}

const TokenSum& Contributions::d_shared_gate_D(std::int64_t shared_slice) const {
  return d_shared_gate_D_.at(static_cast<std::size_t>(shared_slice));
}

Contributions::GatePart Contributions::GateWithScoresOf(
    const std::vector<std::vector<std::int64_t>>& tokens_T) const {
  const Arithmetic math(std::nullopt);
  const Estimate scores_TE = Scores(
      math, model_, Logits(math, model_, problem_.x_TD, problem_.gate_ED, problem_.gate_bias_E));
  const CombineWeights combine = WeighSlots(math, model_, scores_TE, routing_);
  Matrix d_p_TK = Matrix::Zero(d_p_TK_.rows(), d_p_TK_.cols());
  for (std::size_t token = 0; token < tokens_T.size(); ++token) {
    for (const std::int64_t other : tokens_T[token]) {
      d_p_TK.row(static_cast<Eigen::Index>(token)) += d_p_TK_.row(other);
    }
  }
  const Matrix d_logits_TE =
      RouterBackward(math, model_, routing_, scores_TE, combine, {d_p_TK, Matrix()}).value;
  const std::vector<std::int64_t> tokens = AllTokens(problem_.x_TD);
  return {.d_gate_ED = {tokens, d_logits_TE, problem_.x_TD},
          .d_gate_bias_E = {tokens, Matrix::Ones(problem_.x_TD.rows(), 1), d_logits_TE},
          .d_x_TD = d_logits_TE * problem_.gate_ED};
}

ExpertSums Contributions::OfExpert(std::int64_t expert) const {
  const ExpertRows rows = RowsOfExpert(model_, problem_, routing_, p_TK_, expert);
  const ExpertWeights weights = problem_.expert(expert);
  const std::vector<Slice> no_slices;  // neither o nor d_r is asked for
  const TermMath terms(no_slices, rows.tokens);
  const ExpertForward forward = RunForward(terms, SwiGlu(), weights, rows.r_ND);
  const ExpertBackward backward = RunBackward(terms, SwiGlu(), weights, forward, rows.d_o_ND);
  return GradientsOfWeights(terms, forward, backward, rows.r_ND, rows.d_o_ND);
}

}  // namespace moe::reference
