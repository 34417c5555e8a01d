#include "harness/layout/fault.h"

#include <gtest/gtest.h>

#include "harness/base/error.h"

namespace moe {
namespace {

std::string ComplaintOf(std::string_view text) {
  try {
    ParseFault(text, "here");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

std::string MisfitOf(std::string_view fault, const std::string& layout) {
  constexpr Model kModel = {.tokens = 48, .d_model = 8, .d_expert = 12, .experts = 4, .top_k = 2};
  const StepGraph graph(kModel, ParseLayout(layout, "here"),
                        {.tp_backward = TpBackward::kSumInside});
  return FindMisfit(ParseFault(fault, "here"), graph);
}

TEST(Fault, ReadsWhatItPrints) {
  for (const char* text : {"drop d_gate_ED@tp",
                           "repeat d_w1_EFD@edp",
                           "mean d_gate_ED@dp_shard",
                           "wrong-group ep d_gate_ED@tp",
                           "skip-rank 1 d_gate_ED@dp_replicate",
                           "double-rank 0 d_gate_ED@tp",
                           "skip-rank 1 tokens_per_expert_E",
                           "misread d_gate_ED@tp",
                           "drop-all",
                           "scale 0.5 d_w1_EFD",
                           "scale 0.3333333333333333 tokens_per_expert_E",
                           "permute experts d_w1_EFD",
                           "permute tokens y_TD",
                           "permute hidden d_w2_EDF",
                           "misplace ep d_w1_EFD",
                           "stale-rank 2 d_gate_ED",
                           "round y_TD",
                           "corrupt d_x_TD",
                           "nan d_x_TD",
                           "local-norm d_w3_EFD",
                           "idle-garbage d_w1_EFD",
                           "lose-path gate",
                           "double-path scores",
                           "drop-gather d_y_TD@tp",
                           "shuffle-rows",
                           "split-rows",
                           "leak-slots",
                           "model route_norm"}) {
    EXPECT_EQ(ToText(ParseFault(text, "here")), text);
  }
}

TEST(Fault, ReadsAFactorWrittenAsAFraction) {
  EXPECT_EQ(ParseFault("scale 1/4 d_w1_EFD", "here").factor, 0.25);
  EXPECT_EQ(ParseFault("scale d_w1_EFD 1/4", "here").factor, 0.25);
  for (const std::string text : {"1/0", "half", "1/", "nan"}) {
    EXPECT_EQ(ComplaintOf("scale " + text + " d_w1_EFD"),
              "here: \"" + text + "\" is no factor; use a number such as 0.5 or 1/3");
  }
}

TEST(Fault, ListsWhatAnArgumentMayBe) {
  EXPECT_EQ(ComplaintOf("lose-path side"),
            "here: \"side\" is no path; use gate, routed, shared, scores");
  EXPECT_EQ(ComplaintOf("permute rows y_TD"),
            "here: \"rows\" is no order to change; use experts, tokens, hidden");
  EXPECT_EQ(ComplaintOf("model top_k"),
            "here: \"top_k\" is no option of the model that a step could get wrong; use "
            "score_function, score_placement, route_norm, route_scale, expert_bias");
}

TEST(Fault, TakesItsArgumentOnEitherSide) {
  EXPECT_EQ(ToText(ParseFault("wrong-group d_gate_ED@tp ep", "here")),
            "wrong-group ep d_gate_ED@tp");
  EXPECT_EQ(ToText(ParseFault(" skip-rank  d_gate_ED@tp 1 ", "here")), "skip-rank 1 d_gate_ED@tp");
}

TEST(Fault, ExplainsItsGrammar) {
  const std::string grammar =
      "a fault reads drop R, repeat R, mean R, wrong-group AXIS R, skip-rank RANK R, double-rank "
      "RANK R, misread R, drop-all, scale F X, permute experts|tokens|hidden X, misplace AXIS X, "
      "stale-rank RANK X, round X, corrupt X, nan X, local-norm X, idle-garbage X, lose-path "
      "gate|routed|shared|scores, double-path gate|routed|shared|scores, drop-gather R, "
      "shuffle-rows, split-rows, leak-slots, model KEY with R a reduction such as d_gate_ED@tp and "
      "X a tensor such as d_gate_ED";
  for (const std::string text :
       {"", "drop", "lose d_gate_ED@tp", "drop d_gate_ED", "drop 1 d_gate_ED@tp",
        "Drop d_gate_ED@tp", "wrong-group d_gate_ED@tp", "skip-rank 1 d_gate_ED",
        "mean d_gate_ED@tp d_gate_ED@tp"}) {
    EXPECT_EQ(ComplaintOf(text), "here: \"" + text + "\" is no fault; " + grammar);
  }
}

TEST(Fault, NamesWhatIsNoReduction) {
  for (const std::string text : {"@tp", "d_gate_ED@", "d_gate_ED@dp", "a@b@tp"}) {
    EXPECT_EQ(
        ComplaintOf("drop " + text),
        "here: \"" + text +
            "\" is no reduction; it reads TENSOR@AXIS with an axis of dp_replicate, dp_shard, cp, "
            "tp, edp, ep or etp");
  }
}

TEST(Fault, NamesWhatIsNoAxis) {
  EXPECT_EQ(ComplaintOf("wrong-group dp d_gate_ED@tp"),
            "here: \"dp\" is no axis; use dp_replicate, dp_shard, cp, tp, edp, ep or etp");
}

TEST(Fault, NamesWhatIsNoRank) {
  for (const std::string text : {"-1", "1.5", "one", "99999999999999999999"}) {
    EXPECT_EQ(ComplaintOf("skip-rank " + text + " d_gate_ED@tp"),
              "here: \"" + text + "\" is no rank; use a whole number from 0");
  }
}

TEST(FindMisfit, AcceptsOwedAndSettledSums) {
  EXPECT_EQ(MisfitOf("drop d_logits_TE@tp", "tp2"), "");
  EXPECT_EQ(MisfitOf("drop d_gate_ED@tp", "tp2"), "");  // settled
}

TEST(FindMisfit, ListsTheReductionsThatExist) {
  EXPECT_EQ(MisfitOf("drop d_gate_ED@ep", "tp2"),
            "d_gate_ED@ep does not exist here; this layout has y_TD@tp, d_routed_ND@tp, "
            "d_logits_TE@tp, d_x_TD@tp, d_routed_TD@tp, d_gate_ED@tp");
  EXPECT_EQ(MisfitOf("drop d_gate_ED@tp", "dp1"),
            "d_gate_ED@tp does not exist here: this layout has no reductions at all");
}

TEST(FindMisfit, SendsAWrongGroupOverAnotherAxisThatExists) {
  EXPECT_EQ(MisfitOf("wrong-group dp_shard d_gate_ED@tp", "dp2.tp2"), "");
  EXPECT_EQ(MisfitOf("wrong-group tp d_gate_ED@tp", "dp2.tp2"),
            "wrong-group tp: tp is the right axis of d_gate_ED@tp");
  EXPECT_EQ(MisfitOf("wrong-group cp d_gate_ED@tp", "dp2.tp2"),
            "wrong-group cp: the axis has size 1 here");
}

TEST(FindMisfit, SkipsARankOfTheWorld) {
  EXPECT_EQ(MisfitOf("skip-rank 3 d_gate_ED@tp", "dp2.tp2"), "");
  EXPECT_EQ(MisfitOf("skip-rank 4 d_gate_ED@tp", "dp2.tp2"), "skip-rank 4: the ranks are 0 to 3");
}

TEST(FindMisfit, KnowsWhereATensorCanGoWrong) {
  EXPECT_EQ(MisfitOf("scale 2 d_w1_EFD", "tp2"), "");
  EXPECT_EQ(MisfitOf("scale 2 tokens_per_expert_E", "tp2"), "");
  EXPECT_EQ(MisfitOf("nan d_logits_TE", "tp2"),
            "nan d_logits_TE: there is no such result here; this layout has y_TD, d_x_TD, "
            "d_gate_ED, d_w1_EFD, d_w3_EFD, d_w2_EDF");
  EXPECT_EQ(MisfitOf("permute tokens d_w1_EFD", "tp2"),
            "permute tokens d_w1_EFD: d_w1_EFD has no tokens to permute");
  EXPECT_EQ(MisfitOf("misplace ep d_w1_EFD", "dp2.ep2"), "");
  EXPECT_EQ(MisfitOf("misplace ep d_gate_ED", "dp2.ep2"),
            "misplace ep d_gate_ED: d_gate_ED is not sharded over ep here");
  EXPECT_EQ(MisfitOf("stale-rank 1 d_gate_ED", "tp2"), "");
  EXPECT_EQ(MisfitOf("stale-rank 1 d_w1_EFD", "tp2"),
            "stale-rank 1 d_w1_EFD: d_w1_EFD has no replicas here");
  EXPECT_EQ(MisfitOf("local-norm d_w1_EFD", "dp2"), "");
  EXPECT_EQ(MisfitOf("local-norm d_w1_EFD", "dp2.ep2"),
            "local-norm d_w1_EFD: edp has size 1 here, so there is no share but one's own");
}

TEST(FindMisfit, KnowsWhichPlacesALayoutHas) {
  EXPECT_EQ(MisfitOf("drop-all", "dp2"), "");
  EXPECT_EQ(MisfitOf("drop-all", "tp2"), "drop-all: no parameter is owed a sum here");
  EXPECT_EQ(MisfitOf("lose-path shared", "tp2"),
            "lose-path shared: the model has no shared experts");
  EXPECT_EQ(MisfitOf("leak-slots", "tp2.ep2.etp1"), "");
  EXPECT_EQ(MisfitOf("leak-slots", "tp2"),
            "leak-slots: every rank computes all slots of its tokens here");
  EXPECT_EQ(MisfitOf("drop-gather d_y_TD@tp", "tp2"), "");
  EXPECT_EQ(MisfitOf("drop-gather d_y_TD@tp", "tp2.sp0"),
            "d_y_TD@tp is gathered nowhere here; this layout has no sequence parallelism");
}

// Under folding the ranks of an etp group bring numbers of rows that no other group has.
TEST(FindMisfit, SendsNoSumOfGatheredRowsToOtherRanks) {
  EXPECT_EQ(MisfitOf("drop y_routed_ND@etp", "tp4.etp2"), "");
  EXPECT_EQ(MisfitOf("wrong-group tp d_routed_ND@etp", "tp4.etp2"),
            "wrong-group tp: its ranks got other numbers of rows than those of etp, so no sum of "
            "d_routed_ND over them would run");
}

TEST(FindMisfit, SendsTheSumOfExpertsThatAreAloneToOtherRanks) {
  EXPECT_EQ(MisfitOf("wrong-group dp_shard d_w1_EFD@edp", "dp2.tp1.etp2"), "");
  EXPECT_NE(MisfitOf("drop d_w1_EFD@edp", "dp2.tp1.etp2"), "");
}

TEST(FindMisfit, LeaksSlotsWhereTpRanksHaveTokensOfTheirOwn) {
  EXPECT_EQ(MisfitOf("leak-slots", "tp4.etp2"), "");
  EXPECT_EQ(MisfitOf("leak-slots", "tp2.etp1"), "");
  EXPECT_NE(MisfitOf("leak-slots", "tp2"), "");
  EXPECT_NE(MisfitOf("leak-slots", "dp2.tp1.etp2"), "");
}

}  // namespace
}  // namespace moe
