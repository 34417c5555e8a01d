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

// The tokens that chose one of an owner's experts, and where each stands among them.
struct TokensOfOwner {
  std::vector<std::int64_t> token_N;
  std::vector<Eigen::Index> place_T;  // -1: not among them

  void Add(const Matrix& part_ND, const std::vector<std::int64_t>& tokens, RowTerm& term) const {
    for (std::size_t n = 0; n < tokens.size(); ++n) {
      term.value_ND.row(place_T[static_cast<std::size_t>(tokens[n])]) +=
          part_ND.row(static_cast<Eigen::Index>(n));
    }
  }
};

std::vector<TokensOfOwner> TokensByOwner(const Routing& routing,
                                         const std::vector<std::int64_t>& owner_E) {
  std::vector<TokensOfOwner> owners(static_cast<std::size_t>(PartsOf(owner_E)));
  for (TokensOfOwner& owner : owners) {
    owner.place_T.assign(static_cast<std::size_t>(routing.topk_expert_TK.rows()), -1);
  }
  for (Eigen::Index token = 0; token < routing.topk_expert_TK.rows(); ++token) {
    for (const std::int64_t expert : routing.topk_expert_TK.row(token)) {
      TokensOfOwner& owner = owners[static_cast<std::size_t>(PartOf(owner_E, expert))];
      Eigen::Index& place = owner.place_T[static_cast<std::size_t>(token)];
      if (place < 0) {
        place = std::ssize(owner.token_N);
        owner.token_N.push_back(token);
      }
    }
  }
  return owners;
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

Matrix SumOf(const TokenSum& sum, std::span<const double> times_T) {
  std::vector<Eigen::Index> chosen;
  std::vector<Eigen::Index> tokens;
  std::vector<double> times;
  for (std::size_t n = 0; n < sum.token_N.size(); ++n) {
    const double of_token = times_T[static_cast<std::size_t>(sum.token_N[n])];
    if (of_token != 0.0) {
      chosen.push_back(static_cast<Eigen::Index>(n));
      tokens.push_back(sum.token_N[n]);
      times.push_back(of_token);
    }
  }
  const Matrix right = sum.right_TC != nullptr ? Matrix((*sum.right_TC)(tokens, Eigen::all))
                                               : Matrix(sum.right_NC(chosen, Eigen::all));
  const auto weights = Eigen::Map<const Vector>(times.data(), std::ssize(times));
  return sum.left_NR(chosen, Eigen::all).transpose() * (weights.asDiagonal() * right);
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

  const std::vector<TokensOfOwner> owners = TokensByOwner(routing_, partition_.owner_E);
  std::vector<RowTerm>& y_TD = rows_["y_TD"];
  std::vector<RowTerm>& d_x_TD = rows_["d_x_TD"];
  std::vector<Matrix> d_p_TK;  // by term, as y_TD
  for (std::int64_t owner = 0; owner < owners_; ++owner) {
    const auto& tokens = owners[static_cast<std::size_t>(owner)].token_N;
    const Matrix zero_ND = Matrix::Zero(std::ssize(tokens), x_TD.cols());
    for (std::int64_t slice = 0; slice < slices_; ++slice) {
      y_TD.push_back({Path::kRouted, owner, slice, tokens, zero_ND});
      d_x_TD.push_back({Path::kRouted, owner, slice, tokens, zero_ND});
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
    const std::int64_t owner = PartOf(partition_.owner_E, expert);
    const TokensOfOwner& of_owner = owners[static_cast<std::size_t>(owner)];
    for (std::int64_t slice = 0; slice < slices_; ++slice) {
      const Matrix& o_ND = forward.o_ND[static_cast<std::size_t>(slice)];
      const Matrix& d_r_ND = backward.d_r_ND[static_cast<std::size_t>(slice)];
      const auto term = static_cast<std::size_t>(owner * slices_ + slice);
      of_owner.Add(before ? o_ND : Matrix(p * o_ND), rows.tokens, y_TD[term]);
      of_owner.Add(before ? Matrix(p * d_r_ND) : d_r_ND, rows.tokens, d_x_TD[term]);
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
  WeightGradients<TokenSum> weights = GradientsOfWeights(terms, forward, backward, x_TD, d_o_TD);
  sums_["d_shared_w1_FD"].sums = {std::move(weights.d_w1_FD)};
  sums_["d_shared_w3_FD"].sums = {std::move(weights.d_w3_FD)};
  sums_["d_shared_w2_DF"].sums = {std::move(weights.d_w2_DF)};
  for (std::int64_t slice = 0; slice < shared_slices_; ++slice) {
    const Matrix& o_TD = forward.o_ND[static_cast<std::size_t>(slice)];
    Matrix d_x_TD = backward.d_r_ND[static_cast<std::size_t>(slice)];
    if (model_.shared_gate) {
      const Vector d_z_T = o_TD.cwiseProduct(problem_.d_y_TD)
                               .rowwise()
                               .sum()
                               .cwiseProduct(a_T.unaryExpr(&SigmoidSlopeOf));
      d_x_TD += d_z_T * problem_.shared_gate_D.transpose();
      Sums& gate = sums_["d_shared_gate_D"];
      gate.slices = shared_slices_;
      gate.sums.push_back({.token_N = tokens, .left_NR = d_z_T, .right_TC = &problem_.x_TD});
    }
    rows_["y_TD"].push_back({Path::kShared, 0, slice, tokens, a_T.asDiagonal() * o_TD});
    rows_["d_x_TD"].push_back({Path::kShared, 0, slice, tokens, std::move(d_x_TD)});
  }
}

// Rows of tokens that chose none of the owner's experts are zero, and left out.
void Contributions::RunGate() {
  const std::vector<TokensOfOwner> owners = TokensByOwner(routing_, partition_.owner_E);
  Sums& d_gate_ED = sums_["d_gate_ED"];
  Sums& d_gate_bias_E = sums_["d_gate_bias_E"];
  d_gate_ED.slices = d_gate_bias_E.slices = slices_;
  for (std::int64_t owner = 0; owner < owners_; ++owner) {
    const auto& tokens = owners[static_cast<std::size_t>(owner)].token_N;
    const Matrix ones_N1 = Matrix::Ones(std::ssize(tokens), 1);
    for (std::int64_t slice = 0; slice < slices_; ++slice) {
      const Matrix d_logits_NE = reference::RowsOf(
          d_logits_TE_[static_cast<std::size_t>(owner * slices_ + slice)], tokens);
      rows_["d_x_TD"].push_back(
          {Path::kGate, owner, slice, tokens, d_logits_NE * problem_.gate_ED});
      d_gate_ED.sums.push_back(
          {.token_N = tokens, .left_NR = d_logits_NE, .right_TC = &problem_.x_TD});
      d_gate_bias_E.sums.push_back({tokens, ones_N1, d_logits_NE});
    }
  }
}

const std::vector<RowTerm>& Contributions::RowsOf(std::string_view result) const {
  return rows_.find(result)->second;
}

const TokenSum& Contributions::SumFor(std::string_view result, std::int64_t owner,
                                      std::int64_t slice) const {
  const Sums& sums = sums_.find(result)->second;
  return sums.sums.at(static_cast<std::size_t>(owner * sums.slices + slice));
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
  return {.sums = {{"d_gate_ED",
                    {.token_N = tokens, .left_NR = d_logits_TE, .right_TC = &problem_.x_TD}},
                   {"d_gate_bias_E", {tokens, Matrix::Ones(problem_.x_TD.rows(), 1), d_logits_TE}}},
          .d_x_TD = d_logits_TE * problem_.gate_ED};
}

std::map<std::string, TokenSum> Contributions::OfExpert(std::int64_t expert) const {
  const ExpertRows rows = RowsOfExpert(model_, problem_, routing_, p_TK_, expert);
  const ExpertWeights weights = problem_.expert(expert);
  const std::vector<Slice> no_slices;  // neither o nor d_r is asked for
  const TermMath terms(no_slices, rows.tokens);
  const ExpertForward forward = RunForward(terms, SwiGlu(), weights, rows.r_ND);
  const ExpertBackward backward = RunBackward(terms, SwiGlu(), weights, forward, rows.d_o_ND);
  WeightGradients<TokenSum> weights_of =
      GradientsOfWeights(terms, forward, backward, rows.r_ND, rows.d_o_ND);
  return {{"d_w1_EFD", std::move(weights_of.d_w1_FD)},
          {"d_w3_EFD", std::move(weights_of.d_w3_FD)},
          {"d_w2_EDF", std::move(weights_of.d_w2_DF)}};
}

}  // namespace moe::reference
