#include "harness/campaign/fault_catalogue.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

namespace moe {
namespace {

constexpr Model kModel = {.tokens = 96, .d_model = 32, .d_expert = 48, .experts = 12, .top_k = 2};

std::vector<PlantedFault> Catalogue(const std::string& layout, const Program& program = {},
                                    const Model& model = kModel) {
  return CatalogueOf(StepGraph(model, ParseLayout(layout, "here"), program));
}

const PlantedFault* Find(const std::vector<PlantedFault>& catalogue, const std::string& text) {
  const auto found = std::find_if(catalogue.begin(), catalogue.end(),
                                  [&](const PlantedFault& p) { return ToText(p.fault) == text; });
  return found == catalogue.end() ? nullptr : &*found;
}

TEST(CatalogueOf, PlantsEachFaultOnceWhereItFitsAndItsTextReadsBack) {
  Model model = kModel;
  model.d_shared = 24;
  model.gate_bias = model.expert_bias = model.shared_gate = true;
  for (const TpBackward backward : {TpBackward::kSumAtBoundary, TpBackward::kSumInside}) {
    for (const char* text :
         {"dp1", "tp2.sp0", "dp2.tp3.ep2.etp1.lb2", "dpr2.dp2.tp2.ep2.etp2", "cp2.tp2.ep2.etp1",
          "dp2.tp1.etp2", "tp4.ep2.etp2.lb2", "dp2.tp2.etp4.sp0"}) {
      const Program program{.tp_backward = backward};
      const Layout layout = ParseLayout(text, "here");
      const StepGraph graph(model, layout, program);
      std::set<std::string> texts;
      for (const PlantedFault& planted : CatalogueOf(graph, RanksToPlant::kAll)) {
        const std::string fault = ToText(planted.fault);
        EXPECT_EQ(ParseFault(fault, "here"), planted.fault) << fault;
        EXPECT_EQ(FindMisfit(planted.fault, graph), "") << text;
        EXPECT_TRUE(texts.insert(fault).second) << fault << " twice on " << text;
      }
    }
  }
}

TEST(CatalogueOf, HasEveryClassThatTheStepCanExpress) {
  std::set<std::string> classes;
  Model model = kModel;
  model.gate_bias = true;
  for (const PlantedFault& planted : Catalogue("dp2.tp3.ep2.etp1", {}, model)) {
    classes.insert(planted.bug_class);
  }
  for (const char* wanted : {"FC1", "FC2", "FC3", "FC4", "FC5", "FC6", "FC7", "FC8", "FC9", "FC12",
                             "FC15", "FC16", "FC17", "FC18", "FC20", "FC21", "FC22", "FC33"}) {
    EXPECT_TRUE(classes.contains(wanted)) << wanted;
  }
}

TEST(CatalogueOf, SaysWhereAFaultInsideTheStepIsSeen) {
  const auto catalogue = Catalogue("tp3", {.tp_backward = TpBackward::kSumInside});
  const PlantedFault* planted = Find(catalogue, "drop d_logits_TE@tp");
  ASSERT_NE(planted, nullptr);
  ASSERT_EQ(planted->answers.size(), 2U);
  EXPECT_EQ(planted->answers[0].tensor, "d_x_TD");
  EXPECT_EQ(planted->answers[0].explanation.path, "gate");
  EXPECT_EQ(planted->answers[1].tensor, "d_gate_ED");
  EXPECT_EQ(planted->answers[1].explanation.path, "");
}

// Under folding the experts' outputs are shares of the etp ranks: so are the output, the scores'
// gradient and what comes of it.
TEST(CatalogueOf, SaysWhereAFaultOfASumOverEtpIsSeen) {
  const auto seen = [](const Model& model, const std::string& fault) {
    std::vector<std::string> tensors;
    const auto catalogue = Catalogue("dp2.tp3.etp2", {}, model);
    for (const Answer& answer : Find(catalogue, fault)->answers) {
      tensors.push_back(answer.tensor + " " + answer.explanation.path);
    }
    return tensors;
  };
  using Texts = std::vector<std::string>;
  Model model = kModel;
  model.d_shared = 24;
  EXPECT_EQ(seen(model, "drop y_routed_ND@etp"),
            (Texts{"y_TD routed", "d_x_TD gate", "d_gate_ED "}));
  EXPECT_EQ(seen(model, "drop d_routed_ND@etp"), (Texts{"d_x_TD routed"}));
  model.score_placement = ScorePlacement::kBeforeExperts;
  EXPECT_EQ(seen(model, "drop y_routed_ND@etp"), (Texts{"y_TD routed"}));
  EXPECT_EQ(seen(model, "drop d_routed_ND@etp"), (Texts{"d_x_TD ", "d_gate_ED "}));
}

TEST(CatalogueOf, SendsTheSumOfExpertsThatAreAloneToOtherRanks) {
  const auto catalogue = Catalogue("dp2.tp2.etp4");
  const PlantedFault* planted = Find(catalogue, "wrong-group dp_shard d_w1_EFD@edp");
  ASSERT_NE(planted, nullptr);
  EXPECT_EQ(planted->equivalent, "");
  ASSERT_EQ(planted->answers.size(), 1U);
  EXPECT_EQ(planted->answers[0].explanation.cause, Cause::kWrongGroup);
  EXPECT_EQ(Find(catalogue, "drop d_w1_EFD@edp"), nullptr);
  EXPECT_EQ(Find(catalogue, "wrong-group tp y_routed_ND@etp"), nullptr);  // other rows
}

TEST(CatalogueOf, LeavesOutFactorsThatAreTheSizeOfAnOwedAxis) {
  const auto catalogue = Catalogue("dp2.tp3.ep2.etp1");
  EXPECT_EQ(Find(catalogue, "scale 3 d_gate_ED"), nullptr);   // repeat d_gate_ED@tp
  EXPECT_EQ(Find(catalogue, "scale 6 d_gate_ED"), nullptr);   // both sums
  EXPECT_EQ(Find(catalogue, "scale 3 d_w1_EFD"), nullptr);    // edp is 3
  EXPECT_NE(Find(catalogue, "scale 2 d_w1_EFD"), nullptr);    // ep
  EXPECT_NE(Find(catalogue, "scale 0.5 d_w1_EFD"), nullptr);  // 1/ep
}

TEST(CatalogueOf, SendsNoSumOverTheSameRanksByAnotherName) {
  const auto catalogue = Catalogue("dp2.tp2.ep2.etp2");
  EXPECT_EQ(Find(catalogue, "wrong-group etp d_gate_ED@tp"), nullptr);
  EXPECT_EQ(Find(catalogue, "wrong-group ep d_gate_ED@tp"), nullptr);  // the ranks of dp_shard
  const PlantedFault* planted = Find(catalogue, "wrong-group dp_shard d_gate_ED@tp");
  ASSERT_NE(planted, nullptr);
  ASSERT_EQ(planted->answers.size(), 2U);
  EXPECT_EQ(planted->answers[1].explanation.used, (std::vector<Axis>{Axis::kEp}));
}

TEST(CatalogueOf, ProvesThatAnotherRouteReachesEveryRankOnce) {
  // Ranks 0 to 5; edp is {0, 2, 4} and {1, 3, 5}, dp_shard pairs {0, 3}, {1, 4}, {2, 5}.
  const auto catalogue = Catalogue("dp2.tp3.ep2.etp1");
  EXPECT_NE(Find(catalogue, "wrong-group edp d_gate_ED@tp")->equivalent, "");
  EXPECT_EQ(Find(catalogue, "wrong-group ep d_gate_ED@tp")->equivalent, "");
}

TEST(CatalogueOf, KnowsOtherNamesOfASumOverTheWrongRanks) {
  const auto says = [](const PlantedFault& planted, const Explanation& wanted) {
    return std::any_of(planted.answers.begin(), planted.answers.end(), [&](const Answer& answer) {
      return answer.same_numbers && answer.explanation.cause == wanted.cause &&
             answer.explanation.axes == wanted.axes;
    });
  };
  // Half of dp_shard is summed: the ranks of edp. What is missing is the sum over ep.
  const auto halves = Catalogue("dp4.ep2");
  EXPECT_TRUE(says(*Find(halves, "wrong-group edp d_gate_ED@dp_shard"),
                   {.cause = Cause::kMissingSum, .axes = {Axis::kEp}}));
  // All four ranks are ep: what tp has summed is summed again.
  const auto all = Catalogue("dp2.tp2.ep4.etp1");
  EXPECT_TRUE(says(*Find(all, "wrong-group ep d_gate_ED@dp_shard"),
                   {.cause = Cause::kDoubleSum, .axes = {Axis::kTp}}));
}

TEST(CatalogueOf, KnowsThatARankWithOwnTokensOnlyLosesAllPathsWithItsShare) {
  const auto loses_a_path = [](const PlantedFault& planted) {
    return std::any_of(planted.answers.begin(), planted.answers.end(), [](const Answer& answer) {
      return answer.same_numbers && answer.explanation.cause == Cause::kLostPath;
    });
  };
  EXPECT_TRUE(loses_a_path(*Find(Catalogue("tp2.ep2.etp1"), "skip-rank 1 y_TD@tp")));
  EXPECT_FALSE(loses_a_path(*Find(Catalogue("tp2"), "skip-rank 1 y_TD@tp")));
}

TEST(CatalogueOf, PlantsMeansOfTheSameNumbersOnce) {
  const auto catalogue = Catalogue("dp2.tp2");
  const PlantedFault* planted = Find(catalogue, "mean d_gate_ED@tp");
  ASSERT_NE(planted, nullptr);
  EXPECT_EQ(planted->answers[1].explanation.axes, (std::vector<Axis>{Axis::kDpShard}));
  EXPECT_EQ(Find(catalogue, "mean d_gate_ED@dp_shard"), nullptr);
}

TEST(CatalogueOf, ProvesWhatCannotBeSeen) {
  const auto inside = Catalogue("tp2.ep2.etp1", {.tp_backward = TpBackward::kSumInside});
  EXPECT_EQ(Find(inside, "drop d_gate_ED@tp")->equivalent, "the value is whole on tp already");
  EXPECT_EQ(Find(inside, "drop d_routed_TD@tp")->equivalent,
            "every rank keeps the rows of the tokens that it routed itself");
  const auto batch_of_two = Catalogue("tp2.ep2.etp1.lb2", {.tp_backward = TpBackward::kSumInside});
  EXPECT_EQ(Find(batch_of_two, "drop d_routed_TD@tp")->equivalent, "");
  const auto means = Catalogue("dp6.ep2", {.dp_reduction = DpReduction::kMean});
  EXPECT_NE(Find(means, "mean d_gate_ED@dp_shard")->equivalent, "");
  EXPECT_EQ(Find(means, "mean d_w1_EFD@edp")->answers[0].explanation.factor, 2.0);
}

}  // namespace
}  // namespace moe
