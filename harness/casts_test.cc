// Steps that compute parts of themselves in a coarser dtype, emulated number by number, against
// what the judge allows where they declare it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "harness/measure/tolerance.h"
#include "harness/step_under_test.h"

namespace moe {
namespace {

using Casts = std::map<std::string, Dtype>;

double Float(double value) {
  return static_cast<double>(static_cast<float>(value));
}

double Sigmoid(double z) {
  return 1.0 / (1.0 + std::exp(-z));
}

// A sigmoid router, top_k experts, no options: float64 except for the stages in `stages`, which are
// float32 as frameworks do it. The experts' hidden units are cut in two, as two tp ranks have them,
// and casts are applied to each half's share.
class CastingStep {
 public:
  CastingStep(const Step& step, std::set<std::string> stages)
      : model_(step.manifest.model), stages_(std::move(stages)), routing_(step.Routing()) {
    problem_ = MakeProblem(model_, step.problem);
    const auto t = static_cast<std::size_t>(model_.tokens * model_.d_model);
    y_.assign(t, 0.0);
    d_x_.assign(t, 0.0);
    d_gate_.assign(static_cast<std::size_t>(model_.experts * model_.d_model), 0.0);
    for (Values* gradient : {&d_w1_, &d_w3_, &d_w2_}) {
      gradient->assign(static_cast<std::size_t>(model_.experts * model_.d_expert * model_.d_model),
                       0.0);
    }
    for (std::int64_t token = 0; token < model_.tokens; ++token) {
      RunToken(token);
    }
  }

  void PutInto(Step& step) const {
    step.whole["y_TD"] = y_;
    step.whole["d_x_TD"] = d_x_;
    step.whole["d_gate_ED"] = d_gate_;
    step.whole["d_w1_EFD"] = d_w1_;
    step.whole["d_w3_EFD"] = d_w3_;
    step.whole["d_w2_EDF"] = d_w2_;
  }

 private:
  bool Is(const char* stage) const { return stages_.contains(stage); }
  double At(const char* stage, double value) const { return Is(stage) ? Float(value) : value; }

  // A dot product that adds up in the dtype of the stage.
  double Dot(const char* stage, const Values& a, const Values& b) const {
    double sum = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      sum = At(stage, sum + At(stage, At(stage, a[i]) * At(stage, b[i])));
    }
    return sum;
  }

  static Values RowOf(const reference::Matrix& matrix, std::int64_t row) {
    return {matrix.row(row).data(), matrix.row(row).data() + matrix.cols()};
  }

  void RunToken(std::int64_t token) {
    const Values x = RowOf(problem_.x_TD, token);
    const Values d_y = RowOf(problem_.d_y_TD, token);
    const std::size_t d = x.size();
    for (std::int64_t k = 0; k < model_.top_k; ++k) {
      const std::int64_t expert = routing_.topk_expert_TK(token, k);
      const Values gate = RowOf(problem_.gate_ED, expert);
      const double z = At("scores_TE", Dot("logits_TE", x, gate));
      const double p =
          Is("scores_TE") ? 1.0F / (1.0F + std::exp(-static_cast<float>(z))) : Sigmoid(z);
      double d_p = RunExpert(token, expert, p, x, d_y);
      d_p = At("scores_TE", d_p);
      const double slope = At("scores_TE", p * At("scores_TE", 1.0 - p));
      const double d_z = At("logits_TE", At("scores_TE", d_p * slope));
      for (std::size_t i = 0; i < d; ++i) {
        double& d_gate = d_gate_[static_cast<std::size_t>(expert) * d + i];
        d_gate = At("logits_TE", d_gate + At("logits_TE", d_z * At("logits_TE", x[i])));
        d_x_[static_cast<std::size_t>(token) * d + i] +=
            At("logits_TE", d_z * At("logits_TE", gate[i]));
      }
    }
  }

  // One slot, half of the hidden units at a time; gives the gradient of its score.
  double RunExpert(std::int64_t token, std::int64_t expert, double p, const Values& x,
                   const Values& d_y) {
    const bool before = model_.score_placement == ScorePlacement::kBeforeExperts;
    const reference::ExpertWeights weights = problem_.expert(expert);
    const std::size_t d = x.size();
    Values r(d);
    Values d_o(d);
    for (std::size_t i = 0; i < d; ++i) {
      r[i] = before ? At("routed_in_ND", p * At("routed_in_ND", x[i])) : At("routed_in_ND", x[i]);
      d_o[i] = before ? At("routed_out_ND", d_y[i])
                      : At("routed_out_ND", p * At("routed_out_ND", d_y[i]));
    }
    double d_p = 0.0;
    const std::int64_t half = model_.d_expert / 2;
    for (std::int64_t first = 0; first < model_.d_expert; first += half) {
      Values o(d, 0.0);
      Values d_r(d, 0.0);
      for (std::int64_t f = first; f < first + half; ++f) {
        double gate = 0.0;
        double up = 0.0;
        double d_hidden = 0.0;
        for (std::size_t i = 0; i < d; ++i) {
          const auto column = static_cast<Eigen::Index>(i);
          gate += weights.w1_FD(f, column) * r[i];
          up += weights.w3_FD(f, column) * r[i];
          d_hidden += weights.w2_DF(column, f) * d_o[i];
        }
        const double s = Sigmoid(gate);
        const double hidden = gate * s * up;
        const double d_gate = d_hidden * up * (s + gate * s * (1.0 - s));
        const double d_up = d_hidden * gate * s;
        for (std::size_t i = 0; i < d; ++i) {
          const auto column = static_cast<Eigen::Index>(i);
          o[i] += weights.w2_DF(column, f) * hidden;
          d_r[i] += weights.w1_FD(f, column) * d_gate + weights.w3_FD(f, column) * d_up;
          const std::size_t fd =
              static_cast<std::size_t>((expert * model_.d_expert + f) * model_.d_model) + i;
          d_w1_[fd] += d_gate * r[i];
          d_w3_[fd] += d_up * r[i];
          d_w2_[static_cast<std::size_t>((expert * model_.d_model + column) * model_.d_expert +
                                         f)] += d_o[i] * hidden;
        }
      }
      AddShares(token, p, o, d_r);
      d_p += before ? Dot("routed_in_ND", d_r, x) : Dot("routed_out_ND", o, d_y);
    }
    return d_p;
  }

  void AddShares(std::int64_t token, double p, const Values& o, const Values& d_r) {
    const bool before = model_.score_placement == ScorePlacement::kBeforeExperts;
    for (std::size_t i = 0; i < o.size(); ++i) {
      const std::size_t td = static_cast<std::size_t>(token) * o.size() + i;
      const double out = At("routed_out_ND", o[i]);
      y_[td] = At("routed_out_ND", y_[td] + (before ? out : At("routed_out_ND", p * out)));
      const double in = At("routed_in_ND", d_r[i]);
      d_x_[td] += before ? At("routed_in_ND", p * in) : in;
    }
  }

  Model model_;
  std::set<std::string> stages_;
  reference::Routing routing_;
  reference::Problem problem_;
  Values y_, d_x_, d_gate_, d_w1_, d_w3_, d_w2_;
};

Step StepWith(const std::set<std::string>& stages, ScorePlacement placement) {
  Step step("tp2", {.tokens = 48,
                    .d_model = 32,
                    .d_expert = 12,
                    .experts = 4,
                    .top_k = 2,
                    .score_function = ScoreFunction::kSigmoid,
                    .score_placement = placement});
  step.Run();
  CastingStep(step, stages).PutInto(step);
  return step;
}

Casts InFloat32(const std::set<std::string>& stages) {
  Casts casts;
  for (const std::string& stage : stages) {
    casts[stage] = Dtype::kFloat32;
  }
  return casts;
}

struct Casting {
  std::set<std::string> stages;
  ScorePlacement placement;
};

const Casting kCastings[] = {
    {{"scores_TE"}, ScorePlacement::kAfterExperts},
    {{"logits_TE"}, ScorePlacement::kAfterExperts},
    {{"routed_in_ND"}, ScorePlacement::kBeforeExperts},
    {{"routed_out_ND"}, ScorePlacement::kAfterExperts},
    {{"routed_out_ND"}, ScorePlacement::kBeforeExperts},
    {{"scores_TE", "routed_out_ND"}, ScorePlacement::kAfterExperts},
    {{"scores_TE", "routed_in_ND"}, ScorePlacement::kBeforeExperts},
    {{"logits_TE", "scores_TE", "routed_in_ND", "routed_out_ND"}, ScorePlacement::kAfterExperts}};

TEST(Casts, WithoutAnyTheEmulationIsTheStep) {
  for (const auto placement : {ScorePlacement::kBeforeExperts, ScorePlacement::kAfterExperts}) {
    EXPECT_EQ(StepWith({}, placement).Judge().verdict, Verdict::kPass);
  }
}

TEST(Casts, WhatAStepDeclaresIsAllowed) {
  for (const Casting& casting : kCastings) {
    Step step = StepWith(casting.stages, casting.placement);
    step.manifest.casts = InFloat32(casting.stages);
    const Judgement judgement = step.Judge();
    EXPECT_EQ(judgement.verdict, Verdict::kPass)
        << fmt::format("{}", fmt::join(casting.stages, " "));
    double largest = 0.0;
    for (const auto& [name, measured] : judgement.measured) {
      EXPECT_LE(measured.ratio, 1.0) << name;  // one deviation, as of clean runs
      largest = std::max(largest, measured.ratio);
    }
    EXPECT_GE(largest, 0.05) << "the bound is as good as none";
  }
}

TEST(Casts, WhatAStepDoesNotDeclareIsNotAllowed) {
  for (const Casting& casting : kCastings) {
    for (const std::string& stage : casting.stages) {
      Step step = StepWith({stage}, casting.placement);
      EXPECT_EQ(step.Judge().verdict, Verdict::kFail) << stage;
    }
  }
}

// With a golden file and without, which speaks of a step without casts: it must neither hold the
// routed experts to that, nor be needed for the shared ones.
TEST(Casts, LeaveSharedExpertsHeldToWhatTheyWere) {
  Model model = SmallModel();
  model.d_shared = 6;
  Step step("tp2", model);
  step.Run().Scale("d_shared_w1_FD", 1.0 + 1e-9).Scale("d_w1_EFD", 1.0 + 1e-9);
  step.manifest.casts = InFloat32({"logits_TE", "scores_TE", "routed_in_ND", "routed_out_ND"});
  Golden golden{.smallest_logit_margin = step.Routing().logit_margin_T.minCoeff()};
  for (const char* name : {"d_shared_w1_FD", "d_w1_EFD"}) {
    golden.tolerances[Dtype::kFloat64][name] = {.tolerance = 1e-14};
  }
  for (const JudgeOptions& options : {JudgeOptions{}, JudgeOptions{.golden = &golden}}) {
    EXPECT_EQ(step.FindingOf("d_w1_EFD", options).verdict, Verdict::kPass);
    const Finding shared = step.FindingOf("d_shared_w1_FD", options);
    EXPECT_EQ(shared.verdict, Verdict::kFail);
    EXPECT_LT(shared.tolerance, 2e-14);
  }
  const std::string floor = FloorOf(step.Judge());
  EXPECT_TRUE(floor.ends_with("; d_shared_w1_FD, d_shared_w3_FD, d_shared_w2_DF as without"))
      << floor;
}

}  // namespace
}  // namespace moe
