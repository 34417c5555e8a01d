#include "harness/layout/step_graph.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

namespace moe {
namespace {

Model LargeModel() {
  return {.tokens = 48,
          .d_model = 8,
          .d_expert = 12,
          .experts = 4,
          .top_k = 2,
          .gate_bias = true,
          .expert_bias = true,
          .d_shared = 12,
          .shared_gate = true};
}

Model WithScoreBefore(Model model) {
  model.score_placement = ScorePlacement::kBeforeExperts;
  return model;
}

StepGraph GraphOf(const Model& model, const std::string& layout,
                  TpBackward backward = TpBackward::kSumAtBoundary) {
  return {model, ParseLayout(layout, "here"), {.tp_backward = backward}};
}

std::string Shown(const std::vector<Reach>& reach) {
  std::string text;
  for (const Reach& r : reach) {
    text += std::string(r.result);
    for (const Path path : r.paths) {
      text += ":" + std::string(ToText(path));
    }
    text += " ";
  }
  return text;
}

std::string Shown(const std::vector<Dim>& dims) {
  std::string text;
  for (const Dim dim : dims) {
    text += static_cast<char>(dim);
  }
  return text;
}

TEST(Products, ReadWhatTheProblemHasOrWasWrittenBeforeAndWriteEveryResultOnce) {
  for (const Model& model : {LargeModel(), WithScoreBefore(LargeModel()),
                             Model{.tokens = 4, .d_model = 2, .d_expert = 2, .experts = 2}}) {
    std::set<std::string_view> known;
    for (const TensorInfo& input : InputsOf(model)) {
      known.insert(TensorOf(input.name).name);
    }
    for (const Product& product : ProductsOf(model)) {
      for (const Read& read : product.reads) {
        EXPECT_TRUE(known.contains(read.tensor)) << product.writes << " reads " << read.tensor;
      }
      EXPECT_TRUE(known.insert(product.writes).second) << product.writes << " is written twice";
    }
    for (const TensorInfo& result : ResultsOf(model)) {
      EXPECT_TRUE(known.contains(result.name)) << result.name << " is never written";
    }
  }
}

TEST(Products, BringAResultAlongThePathsOfItsRow) {
  for (const Product& product : ProductsOf(LargeModel())) {
    std::vector<Path> paths;
    for (const Read& read : product.reads) {
      if (read.path) {
        paths.push_back(*read.path);
      }
    }
    const auto of_row = TensorOf(product.writes).paths;
    EXPECT_EQ(of_row.size() > 1, !paths.empty()) << product.writes;
    EXPECT_TRUE(paths.empty() ||
                std::equal(paths.begin(), paths.end(), of_row.begin(), of_row.end()))
        << product.writes;
  }
}

TEST(StepGraph, SaysWhereASumInsideTheStepShows) {
  const StepGraph after = GraphOf(LargeModel(), "tp2", TpBackward::kSumInside);
  EXPECT_EQ(Shown(after.ReachOf("d_routed_TD")), "d_x_TD:routed ");
  EXPECT_EQ(Shown(after.ReachOf("d_routed_ND")), "d_x_TD:routed ");
  EXPECT_EQ(Shown(after.ReachOf("d_logits_TE")), "d_x_TD:gate d_gate_ED d_gate_bias_E ");
  EXPECT_EQ(Shown(after.ReachOf("d_shared_TD")), "d_x_TD:shared ");
  EXPECT_EQ(Shown(after.ReachOf("y_routed_ND")),
            "y_TD:routed d_x_TD:gate d_gate_ED d_gate_bias_E ");
  EXPECT_EQ(Shown(after.ReachOf("d_x_TD")), "d_x_TD:routed:gate:shared ");
  // A score that multiplies before the experts has its gradient from theirs.
  const StepGraph before = GraphOf(WithScoreBefore(LargeModel()), "tp2", TpBackward::kSumInside);
  EXPECT_EQ(Shown(before.ReachOf("d_routed_ND")), "d_x_TD:routed:gate d_gate_ED d_gate_bias_E ");
  EXPECT_EQ(Shown(before.ReachOf("y_routed_ND")), "y_TD:routed ");
}

TEST(StepGraph, SaysWhichSumsAreBehindAResult) {
  const StepGraph graph = GraphOf(LargeModel(), "dp2.tp2", TpBackward::kSumInside);
  EXPECT_EQ(graph.SumsBehind("d_gate_bias_E"),
            (std::vector<Reduction>{{"d_logits_TE", Axis::kTp},
                                    {"d_gate_bias_E", Axis::kDpShard},
                                    {"d_gate_bias_E", Axis::kTp}}));
  EXPECT_EQ(graph.SumsBehind("d_shared_w1_FD"),
            (std::vector<Reduction>{{"d_shared_w1_FD", Axis::kDpShard}}));
}

TEST(StepGraph, GathersRowsUnderSequenceParallelismAlone) {
  EXPECT_EQ(GraphOf(LargeModel(), "tp2").gathers(),
            (std::vector<Reduction>{{"x_TD", Axis::kTp}, {"d_y_TD", Axis::kTp}}));
  EXPECT_TRUE(GraphOf(LargeModel(), "tp2.sp0").gathers().empty());
  EXPECT_TRUE(GraphOf(LargeModel(), "dp2").gathers().empty());
}

TEST(StepGraph, SaysWhatSharesAreCutAlong) {
  const Lie of_tokens = {Lie::Kind::kShare, Dim::kT};
  const Lie of_hidden_units = {Lie::Kind::kShare, Dim::kF};
  EXPECT_EQ(GraphOf(LargeModel(), "tp2.ep2.etp1").LiesOf("d_logits_TE").at(Axis::kTp), of_tokens);
  EXPECT_EQ(GraphOf(LargeModel(), "tp2").LiesOf("d_logits_TE").at(Axis::kTp), of_hidden_units);
  EXPECT_EQ(GraphOf(LargeModel(), "dp2.tp2").LiesOf("d_gate_ED").at(Axis::kDpShard), of_tokens);
  EXPECT_EQ(GraphOf(LargeModel(), "dp2.tp1.etp2").LiesOf("y_routed_ND").at(Axis::kEtp),
            of_hidden_units);
}

TEST(TermsOf, AreCutAlongWhatTheResultIsNotCutAlongItself) {
  const Model model = LargeModel();
  EXPECT_EQ(Shown(TermsOf("y_TD", Path::kRouted, model)), "EF");
  EXPECT_EQ(Shown(TermsOf("y_TD", Path::kShared, model)), "S");
  EXPECT_EQ(Shown(TermsOf("d_x_TD", Path::kGate, model)), "EF");
  EXPECT_EQ(Shown(TermsOf("d_gate_ED", Path::kScores, model)), "TEF");
  EXPECT_EQ(Shown(TermsOf("d_w2_EDF", Path::kExperts, model)), "T");
  EXPECT_EQ(Shown(TermsOf("d_shared_w1_FD", Path::kShared, model)), "T");
  EXPECT_EQ(Shown(TermsOf("d_shared_gate_D", Path::kShared, model)), "TS");
}

TEST(IsReachedBy, EveryResultButThoseOfTheSharedExperts) {
  const Model model = LargeModel();
  for (const TensorRow& stage : TensorTable()) {
    if (stage.role == Role::kStage) {
      for (const TensorInfo& result : ResultsOf(model)) {
        const auto paths = TensorOf(result.name).paths;
        const bool is_shared = paths.size() == 1 && paths.front() == Path::kShared;
        EXPECT_EQ(IsReachedBy(stage.name, result.name, model), !is_shared)
            << stage.name << " " << result.name;
      }
    }
  }
}

}  // namespace
}  // namespace moe
