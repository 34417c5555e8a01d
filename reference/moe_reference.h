// The MoE step in float64 on one device, forward and hand-written backward, with Eigen alone.
//
// This is what every parallel run is judged against. It knows nothing of ranks, layouts or
// LibTorch, routes once, and then goes expert by expert, so that it holds the tokens and one expert
// at a time. Shape letters: see harness/base/model.h. Formulas: moe_reference.cc, stage by stage.
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "harness/base/model.h"

namespace moe::reference {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Vector = Eigen::VectorXd;

struct ExpertWeights {
  Matrix w1_FD;  // gate projection
  Matrix w3_FD;  // up projection
  Matrix w2_DF;  // down projection
};

// What a gradient is, a value or the terms of a sum, is for the user to say.
template <typename Gradient>
struct WeightGradients {
  Gradient d_w1_FD;
  Gradient d_w3_FD;
  Gradient d_w2_DF;
};

// The whole problem. Members that the model does not have stay empty.
struct Problem {
  Matrix x_TD;
  Matrix d_y_TD;  // output cotangent; the loss is sum(y_TD * d_y_TD)
  Matrix gate_ED;
  Vector gate_bias_E;
  Vector expert_bias_E;
  std::function<ExpertWeights(std::int64_t expert)> expert;  // called once per expert, in order
  ExpertWeights shared;  // w1 [F,D], w3 [F,D], w2 [D,F] with F = d_shared
  Vector shared_gate_D;
};

// A tensor inside the step that is cast to a coarser dtype than the step's: its operands are
// rounded to that dtype, what makes it, uses it and makes its gradient is computed in it, and so
// are shares of it that ranks hold.
struct Cast {
  double unit = 0.0;        // one rounding to it; 0 where there is no such cast
  double accumulate = 0.0;  // one addition inside a dot product of it
};

// Unit round-offs of a correct implementation of the same step, by where they arise.
struct Rounding {
  double store = 0.0;       // a tensor written in the dtype under test
  double accumulate = 0.0;  // one addition inside a dot product
  double logits = 0.0;      // the logits as they enter the score function
  double scores = 0.0;      // score function, normalisation, and their backward
  double reduce = 0.0;      // one addition of a sum over ranks, or a rank's share of it, stored
  Cast gate;                // the linear layer of the router
  Cast routed_in;           // rows that enter the experts, and their score before the experts
  Cast routed_out;          // what experts give, and its score and sum on the way into y_TD
  // Among how many ranks a sum may be shared out; 1 where none is.
  std::int64_t hidden_ranks = 1;  // over an expert's hidden units F
  std::int64_t expert_ranks = 1;  // over the experts of a token
  std::int64_t token_ranks = 1;   // over tokens
};

// A result and bounds on the rounding error that a correct implementation makes in each element
// (arithmetic.h has the model), empty where they were not asked for.
struct Estimate {
  Matrix value;
  Matrix deviation;   // probabilistic: exceeded lambda times with probability 2 exp(-lambda^2 / 2)
  Matrix worst_case;  // never exceeded, to first order, in any order of summation
  // Of sum_i value_i error_i, in squares of `deviation`; made for gradients of parameters alone.
  double projection_variance = 0.0;
};

// What a step gives, by name (harness/base/tensor_table.h): all results of the model, and no
// others.
class Results {
 public:
  Estimate& operator[](std::string_view name) { return of_[std::string(name)]; }
  const Estimate& operator[](std::string_view name) const { return of_.at(std::string(name)); }
  auto begin() const { return of_.begin(); }
  auto end() const { return of_.end(); }

 private:
  std::map<std::string, Estimate> of_;
};

struct ExpertGradients {
  std::int64_t expert = 0;
  std::int64_t tokens = 0;  // routed to this expert
  Results results;          // its slices of those that have one for each expert

  const Estimate& operator[](std::string_view name) const { return results[name]; }
};

struct Routing {
  Eigen::Matrix<std::int64_t, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> topk_expert_TK;
  // How far each token is from another choice: the smallest difference, in selection scores
  // (with expert_bias_E), between what was chosen and what was not; the smaller of the expert and
  // the group margin under group-limited selection, where a group counts as the mean of its two
  // best experts. Infinite when every expert is chosen.
  Vector margin_T;
  // The same distance in logits where no expert_bias_E and no groups take part; else a lower bound
  // of it, margin_T * 4 for sigmoid and margin_T * 2 for softmax, from their steepest slopes.
  Vector logit_margin_T;
  // With a worst-case bound: the selection scores, how far rounding may move each of them, and how
  // far it may move margin_T, so that a choice is beyond doubt where margin_T is larger. Else
  // empty.
  Matrix selection_TE;
  Matrix selection_bound_TE;
  Vector margin_bound_T;
};

// Selection for the rows of x_TD (any number of rows): logits, scores, bias, groups, top-k. Ties go
// to the lower expert index. topk_expert_TK is in descending order of selection score. Reads only
// gate_ED, gate_bias_E and expert_bias_E of the model's parameters. With a rounding, bounds too.
Routing Route(const Model& model, const Matrix& x_TD, const Matrix& gate_ED,
              const Vector& gate_bias_E, const Vector& expert_bias_E,
              const std::optional<Rounding>& rounding = std::nullopt);

struct StepResult {
  Routing routing;
  std::vector<std::int64_t> tokens_per_expert_E;
  Results results;  // those that have no slice for each expert; a vector is one row

  const Estimate& operator[](std::string_view name) const { return results[name]; }
};

// Called once per expert, in order, also for an expert without a token (gradients all zero).
using ExpertSink = std::function<void(const ExpertGradients&)>;

struct StepOptions {
  // Deviations are made only when given; without it the step is plain arithmetic.
  std::optional<Rounding> rounding;
  // Worst-case bounds beside the deviations, at about the same cost again.
  bool worst_case = false;
  // Uses this expert choice instead of the step's own (a foreign run's observed routing).
  const Routing* forced_routing = nullptr;
};

StepResult RunStep(const Model& model, const Problem& problem, const StepOptions& options,
                   const ExpertSink& on_expert);

}  // namespace moe::reference
