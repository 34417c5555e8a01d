#include "reference/router.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

namespace moe::reference {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// As in torchtitan and Megatron; keeps 0 / 0 out when all chosen scores underflow.
constexpr double kSumFloor = 1e-20;

// A softmax or sigmoid takes about this many roundings (shift, exp, add, divide).
constexpr double kScoreOperations = 4.0;

double Identity(double value) {
  return value;
}
double Square(double value) {
  return value * value;
}

// The `count` largest of `values`, in descending order, ties to the lower index. By repeated
// search, which needs no order among values and so cannot be misled by a NaN.
std::vector<std::int64_t> LargestOf(const Vector& values, std::int64_t count) {
  std::vector<std::int64_t> largest;
  std::vector<bool> taken(static_cast<std::size_t>(values.size()), false);
  while (std::ssize(largest) < count) {
    std::int64_t best = -1;
    for (Eigen::Index i = 0; i < values.size(); ++i) {
      if (!taken[static_cast<std::size_t>(i)] && (best < 0 || values[i] > values[best])) {
        best = i;
      }
    }
    taken[static_cast<std::size_t>(best)] = true;
    largest.push_back(best);
  }
  return largest;
}

// Smallest value of `chosen` minus the largest of the rest; infinite where nothing is left.
double MarginOf(const Vector& values, const std::vector<std::int64_t>& chosen) {
  Vector rest = values;
  double smallest = kInfinity;
  for (const std::int64_t i : chosen) {
    smallest = std::min(smallest, values[i]);
    rest[i] = -kInfinity;
  }
  return smallest - rest.maxCoeff();
}

bool IsGroupLimited(const Model& model) {
  return model.limited_groups < model.expert_groups;
}

// A group is as good as the mean of its two best experts. (The sum, as torchtitan has it, orders
// groups alike; the mean makes the margin one between scores.)
Vector GroupScores(const Model& model, const Vector& selection_E) {
  const std::int64_t size = model.experts / model.expert_groups;
  const std::int64_t best = std::min<std::int64_t>(2, size);
  Vector scores(model.expert_groups);
  for (std::int64_t group = 0; group < model.expert_groups; ++group) {
    const Vector members = selection_E.segment(group * size, size);
    double sum = 0.0;
    for (const std::int64_t member : LargestOf(members, best)) {
      sum += members[member];
    }
    scores[group] = sum / static_cast<double>(best);
  }
  return scores;
}

struct Choice {
  std::vector<std::int64_t> experts;
  double margin = kInfinity;
  double margin_bound = 0.0;
};

// Smallest value of `chosen` at its lower bound minus the largest of the rest at its upper one:
// above 0, no rounding changes the choice.
double ClearanceOf(const Vector& values, const Vector& bounds,
                   const std::vector<std::int64_t>& chosen) {
  Vector upper = values + bounds;
  double smallest = kInfinity;
  for (const std::int64_t i : chosen) {
    smallest = std::min(smallest, values[i] - bounds[i]);
    upper[i] = -kInfinity;
  }
  return smallest - upper.maxCoeff();
}

// A group's score moves by no more than its members' do.
Vector GroupBounds(const Model& model, const Vector& bound_E) {
  const std::int64_t size = model.experts / model.expert_groups;
  Vector bounds(model.expert_groups);
  for (std::int64_t group = 0; group < model.expert_groups; ++group) {
    bounds[group] = bound_E.segment(group * size, size).maxCoeff();
  }
  return bounds;
}

// One token: groups first, then the K best experts of the groups that are left.
Choice Choose(const Model& model, Vector selection_E, const Vector& bound_E) {
  Choice choice;
  double clearance = kInfinity;
  if (IsGroupLimited(model)) {
    const Vector groups = GroupScores(model, selection_E);
    const std::vector<std::int64_t> kept = LargestOf(groups, model.limited_groups);
    choice.margin = MarginOf(groups, kept);
    clearance = ClearanceOf(groups, GroupBounds(model, bound_E), kept);
    const std::int64_t size = model.experts / model.expert_groups;
    for (std::int64_t group = 0; group < model.expert_groups; ++group) {
      if (std::find(kept.begin(), kept.end(), group) == kept.end()) {
        selection_E.segment(group * size, size).setConstant(-kInfinity);
      }
    }
  }
  choice.experts = LargestOf(selection_E, model.top_k);
  choice.margin = std::min(choice.margin, MarginOf(selection_E, choice.experts));
  clearance = std::min(clearance, ClearanceOf(selection_E, bound_E, choice.experts));
  // Where every expert is chosen both are infinite, and there is nothing to move.
  choice.margin_bound = std::isinf(clearance) ? 0.0 : choice.margin - clearance;
  return choice;
}

// How far a difference of two logits may move at most while the difference of their scores moves
// by `margin`. sigmoid(a) - sigmoid(b) has slope 1/4 at most. For softmax over two experts it is
// tanh((a - b) / 2), of slope 1/2, and more experts are less steep.
double LogitsPerScore(ScoreFunction function) {
  return function == ScoreFunction::kSoftmax ? 2.0 : 4.0;
}

// Softmax of each row. With s = softmax(z): ds_e = s_e (dz_e - sum_j s_j dz_j).
Estimate Softmax(const Arithmetic& math, const Estimate& logits_TE) {
  Estimate scores = math.Zero(logits_TE.value.rows(), logits_TE.value.cols());
  for (Eigen::Index token = 0; token < logits_TE.value.rows(); ++token) {
    const auto z = logits_TE.value.row(token);
    auto s = scores.value.row(token);
    const double shift = z.maxCoeff();  // exp of at most 0 cannot overflow
    s = z.unaryExpr([shift](double logit) { return std::exp(logit - shift); });
    s /= s.sum();
    if (math.estimating()) {
      const Eigen::RowVectorXd variance = logits_TE.deviation.row(token).cwiseAbs2();
      const Eigen::RowVectorXd from_mean = variance.cwiseProduct(s.cwiseAbs2());
      const Eigen::RowVectorXd own =
          variance.cwiseProduct((1.0 - s.array()).square().matrix()) - from_mean;
      scores.deviation.row(token) = s.array() * (own.array() + from_mean.sum() +
                                                 Square(kScoreOperations * math.unit().scores))
                                                    .max(0.0)
                                                    .sqrt();
    }
    if (math.bounding()) {
      // The shift is rounded and exp as good as two units of its last place; the sum of E
      // exponentials and the division follow.
      const double unit = math.unit().scores;
      const Eigen::RowVectorXd bound =
          logits_TE.worst_case.row(token).array() + unit * ((shift - z.array()) + 2.0);
      const Eigen::RowVectorXd from_mean = bound.cwiseProduct(s);
      const Eigen::RowVectorXd own = bound.cwiseProduct((1.0 - s.array()).matrix()) - from_mean;
      scores.worst_case.row(token) =
          s.array() * (own.array() + from_mean.sum() + unit * static_cast<double>(z.size() + 1));
    }
  }
  return scores;
}

// d_z_e = s_e (d_s_e - sum_j s_j d_s_j).
Estimate SoftmaxBackward(const Arithmetic& math, const Estimate& scores_TE,
                         const Estimate& d_scores_TE, std::int64_t top_k) {
  const double unit = math.unit().scores;
  return math.Multiply(scores_TE, math.MinusWeightedMean(d_scores_TE, scores_TE, top_k, unit),
                       unit);
}

// d_z = d_s s (1 - s).
Estimate SigmoidBackward(const Arithmetic& math, const Estimate& scores_TE,
                         const Estimate& d_scores_TE) {
  const double unit = math.unit().scores;
  const auto curvature = [](double s) { return 1.0 - 2.0 * s; };
  const Estimate slope_TE = math.Elementwise(scores_TE, SigmoidSlopeOf, curvature,
                                             /*size=*/SigmoidSlopeOf, unit);
  return math.Multiply(d_scores_TE, slope_TE, unit);
}

// n_k = s_k / S with S = sum_j s_j + 1e-20, so that dn_k = (ds_k - n_k sum_j ds_j) / S.
void Normalise(const Arithmetic& math, CombineWeights& weights) {
  const Matrix& s_TK = weights.score_TK.value;
  weights.sum_T1.value = (s_TK.rowwise().sum().array() + kSumFloor).matrix();
  const Vector inverse_T = weights.sum_T1.value.col(0).cwiseInverse();
  weights.normal_TK.value = inverse_T.asDiagonal() * s_TK;
  if (math.estimating()) {
    const Matrix variance_TK = weights.score_TK.deviation.cwiseAbs2();
    const Vector sum_variance_T = variance_TK.rowwise().sum();
    const double own = Square(math.unit().scores);
    const double additions = own * static_cast<double>(s_TK.cols());
    weights.sum_T1.deviation =
        (sum_variance_T + additions * weights.sum_T1.value.cwiseAbs2()).cwiseSqrt();
    const auto n = weights.normal_TK.value.array();
    // (1 - n_k)^2 var s_k + n_k^2 sum_{j != k} var s_j, over S^2.
    const auto scaled = (inverse_T.cwiseAbs2().asDiagonal() * variance_TK).eval();
    const Vector scaled_sum_T = scaled.rowwise().sum();
    weights.normal_TK.deviation =
        ((1.0 - 2.0 * n) * scaled.array() +
         n.square() * (scaled_sum_T.replicate(1, s_TK.cols()).array() + additions + own))
            .max(0.0)
            .sqrt()
            .matrix();
  }
  if (math.bounding()) {
    const Matrix& bound_TK = weights.score_TK.worst_case;
    const double unit = math.unit().scores;
    const double additions = unit * static_cast<double>(s_TK.cols());
    weights.sum_T1.worst_case = bound_TK.rowwise().sum() + additions * weights.sum_T1.value;
    const auto n = weights.normal_TK.value.array();
    // |1 - n_k| bound of s_k + n_k sum_{j != k} bound of s_j, over S.
    const Matrix scaled = inverse_T.asDiagonal() * bound_TK;
    const Vector scaled_sum_T = scaled.rowwise().sum();
    weights.normal_TK.worst_case =
        ((1.0 - 2.0 * n) * scaled.array() +
         n * (scaled_sum_T.replicate(1, s_TK.cols()).array() + additions + unit))
            .matrix();
  }
}

// d_s_k = (d_n_k - sum_j n_j d_n_j) / S.
Estimate NormaliseBackward(const Arithmetic& math, const CombineWeights& weights,
                           const Estimate& d_normal_TK) {
  const double unit = math.unit().scores;
  const auto inverse = [](double sum) { return 1.0 / sum; };
  const auto slope = [](double sum) { return -1.0 / (sum * sum); };
  const Estimate inverse_T1 =
      math.Elementwise(weights.sum_T1, inverse, slope, /*size=*/inverse, unit);
  return math.ScaleRows(
      math.MinusWeightedMean(d_normal_TK, weights.normal_TK, d_normal_TK.value.cols(), unit),
      inverse_T1, unit);
}

// route_scale * a.
Estimate Scale(const Arithmetic& math, const Estimate& a, double factor) {
  return math.Multiply(a, Matrix::Constant(a.value.rows(), a.value.cols(), factor).eval(),
                       math.unit().scores);
}

}  // namespace

Estimate Logits(const Arithmetic& math, const Model& model, const Matrix& x_TD,
                const Matrix& gate_ED, const Vector& gate_bias_E) {
  const Cast& cast = math.unit().gate;
  const double unit = math.unit().logits;
  Units units = math.UnitsOf(cast);
  units.store = unit;
  Estimate logits_TE = math.Product(math.Rounded(x_TD, cast),
                                    Transposed(math.Rounded(gate_ED, cast)), Sum::kLocal, units);
  if (!model.gate_bias) {
    return logits_TE;
  }
  const Matrix bias_TE = gate_bias_E.transpose().replicate(x_TD.rows(), 1);
  return math.Add(logits_TE, bias_TE, unit);
}

Estimate Scores(const Arithmetic& math, const Model& model, const Estimate& logits_TE) {
  if (model.score_function == ScoreFunction::kSoftmax) {
    return Softmax(math, logits_TE);
  }
  const auto slope = [](double z) { return SigmoidSlopeOf(Sigmoid(z)); };
  return math.Elementwise(logits_TE, Sigmoid, slope, /*size=*/Sigmoid,
                          kScoreOperations * math.unit().scores);
}

Routing Select(const Arithmetic& math, const Model& model, const Estimate& logits_TE,
               const Estimate& scores_TE, const Vector& expert_bias_E) {
  const bool by_score_alone = !model.expert_bias && !IsGroupLimited(model);
  const Eigen::Index tokens = scores_TE.value.rows();
  Routing routing;
  routing.topk_expert_TK.resize(tokens, model.top_k);
  routing.margin_T.resize(tokens);
  routing.logit_margin_T.resize(tokens);
  Matrix selection_TE = scores_TE.value;
  if (model.expert_bias) {
    selection_TE.rowwise() += expert_bias_E.transpose();
  }
  Matrix bound_TE = Matrix::Zero(tokens, model.experts);
  if (math.bounding()) {
    bound_TE = scores_TE.worst_case;
    if (model.expert_bias) {
      bound_TE += math.unit().scores * selection_TE.cwiseAbs();
    }
  }
  Vector margin_bound_T(tokens);
  for (Eigen::Index token = 0; token < tokens; ++token) {
    const Choice choice =
        Choose(model, selection_TE.row(token).transpose(), bound_TE.row(token).transpose());
    margin_bound_T[token] = choice.margin_bound;
    for (std::int64_t slot = 0; slot < model.top_k; ++slot) {
      routing.topk_expert_TK(token, slot) = choice.experts[static_cast<std::size_t>(slot)];
    }
    routing.margin_T[token] = choice.margin;
    // Both score functions grow with the logit, so the choice by score is one by logit. Scores
    // that round to one another may be chosen against the order of their logits: no margin then.
    routing.logit_margin_T[token] =
        by_score_alone
            ? std::max(0.0, MarginOf(logits_TE.value.row(token).transpose(), choice.experts))
            : choice.margin * LogitsPerScore(model.score_function);
  }
  if (math.bounding()) {
    routing.selection_TE = std::move(selection_TE);
    routing.selection_bound_TE = std::move(bound_TE);
    routing.margin_bound_T = std::move(margin_bound_T);
  }
  return routing;
}

CombineWeights WeighSlots(const Arithmetic& math, const Model& model, const Estimate& scores_TE,
                          const Routing& routing) {
  const auto& topk_expert_TK = routing.topk_expert_TK;
  CombineWeights weights;
  weights.score_TK = math.Zero(topk_expert_TK.rows(), topk_expert_TK.cols());
  for (Eigen::Index token = 0; token < topk_expert_TK.rows(); ++token) {
    for (Eigen::Index slot = 0; slot < topk_expert_TK.cols(); ++slot) {
      const std::int64_t expert = topk_expert_TK(token, slot);
      for (Matrix Estimate::*part : math.parts()) {
        (weights.score_TK.*part)(token, slot) = (scores_TE.*part)(token, expert);
      }
    }
  }
  if (model.route_norm) {
    Normalise(math, weights);
  } else {
    weights.normal_TK = weights.score_TK;
  }
  weights.p_TK = Scale(math, weights.normal_TK, model.route_scale);
  return weights;
}

Estimate RouterBackward(const Arithmetic& math, const Model& model, const Routing& routing,
                        const Estimate& scores_TE, const CombineWeights& weights,
                        const Estimate& d_p_TK) {
  const Estimate d_normal_TK = Scale(math, d_p_TK, model.route_scale);
  const Estimate d_score_TK =
      model.route_norm ? NormaliseBackward(math, weights, d_normal_TK) : d_normal_TK;

  Estimate d_scores_TE = math.Zero(scores_TE.value.rows(), scores_TE.value.cols());
  for (Eigen::Index token = 0; token < d_score_TK.value.rows(); ++token) {
    for (Eigen::Index slot = 0; slot < d_score_TK.value.cols(); ++slot) {
      const std::int64_t expert = routing.topk_expert_TK(token, slot);
      for (Matrix Estimate::*part : math.parts()) {
        (d_scores_TE.*part)(token, expert) = (d_score_TK.*part)(token, slot);
      }
    }
  }

  Estimate d_logits_TE = model.score_function == ScoreFunction::kSoftmax
                             ? SoftmaxBackward(math, scores_TE, d_scores_TE, model.top_k)
                             : SigmoidBackward(math, scores_TE, d_scores_TE);
  // The gradient goes back through the number format in which the logits came.
  return math.Elementwise(
      d_logits_TE, Identity, [](double) { return 1.0; }, /*size=*/Identity, math.unit().logits);
}

Routing Route(const Model& model, const Matrix& x_TD, const Matrix& gate_ED,
              const Vector& gate_bias_E, const Vector& expert_bias_E,
              const std::optional<Rounding>& rounding) {
  const Arithmetic math(rounding, /*worst_case=*/true);
  const Estimate logits_TE = Logits(math, model, x_TD, gate_ED, gate_bias_E);
  const Estimate scores_TE = Scores(math, model, logits_TE);
  return Select(math, model, logits_TE, scores_TE, expert_bias_E);
}

}  // namespace moe::reference
