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
  const StepContract contract =
      MakeContract(kModel, ParseLayout(layout, "here"), {.tp_backward = TpBackward::kSumInside});
  return FindMisfit(ParseFault(fault, "here"), contract);
}

TEST(Fault, ReadsWhatItPrints) {
  for (const char* text : {"drop d_gate_ED@tp", "repeat d_w1_EFD@edp", "mean d_gate_ED@dp_shard",
                           "wrong-group ep d_gate_ED@tp", "skip-rank 1 d_gate_ED@dp_replicate"}) {
    EXPECT_EQ(ToText(ParseFault(text, "here")), text);
  }
}

TEST(Fault, TakesItsArgumentOnEitherSide) {
  EXPECT_EQ(ToText(ParseFault("wrong-group d_gate_ED@tp ep", "here")),
            "wrong-group ep d_gate_ED@tp");
  EXPECT_EQ(ToText(ParseFault(" skip-rank  d_gate_ED@tp 1 ", "here")), "skip-rank 1 d_gate_ED@tp");
}

TEST(Fault, ExplainsItsGrammar) {
  const std::string grammar =
      "a fault reads \"drop R\", \"repeat R\", \"mean R\", \"wrong-group AXIS R\" or \"skip-rank "
      "RANK "
      "R\" with R a reduction such as d_gate_ED@tp";
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

}  // namespace
}  // namespace moe
