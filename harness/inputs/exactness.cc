#include "harness/inputs/exactness.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "harness/base/error.h"
#include "reference/expert.h"
#include "reference/moe_reference.h"

namespace moe {
namespace {

using reference::ExpertWeights;
using reference::Function;
using reference::Matrix;
using reference::Operand;
using reference::Vector;

// Consecutive whole numbers that bfloat16 holds: 2^8.
constexpr double kWholeNumbers = 256.0;

// The largest power of two that `value` is a multiple of.
double StepOf(double value) {
  if (value == 0.0) {
    return std::numeric_limits<double>::infinity();
  }
  int exponent = 0;
  const auto bits = static_cast<std::int64_t>(std::ldexp(std::frexp(value, &exponent), 53));
  return std::ldexp(static_cast<double>(bits & -bits), exponent - 53);
}

// Sums, element by element.
struct Sums {
  Matrix value;
  Matrix size;  // the absolute values of all elementary terms added up
  Matrix step;  // the largest power of two that all terms are multiples of; infinite without terms

  static Sums Zero(Eigen::Index rows, Eigen::Index cols) {
    return {Matrix::Zero(rows, cols), Matrix::Zero(rows, cols),
            Matrix::Constant(rows, cols, std::numeric_limits<double>::infinity())};
  }
  // Values that are whole already: each is a term of its own.
  static Sums Of(const Matrix& value) {
    return {value, value.cwiseAbs(), value.unaryExpr(&StepOf)};
  }
  Sums Transposed() const { return {value.transpose(), size.transpose(), step.transpose()}; }
  Sums Scaled(double power_of_two) const {
    const double scale = std::abs(power_of_two);
    return {value * power_of_two, size * scale, step * scale};
  }
  void Add(const Sums& other) {
    value += other.value;
    size += other.size;
    step = step.cwiseMin(other.step);
  }
  void AddRow(Eigen::Index row, const Sums& other, Eigen::Index from) {
    value.row(row) += other.value.row(from);
    size.row(row) += other.size.row(from);
    step.row(row) = step.row(row).cwiseMin(other.step.row(from)).eval();
  }
  void AddTerm(Eigen::Index row, Eigen::Index col, double term_value, double term_size,
               double term_step) {
    value(row, col) += term_value;
    size(row, col) += term_size;
    step(row, col) = std::min(step(row, col), term_step);
  }
};

// a [N, I] times b [I, J].
Sums Product(const Sums& a, const Matrix& b) {
  Sums c = Sums::Zero(a.value.rows(), b.cols());
  const Matrix b_step = b.unaryExpr(&StepOf);
  for (Eigen::Index n = 0; n < a.value.rows(); ++n) {
    for (Eigen::Index i = 0; i < a.value.cols(); ++i) {
      if (a.size(n, i) == 0.0) {
        continue;
      }
      for (Eigen::Index j = 0; j < b.cols(); ++j) {
        if (b(i, j) != 0.0) {
          c.AddTerm(n, j, a.value(n, i) * b(i, j), a.size(n, i) * std::abs(b(i, j)),
                    a.step(n, i) * b_step(i, j));
        }
      }
    }
  }
  return c;
}

// [N, 1]: the dot product of row n of a with row n of b.
Sums RowDots(const Sums& a, const Matrix& b) {
  Sums c = Sums::Zero(a.value.rows(), 1);
  for (Eigen::Index n = 0; n < b.rows(); ++n) {
    for (Eigen::Index j = 0; j < b.cols(); ++j) {
      if (a.size(n, j) > 0.0 && b(n, j) != 0.0) {
        c.AddTerm(n, 0, a.value(n, j) * b(n, j), a.size(n, j) * std::abs(b(n, j)),
                  a.step(n, j) * StepOf(b(n, j)));
      }
    }
  }
  return c;
}

// The Math of reference/expert.h in sums: what an operation reads is a number by then, and so a
// term of its own.
struct SumMath {
  using Rows = Sums;
  using HiddenSum = Sums;
  using TokenSum = Sums;

  // What is read, whatever it was added up from.
  struct Known {
    // NOLINTNEXTLINE(google-explicit-constructor): reads so
    Known(const Matrix& matrix) : value(matrix) {}
    // NOLINTNEXTLINE(google-explicit-constructor): reads so
    Known(const Sums& sums) : value(sums.value) {}
    const Matrix& value;
  };

  static Sums Product(const Known& a, const Operand& b) {
    return moe::Product(Sums::Of(a.value), b.transposed ? Matrix(b.value.transpose()) : b.value);
  }
  static Sums SumOverHidden(const Sums& a, const Operand& b) { return Product(a, b); }
  static Sums SumOverTokens(const Known& a, const Known& b) {
    return moe::Product(Sums::Of(a.value.transpose()), b.value);
  }
  static Sums Add(Sums a, const Sums& b) {
    a.Add(b);
    return a;
  }
  static Sums Multiply(const Sums& a, const Sums& b) {
    return Sums::Of(a.value.cwiseProduct(b.value));
  }
  static Sums Value(const Function& f, const Sums& u) {
    return Sums::Of(u.value.unaryExpr(f.value));
  }
  static Sums Slope(const Function& f, const Sums& u) {
    return Sums::Of(u.value.unaryExpr(f.slope));
  }
};

// The step, like the reference's, with Sums in place of values.
class ExactStep {
 public:
  ExactStep(const Model& model, const TensorSource& inputs, const std::string& where)
      : model_(model), inputs_(inputs), where_(where) {}
  void Run();

 private:
  struct ExpertSums {
    Sums o_ND;
    Sums d_r_ND;
  };

  // Row `row` of the first dimension of a tensor of three, or the whole of a smaller one.
  Matrix Read(const std::string& name, std::int64_t row = -1) const;
  // Throws for sums that may round.
  void RequireExact(const std::string& name, const Sums& sums) const;
  void RequireExact(const Function& f, const Sums& argument) const;
  ExpertSums RunExpert(const std::string& prefix, const std::string& suffix, std::int64_t expert,
                       const Matrix& r_ND, const Matrix& d_o_ND) const;
  Sums RunRouted(std::int64_t expert, const std::vector<std::int64_t>& tokens, Sums& y_TD,
                 Sums& d_x_TD) const;
  void RunShared(Sums& y_TD, Sums& d_x_TD) const;
  Sums LogitGradients(const Sums& d_p_TK) const;

  const Model& model_;
  const TensorSource& inputs_;
  const std::string& where_;
  Matrix x_TD_;
  Matrix d_y_TD_;
  double weight_ = 0.0;  // of every chosen expert of every token
};

Matrix ExactStep::Read(const std::string& name, std::int64_t row) const {
  Slice slice = WholeOf(ShapeOf(name, model_));
  if (row >= 0) {
    slice.index[0] = {row};
  }
  const Shape shape = slice.LocalShape();
  Matrix value(shape.size() == 1 ? 1 : shape[shape.size() - 2], shape.back());
  inputs_.Read(name, slice, {value.data(), static_cast<std::size_t>(value.size())});
  return value;
}

void ExactStep::RequireExact(const std::string& name, const Sums& sums) const {
  Eigen::Index row = 0;
  Eigen::Index col = 0;
  const Matrix steps = sums.size.cwiseQuotient(sums.step);  // 0 / inf is 0 where there is no term
  if (steps.maxCoeff(&row, &col) > kWholeNumbers) {
    throw Error(where_,
                fmt::format("the fill is dyadic, and terms of {} add up to {:.2e} in steps of "
                            "{:.2e}: {:.0f} steps, of which bfloat16 counts {:.0f} exactly; use "
                            "fewer tokens for each expert, or a smaller d_expert or d_shared",
                            name, sums.size(row, col), sums.step(row, col), steps(row, col),
                            kWholeNumbers));
  }
}

void ExactStep::RequireExact(const Function& f, const Sums& argument) const {
  for (const double u : argument.value.reshaped()) {
    if (!f.is_exact(u)) {
      throw Error(where_, fmt::format("the fill is dyadic, and {} of {} rounds; it must get {}",
                                      f.name, u, f.exact_where));
    }
  }
}

// Forward and backward of one expert, whose output has the gradient d_o.
ExactStep::ExpertSums ExactStep::RunExpert(const std::string& prefix, const std::string& suffix,
                                           std::int64_t expert, const Matrix& r_ND,
                                           const Matrix& d_o_ND) const {
  const auto name = [&](const char* tensor, const char* letters) {
    return prefix + tensor + suffix + letters;
  };
  const std::string w1 = name("w1_", "FD");
  const std::string w3 = name("w3_", "FD");
  const std::string w2 = name("w2_", "DF");
  const ExpertWeights weights{Read(w1, expert), Read(w3, expert), Read(w2, expert)};
  const reference::ExpertKind kind = reference::SwiGlu();
  const SumMath math;
  const reference::ExpertForward forward = RunForward(math, kind, weights, r_ND);
  const reference::ExpertBackward backward = RunBackward(math, kind, weights, forward, d_o_ND);
  const auto gradients = GradientsOfWeights(math, forward, backward, r_ND, d_o_ND);
  RequireExact(w1 + " x", forward.units.gate_NF);
  RequireExact(w3 + " x", forward.units.up_NF);
  RequireExact(kind.a, forward.units.gate_NF);
  if (kind.b) {
    RequireExact(*kind.b, forward.units.up_NF);
  }
  RequireExact("hidden", forward.units.hidden_NF);
  RequireExact("d_hidden", backward.d_hidden_NF);
  RequireExact("d_" + w1, gradients.d_w1_FD);
  RequireExact("d_" + w3, gradients.d_w3_FD);
  RequireExact("d_" + w2, gradients.d_w2_DF);
  return {.o_ND = forward.o_ND, .d_r_ND = backward.d_r_ND};
}

// One expert on the tokens that chose it: adds to y and d_x; returns its elements of d_p as [N, 1].
Sums ExactStep::RunRouted(std::int64_t expert, const std::vector<std::int64_t>& tokens, Sums& y_TD,
                          Sums& d_x_TD) const {
  const bool before = model_.score_placement == ScorePlacement::kBeforeExperts;
  Matrix x_ND(std::ssize(tokens), model_.d_model);
  Matrix d_y_ND(std::ssize(tokens), model_.d_model);
  for (std::size_t n = 0; n < tokens.size(); ++n) {
    x_ND.row(static_cast<Eigen::Index>(n)) = x_TD_.row(tokens[n]);
    d_y_ND.row(static_cast<Eigen::Index>(n)) = d_y_TD_.row(tokens[n]);
  }
  const ExpertSums expert_step = RunExpert("", "E", expert, before ? Matrix(weight_ * x_ND) : x_ND,
                                           before ? d_y_ND : Matrix(weight_ * d_y_ND));
  const Sums part_of_y_ND = expert_step.o_ND.Scaled(before ? 1.0 : weight_);
  const Sums part_of_d_x_ND = expert_step.d_r_ND.Scaled(before ? weight_ : 1.0);
  for (std::size_t n = 0; n < tokens.size(); ++n) {
    y_TD.AddRow(tokens[n], part_of_y_ND, static_cast<Eigen::Index>(n));
    d_x_TD.AddRow(tokens[n], part_of_d_x_ND, static_cast<Eigen::Index>(n));
  }
  return before ? RowDots(expert_step.d_r_ND, x_ND) : RowDots(expert_step.o_ND, d_y_ND);
}

void ExactStep::RunShared(Sums& y_TD, Sums& d_x_TD) const {
  const double gate = model_.shared_gate ? 0.5 : 1.0;
  const ExpertSums shared = RunExpert("shared_", "", -1, x_TD_, gate * d_y_TD_);
  y_TD.Add(shared.o_ND.Scaled(gate));
  d_x_TD.Add(shared.d_r_ND);
  if (!model_.shared_gate) {
    return;
  }
  const Matrix shared_gate_1D = Read("shared_gate_D");
  if (!(x_TD_ * shared_gate_1D.transpose()).isZero(0.0)) {
    throw Error(where_, "the fill is dyadic, and x . shared_gate_D must be 0 for every token");
  }
  const Sums d_z_T1 = RowDots(shared.o_ND, d_y_TD_).Scaled(0.25);
  RequireExact("d_shared_gate_D", Product(d_z_T1.Transposed(), x_TD_));
  d_x_TD.Add(Product(d_z_T1, shared_gate_1D));
}

// d_logits of the chosen experts, [T, K]. Scores that are normalised take the mean over the K
// experts away; where softmax and route_norm both do, the second finds a mean of 0.
Sums ExactStep::LogitGradients(const Sums& d_p_TK) const {
  const auto k = static_cast<double>(model_.top_k);
  const bool softmax = model_.score_function == ScoreFunction::kSoftmax;
  Sums d_TK = d_p_TK.Scaled(model_.route_scale);
  if (softmax || model_.route_norm) {
    const Matrix minus_mean_KK = Matrix::Identity(model_.top_k, model_.top_k).array() - 1.0 / k;
    d_TK = Product(d_TK, minus_mean_KK);
  }
  const double score = softmax ? 1.0 / k : 0.5;
  const double sum_of_scores = model_.route_norm ? k * score : 1.0;
  return d_TK.Scaled((softmax ? score : 0.25) / sum_of_scores);
}

void ExactStep::Run() {
  x_TD_ = Read("x_TD");
  d_y_TD_ = Read("d_y_TD");
  const Matrix gate_ED = Read("gate_ED");
  const Vector gate_bias_E = model_.gate_bias ? Vector(Read("gate_bias_E").transpose()) : Vector();
  const Vector expert_bias_E =
      model_.expert_bias ? Vector(Read("expert_bias_E").transpose()) : Vector();
  const auto& chosen_TK =
      reference::Route(model_, x_TD_, gate_ED, gate_bias_E, expert_bias_E).topk_expert_TK;
  const bool normalised = model_.score_function == ScoreFunction::kSoftmax || model_.route_norm;
  weight_ = model_.route_scale * (normalised ? 1.0 / static_cast<double>(model_.top_k) : 0.5);

  Sums y_TD = Sums::Zero(model_.tokens, model_.d_model);
  Sums d_x_TD = Sums::Zero(model_.tokens, model_.d_model);
  Sums d_p_TK = Sums::Zero(model_.tokens, model_.top_k);
  for (std::int64_t expert = 0; expert < model_.experts; ++expert) {
    std::vector<std::int64_t> tokens;
    std::vector<Eigen::Index> slots;
    for (Eigen::Index token = 0; token < chosen_TK.rows(); ++token) {
      for (Eigen::Index slot = 0; slot < chosen_TK.cols(); ++slot) {
        if (chosen_TK(token, slot) == expert) {
          tokens.push_back(token);
          slots.push_back(slot);
        }
      }
    }
    if (tokens.empty()) {
      continue;
    }
    const Sums d_p_N1 = RunRouted(expert, tokens, y_TD, d_x_TD);
    for (std::size_t n = 0; n < tokens.size(); ++n) {
      const auto row = static_cast<Eigen::Index>(n);
      d_p_TK.AddTerm(tokens[n], slots[n], d_p_N1.value(row, 0), d_p_N1.size(row, 0),
                     d_p_N1.step(row, 0));
    }
  }
  if (model_.d_shared > 0) {
    RunShared(y_TD, d_x_TD);
  }
  RequireExact("y_TD", y_TD);

  const Sums d_chosen_TK = LogitGradients(d_p_TK);
  Sums d_logits_TE = Sums::Zero(model_.tokens, model_.experts);
  for (Eigen::Index token = 0; token < chosen_TK.rows(); ++token) {
    for (Eigen::Index slot = 0; slot < chosen_TK.cols(); ++slot) {
      d_logits_TE.AddTerm(token, chosen_TK(token, slot), d_chosen_TK.value(token, slot),
                          d_chosen_TK.size(token, slot), d_chosen_TK.step(token, slot));
    }
  }
  RequireExact("d_gate_ED", Product(d_logits_TE.Transposed(), x_TD_));
  if (model_.gate_bias) {
    RequireExact("d_gate_bias_E",
                 Product(d_logits_TE.Transposed(), Matrix::Ones(model_.tokens, 1)));
  }
  d_x_TD.Add(Product(d_logits_TE, gate_ED));
  RequireExact("d_x_TD", d_x_TD);
}

}  // namespace

void RequireExactness(const Model& model, const TensorSource& inputs, const std::string& where) {
  ExactStep(model, inputs, where).Run();
}

}  // namespace moe
