#include "harness/campaign/campaign_report.h"

#include <gtest/gtest.h>

namespace moe {
namespace {

Mutant Make(const std::string& bug_class, const std::string& dtype, Outcome outcome) {
  return {.id = "a/b@tp2",
          .layout = "tp2",
          .dtype = dtype,
          .fill = "uniform",
          .fault = "drop d_gate_ED@tp",
          .bug_class = bug_class,
          .tensor = "d_gate_ED",
          .outcome = outcome,
          .why = IsKilled(outcome) ? "" : "d_gate_ED is off by 1e-3",
          .repro = "build/moegate run"};
}

Campaign Mixed() {
  return {.mutants = {Make("FC1", "float64", Outcome::kNamedRight),
                      Make("FC1", "float32", Outcome::kAmbiguous),
                      Make("FC10", "float32", Outcome::kUnnamed),
                      Make("FC2", "float32", Outcome::kEquivalent),
                      Make("FC2", "bfloat16", Outcome::kUnseen)}};
}

TEST(CampaignReport, CountsEveryOutcomeInTotalAndByItsKeys) {
  const Json json = ToJson(Mixed());
  EXPECT_EQ(json["total"]["planted"], 5);
  EXPECT_EQ(json["total"]["killed"], 3);
  EXPECT_EQ(json["total"]["named_right"], 1);
  EXPECT_EQ(json["total"]["equivalent"], 1);
  EXPECT_EQ(json["class"]["FC1"]["ambiguous"], 1);
  EXPECT_EQ(json["dtype"]["float32"]["planted"], 3);
  EXPECT_EQ(json["fill"]["uniform"]["planted"], 5);
  EXPECT_EQ(json["layout"]["tp2"]["planted"], 5);
  EXPECT_EQ(json["tensor"]["d_gate_ED"]["unseen"], 1);
  EXPECT_EQ(json["faults"].size(), 5U);
}

TEST(CampaignReport, SharesOutWhatIsNamedRightAmongThoseWithAName) {
  EXPECT_EQ(ToJson(Mixed())["total"]["named_right_share"], 0.5);  // unnamed ones do not count
}

TEST(CampaignReport, HoldsUnlessSomethingSurvivesOrIsNamedWrongOrFailsWithoutAFault) {
  EXPECT_TRUE(Holds(Mixed()));
  for (const Outcome outcome : {Outcome::kSurvived, Outcome::kNamedWrong}) {
    Campaign campaign = Mixed();
    campaign.mutants.push_back(Make("FC1", "float64", outcome));
    EXPECT_FALSE(Holds(campaign)) << ToText(outcome);
  }
  Campaign unclean = Mixed();
  unclean.unclean = {"a/b@tp2 float64"};
  EXPECT_FALSE(Holds(unclean));
  EXPECT_FALSE(Holds({})) << "nothing planted proves nothing";
}

TEST(CampaignReport, OrdersClassesByNumberAndShowsWhatWentWrongWithItsReproLine) {
  Campaign campaign = Mixed();
  campaign.mutants.push_back(Make("FC1", "float64", Outcome::kSurvived));
  const std::string text = ToText(campaign);
  EXPECT_LT(text.find("FC2 "), text.find("FC10 "));
  EXPECT_NE(text.find("SURVIVED (1)\n  a/b@tp2 float64 'drop d_gate_ED@tp': d_gate_ED is off by "
                      "1e-3\n    repro  build/moegate run\n"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("campaign FAILED"), std::string::npos);
}

TEST(CampaignReport, ShowsWhichFaultsEndedTheStep) {
  Campaign campaign = Mixed();
  campaign.mutants.push_back(Make("FC1", "float64", Outcome::kCrashed));
  EXPECT_NE(ToText(campaign).find("CRASHED (1)\n  a/b@tp2 float64 'drop d_gate_ED@tp'"),
            std::string::npos);
}

}  // namespace
}  // namespace moe
