// A correct step's results, cut into a dump, tampered with, and judged.
#include "harness/explain/judge.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <random>

#include "harness/base/error.h"
#include "harness/layout/step_graph.h"
#include "harness/measure/problem.h"
#include "harness/measure/tolerance.h"
#include "harness/step_under_test.h"
#include "reference/moe_reference.h"

namespace moe {
namespace {

using testing::AssertionFailure;
using testing::AssertionResult;
using testing::AssertionSuccess;

AssertionResult Passes(const Judgement& judgement) {
  for (const Finding& finding : judgement.findings) {
    if (finding.verdict != Verdict::kPass) {
      return AssertionFailure() << finding.tensor << " " << Told(finding);
    }
  }
  return judgement.verdict == Verdict::kPass ? AssertionSuccess() : AssertionFailure() << "no pass";
}

AssertionResult Has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos ? AssertionSuccess() : AssertionFailure() << text;
}

bool Notes(const Judgement& judgement, const std::string& part) {
  const auto notes = NotesOf(judgement);
  return std::any_of(notes.begin(), notes.end(),
                     [&](const std::string& note) { return note.find(part) != std::string::npos; });
}

std::string ErrorOf(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

using Ranks = std::vector<std::int64_t>;

double RoundedToBfloat16(double value) {
  int exponent = 0;
  const double fraction = std::frexp(value, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(fraction, 8)), exponent - 8);
}

TEST(Judge, PassesTheReferenceItself) {
  for (const char* layout : {"dp1", "tp2", "dp2.tp3.ep2.etp1", "dp4.ep4"}) {
    const Judgement judgement = Step(layout).Run().Judge();
    EXPECT_TRUE(Passes(judgement)) << layout;
    EXPECT_TRUE(judgement.routing.compared);
    EXPECT_EQ(judgement.slots, 24);
  }
}

TEST(Judge, AllowsTheRoundingOfTheDtypeAndNoMore) {
  Step step("dp2.tp2.ep2.etp1");
  step.Run();
  for (const char* name : {"y_TD", "d_x_TD", "d_gate_ED", "d_w1_EFD", "d_w3_EFD", "d_w2_EDF"}) {
    for (double& value : step.whole[name]) {
      value = RoundedToBfloat16(value);
    }
  }
  step.manifest.dtype = Dtype::kBfloat16;
  EXPECT_TRUE(Passes(step.Judge()));
  step.manifest.dtype = Dtype::kFloat32;
  const Judgement judgement = step.Judge();
  EXPECT_EQ(judgement.verdict, Verdict::kFail);
}

TEST(Judge, AllowsNothingWhereTheProblemIsExact) {
  const JudgeOptions exact{.exact = true};
  EXPECT_TRUE(Passes(Step("tp2").Run().Judge(exact)));
  Step step("tp2");
  step.Run().Scale("d_gate_ED", 1.0 + 0x1p-52);
  EXPECT_TRUE(Passes(step.Judge()));
  EXPECT_EQ(step.FindingOf("d_gate_ED", exact).verdict, Verdict::kFail);
  EXPECT_EQ(step.FindingOf("d_x_TD", exact).verdict, Verdict::kPass);
  step.manifest.dtype = Dtype::kFloat16;  // ends at 65504, so it need not hold an exact problem
  EXPECT_TRUE(Passes(step.Judge(exact)));
}

TEST(Judge, NamesTheSumThatIsMissing) {
  Step step("dp2.tp3.ep2.etp1");
  step.Run().LeaveShares("d_gate_ED", {Axis::kTp});
  const Finding finding = step.FindingOf("d_gate_ED");
  EXPECT_EQ(Told(finding), "fail: missing_sum [tp] missing sum over tp");
  EXPECT_EQ(finding.ranks, (Ranks{0, 1, 2, 3, 4, 5}));
  EXPECT_LT(finding.residual, 1e-14);

  step = Step("dp2.tp3.ep2.etp1");
  step.Run().LeaveShares("d_gate_ED", {Axis::kDpShard});
  EXPECT_EQ(Told(step.FindingOf("d_gate_ED")),
            "fail: missing_sum [dp_shard] missing sum over dp_shard");
}

TEST(Judge, TellsAMissingSumApartThoughTheAxesHaveOneSize) {
  Step step("dp2.tp2");
  step.Run().LeaveShares("d_gate_ED", {Axis::kTp});
  EXPECT_EQ(Told(step.FindingOf("d_gate_ED")), "fail: missing_sum [tp] missing sum over tp");
}

TEST(Judge, NamesAMissingSumOverAProductOfAxes) {
  Step step("dp2.tp3.ep2.etp1");
  step.Run().LeaveShares("d_gate_ED", {Axis::kDpShard, Axis::kTp});
  EXPECT_EQ(Told(step.FindingOf("d_gate_ED")),
            "fail: missing_sum [dp_shard tp] missing sum over dp_shard * tp");
}

TEST(Judge, NamesTheSumThatExpertsMiss) {
  Step step("dp2.tp3.ep2.etp1");
  step.Run().LeaveShares("d_w2_EDF", {Axis::kEdp});
  EXPECT_EQ(Told(step.FindingOf("d_w2_EDF")), "fail: missing_sum [edp] missing sum over edp");
}

TEST(Judge, CarriesOutADeclaredSumFirst) {
  Step step("dp2.tp3.ep2.etp1");
  step.Run().LeaveShares("d_gate_ED", {Axis::kTp});
  step.manifest.tensors["d_gate_ED"].placements = {{Axis::kTp, Partial()}};
  EXPECT_TRUE(Passes(step.Judge()));
}

TEST(Judge, TellsASumThatWasDeclaredOwedButDone) {
  Step step("dp2.tp3.ep2.etp1");
  step.Run();
  step.manifest.tensors["d_gate_ED"].placements = {{Axis::kTp, Partial()}};
  EXPECT_EQ(Told(step.FindingOf("d_gate_ED")), "fail: double_sum [tp] sum over tp counted twice");
}

TEST(Judge, TellsADoubleSumFromAMean) {
  for (const auto& [factor, told] : std::map<double, std::string>{
           {2.0, "fail: double_sum [dp_shard] sum over dp_shard counted twice"},
           {3.0, "fail: double_sum [tp] sum over tp counted twice"},
           {6.0, "fail: double_sum [dp_shard tp] sum over dp_shard * tp counted twice"},
           {1.0 / 2.0, "fail: mean_for_sum [dp_shard] mean over dp_shard instead of the sum"},
           {1.0 / 3.0, "fail: mean_for_sum [tp] mean over tp instead of the sum"}}) {
    Step step("dp2.tp3.ep2.etp1");
    step.Run().Scale("d_gate_ED", factor);
    EXPECT_EQ(Told(step.FindingOf("d_gate_ED")), told);
  }
}

TEST(Judge, ListsTheCausesThatGiveTheSameNumbers) {
  Step step("dp2.tp2");
  step.Run().Scale("d_gate_ED", 2.0);
  const Finding finding = step.FindingOf("d_gate_ED");
  EXPECT_EQ(Told(finding),
            "fail: ambiguous [] sum over dp_shard counted twice, or sum over tp counted twice");
  ASSERT_EQ(finding.candidates.size(), 2U);
  EXPECT_EQ(finding.candidates[0].axes, (std::vector{Axis::kDpShard}));
  EXPECT_EQ(finding.candidates[1].axes, (std::vector{Axis::kTp}));
}

TEST(Judge, GivesTheFactorOfAWrongScale) {
  Step step("dp2.tp3.ep2.etp1");
  step.Run().Scale("d_gate_ED", 5.0).Scale("d_w1_EFD", 2.0);
  const Finding gate = step.FindingOf("d_gate_ED");
  EXPECT_EQ(Told(gate), "fail: wrong_scale [] wrong scale: 5 times the reference");
  EXPECT_NEAR(gate.explanation.factor.value(), 5.0, 1e-12);
  EXPECT_EQ(Told(step.FindingOf("d_w1_EFD")),
            "fail: wrong_scale [] wrong scale: 2 times the reference, which is the size of "
            "dp_shard, or the size of ep, or top_k");
}

// A bfloat16 step whose results are all rounded, with one of them scaled by 1 + scale.
Judgement JudgeScaled(const std::string& tensor, double scale) {
  Step step("dp2.tp2.ep2.etp1");
  step.manifest.dtype = Dtype::kBfloat16;
  step.Run().Scale(tensor, 1.0 + scale);
  for (const TensorInfo& result : ResultsOf(step.manifest.model)) {
    step.Tamper(result.name, [](std::int64_t, Values& local) {
      std::transform(local.begin(), local.end(), local.begin(), RoundedToBfloat16);
    });
  }
  return step.Judge();
}

TEST(Judge, SeesAWrongFactorFromTheDetectableScaleOn) {
  const Judgement clean = JudgeScaled("y_TD", 0.0);
  ASSERT_TRUE(Passes(clean));
  for (const auto& [tensor, measured] : clean.measured) {
    EXPECT_LT(measured.detectable_scale, 0.1) << tensor;
    for (const double side : {-1.0, 1.0}) {
      EXPECT_EQ(JudgeScaled(tensor, side * 1.01 * measured.detectable_scale).verdict,
                Verdict::kFail)
          << tensor;
      EXPECT_TRUE(Passes(JudgeScaled(tensor, side * 0.1 * measured.detectable_scale))) << tensor;
    }
  }
}

TEST(Judge, NamesAFactorThatNoSliceCouldTell) {
  const double scale = 1.01 * JudgeScaled("y_TD", 0.0).measured.at("d_w1_EFD").detectable_scale;
  const Judgement judgement = JudgeScaled("d_w1_EFD", scale);
  const auto finding = std::find_if(judgement.findings.begin(), judgement.findings.end(),
                                    [](const Finding& f) { return f.tensor == "d_w1_EFD"; });
  EXPECT_EQ(finding->explanation.cause, Cause::kWrongScale);
  EXPECT_NEAR(*finding->explanation.factor, 1.0 + scale, 0.2 * scale);
  EXPECT_EQ(finding->ranks, (Ranks{0, 1, 2, 3}));
  EXPECT_TRUE(TextOf(*finding).starts_with("wrong scale: 1.0"));
  EXPECT_TRUE(Has(EvidenceOf(*finding).back(), "each alone is within its tolerance"));
}

TEST(Judge, AppliesTheDeclaredScale) {
  Step step("dp2.tp2");
  step.Run().Scale("d_gate_ED", 0.25);
  step.manifest.tensors["d_gate_ED"].scale = 4.0;
  EXPECT_TRUE(Passes(step.Judge()));
}

TEST(Judge, FindsTheFirstNumberThatIsNone) {
  // Rank 3 of dp2.ep2 holds experts 2 and 3; its element [1, 4, 5] is [3, 4, 5] of the whole.
  for (const auto& [value, told] : std::vector<std::pair<double, std::string>>{
           {std::numeric_limits<double>::quiet_NaN(),
            "fail: corruption [] NaN at [3, 4, 5] on rank 3"},
           {-std::numeric_limits<double>::infinity(),
            "fail: corruption [] Inf at [3, 4, 5] on rank 3"}}) {
    Step step("dp4.ep2");
    step.Run().Tamper("d_w1_EFD", [value = value](std::int64_t rank, Values& local) {
      local[(1 * 6 + 4) * 8 + 5] = rank == 3 ? value : local[(1 * 6 + 4) * 8 + 5];
    });
    const Finding finding = step.FindingOf("d_w1_EFD");
    EXPECT_EQ(Told(finding), told);
    EXPECT_EQ(finding.ranks, (Ranks{3}));
  }
}

// Its square overflows, and least squares would make a factor of it.
TEST(Judge, CallsAnElementBeyondAllMeasureCorrupt) {
  Step step("dp2.tp3.ep2.etp1");
  step.Run().Tamper("d_gate_ED", [](std::int64_t rank, Values& local) {
    local[9] = rank == 4 ? 1e200 : local[9];
  });
  EXPECT_EQ(Told(step.FindingOf("d_gate_ED")), "fail: corruption [] 1.0e+200 at [1, 1] on rank 4");
}

TEST(Judge, RefusesAProblemThatOverflows) {
  Step step("dp2");
  step.Run();
  step.manifest.model.route_scale = 1e200;
  EXPECT_TRUE(Has(ErrorOf([&] { step.Judge(); }), "overflows in float64"))
      << ErrorOf([&] { step.Judge(); });
}

TEST(Judge, ProvesNothingWithoutAGradient) {
  Step step("dp2");
  step.Run();
  for (const TensorInfo& result : ResultsOf(step.manifest.model)) {
    if (result.name != "y_TD") {
      step.Drop(result.name);
      step.manifest.not_dumped.push_back(result.name);
    }
  }
  EXPECT_EQ(step.Judge().verdict, Verdict::kVacuous);
}

// An idle expert's zeros: the square of 1e-200 is zero too.
TEST(Judge, ComparesTinyElementsWhereTheProblemIsExact) {
  Step step("dp2");
  Values& gate = step.problem["gate_ED"];
  std::fill(gate.begin(), gate.begin() + 8, -1.0);
  Values& x = step.problem["x_TD"];
  for (double& value : x) {
    value = std::abs(value) + 0.125;
  }
  std::fill(gate.begin() + 8, gate.end(), 1.0);
  gate[17] = 2.0;
  gate[26] = 2.0;
  step.Run();
  const Values whole = step.whole["d_w1_EFD"];
  ASSERT_EQ(whole[0], 0.0);
  step.Tamper("d_w1_EFD", [](std::int64_t, Values& local) { local[0] = 1e-200; });
  EXPECT_EQ(step.FindingOf("d_w1_EFD", {.exact = true}).verdict, Verdict::kFail);
}

// Expert 3 has no token; its slice is not zero, and an element of another expert is wrong too.
TEST(Judge, NamesTheFirstWrongElementWhenOneIsALeftover) {
  Model model = SmallModel();
  model.d_expert = 40;
  Step step("dp2", model);
  Values& x = step.problem["x_TD"];
  for (double& value : x) {
    value = std::abs(value) + 0.125;
  }
  Values& gate = step.problem["gate_ED"];
  std::fill(gate.begin() + 3 * 8, gate.end(), -4.0);
  step.Run();
  ASSERT_EQ(step.whole["d_w1_EFD"][3 * 320 + 5], 0.0);
  ASSERT_NE(step.whole["d_w1_EFD"][320 + 9], 0.0);
  step.Tamper("d_w1_EFD", [](std::int64_t rank, Values& local) {
    local[3 * 320 + 5] = rank == 1 ? 900.0 : local[3 * 320 + 5];
    local[320 + 9] += rank == 1 ? 1.0 : 0.0;
  });
  const Finding finding = step.FindingOf("d_w1_EFD");
  EXPECT_EQ(finding.explanation.cause, Cause::kCorruption);
  EXPECT_TRUE(TextOf(finding).starts_with("a few elements are wrong: [")) << TextOf(finding);
}

// Wrong counts that happen to be powers of two: nobody rounds counts to one bit.
TEST(Judge, TakesNoSmallCountsForRoundedOnes) {
  Step step("dp2");
  step.Run().Tamper("tokens_per_expert_E", [](std::int64_t, Values& local) {
    for (double& count : local) {
      count = std::exp2(std::round(std::log2(count)));
    }
  });
  const Finding finding = step.FindingOf("tokens_per_expert_E");
  EXPECT_EQ(finding.verdict, Verdict::kFail);
  EXPECT_NE(finding.explanation.cause, Cause::kPrecision) << TextOf(finding);
}

TEST(Judge, SaysWhatADeclaredCastAllows) {
  Step step("dp2");
  step.manifest.casts["scores_TE"] = Dtype::kBfloat16;
  step.Run();
  EXPECT_TRUE(FloorOf(step.Judge()).starts_with("scores_TE in bfloat16: y_TD may be off by "));
}

TEST(Judge, SaysWhichClaimsItReliedOn) {
  Step step("dp2.tp2.ep2.etp1");
  step.manifest.tensors.at("d_gate_ED").placements[Axis::kDpShard] = Partial();
  step.Run();
  const std::vector<std::string> claims = DescribeClaims(step.manifest);
  EXPECT_TRUE(std::find(claims.begin(), claims.end(),
                        "d_gate_ED: P (summed here) on dp_shard, R on tp") != claims.end())
      << claims.size();
}

TEST(Judge, SaysWhatItCouldNotJudge) {
  Step step("dp2.tp2.ep2.etp1");
  step.manifest.missing["d_w2_EDF"] = "experts.w2.grad is None on rank 1";
  step.manifest.missing["tokens_per_expert_E"] = "the router is fused";
  step.manifest.not_dumped = {"d_w3_EFD"};
  step.Run().Drop("d_w2_EDF").Drop("d_w3_EFD").Drop("d_x_TD").Drop("topk_expert_TK");
  step.Drop("tokens_per_expert_E");
  for (const Axis axis : {Axis::kDpShard, Axis::kTp}) {
    step.manifest.tensors.at("d_gate_ED").placements[axis] = Shard(axis == Axis::kTp ? 1 : 0);
  }
  EXPECT_EQ(DescribeGaps(step.manifest),
            (std::vector<std::string>{"d_x_TD: not dumped, without a reason",
                                      "d_w3_EFD: left out on purpose (not_dumped)",
                                      "d_w2_EDF: experts.w2.grad is None on rank 1",
                                      "routing, but for its effects: topk_expert_TK: not dumped",
                                      "token counts: tokens_per_expert_E: the router is fused",
                                      "replicas of d_gate_ED: no two ranks hold the same slice"}));
}

TEST(Judge, DoubtsTheClaimThatWouldBeWrongIfTheGradientWereRight) {
  Step step("tp2");
  step.Run().LeaveShares("d_gate_ED", {Axis::kTp});
  const Finding finding = step.FindingOf("d_gate_ED");
  EXPECT_EQ(finding.explanation.cause, Cause::kMissingSum);
  EXPECT_TRUE(Has(EvidenceOf(finding).back(), "sums it over tp, it is P there, not R"));
}

TEST(Judge, DoubtsAClaimOnlyWhereItIsMade) {
  Step step("tp2");
  step.manifest.tensors.at("d_gate_ED").placements = {{Axis::kTp, Partial()}};
  const Finding owed = step.Run().FindingOf("d_gate_ED");
  EXPECT_EQ(owed.explanation.cause, Cause::kDoubleSum);
  EXPECT_TRUE(Has(EvidenceOf(owed).back(), "summed over tp already, it is R there, not P"));
  step.manifest.tensors.at("d_gate_ED").placements = {};
  const Finding doubled = step.Scale("d_gate_ED", 2.0).FindingOf("d_gate_ED");
  EXPECT_EQ(doubled.explanation.cause, Cause::kDoubleSum) << Told(doubled);
  EXPECT_FALSE(Has(EvidenceOf(doubled).back(), "the claim is wrong")) << EvidenceOf(doubled).back();
}

// Rows that lack what another slice of the hidden units gives: no claim on these rows would say so.
TEST(Judge, DoubtsNoClaimOfRowsThatAreSharded) {
  Step half("tp2");
  Values& w2_EDF = half.problem["w2_EDF"];
  const auto hidden = static_cast<std::size_t>(half.manifest.model.d_expert);
  for (std::size_t i = 0; i < w2_EDF.size(); ++i) {
    w2_EDF[i] *= i % hidden < hidden / 2 ? 1.0 : 0.0;
  }
  const Values of_first_half = half.Run().whole.at("y_TD");
  Step step("tp2");
  step.Run().Tamper("y_TD", [&](std::int64_t rank, Values& local) {
    for (std::size_t i = 0; i < local.size(); ++i) {
      const double first = of_first_half[static_cast<std::size_t>(rank) * local.size() + i];
      local[i] = rank == 0 ? first : local[i] - first;
    }
  });
  const Finding finding = step.FindingOf("y_TD");
  EXPECT_EQ(finding.explanation.cause, Cause::kMissingSum) << Told(finding);
  EXPECT_FALSE(Has(EvidenceOf(finding).back(), "the claim is wrong")) << EvidenceOf(finding).back();
}

TEST(Judge, SaysWhyATensorIsMissing) {
  Step step("dp2");
  step.manifest.missing["d_w1_EFD"] = "experts.w1.grad is None on rank 1";
  step.manifest.tensors.erase("d_w1_EFD");
  step.Run();
  const Judgement judgement = step.Judge();
  EXPECT_EQ(judgement.verdict, Verdict::kVacuous);
  EXPECT_TRUE(
      std::any_of(judgement.findings.begin(), judgement.findings.end(), [](const Finding& f) {
        return TextOf(f) == "d_w1_EFD is missing: experts.w1.grad is None on rank 1";
      }));
}

TEST(Judge, BlamesTheOneElementThatIsWrong) {
  Step step("dp2.tp3.ep2.etp1");
  step.Run().Tamper("d_gate_ED",
                    [](std::int64_t rank, Values& local) { local[9] += rank == 4 ? 0.5 : 0.0; });
  const Finding finding = step.FindingOf("d_gate_ED");
  EXPECT_EQ(finding.verdict, Verdict::kFail);
  EXPECT_EQ(finding.explanation.cause, Cause::kCorruption);
  EXPECT_TRUE(TextOf(finding).starts_with("a few elements are wrong: [1, 1] is "))
      << TextOf(finding);
  EXPECT_EQ(finding.ranks, (Ranks{4}));
  ASSERT_FALSE(EvidenceOf(finding).empty());
  EXPECT_TRUE(Has(EvidenceOf(finding)[0], "worst: expert 1 on rank 4"));
}

TEST(Judge, CallsADifferenceOfNothingNoScale) {
  Step step("tp2");
  step.Run().Scale("d_gate_ED", 1.0 + 1e-13).Tamper("d_gate_ED", [](std::int64_t, Values& local) {
    local[0] *= 1.0 + 3e-13;
  });
  EXPECT_EQ(step.FindingOf("d_gate_ED").explanation.cause, Cause::kUnexplained);
}

TEST(Judge, SaysThatAGradientNeverCame) {
  Step step("tp2");
  step.Run().Scale("d_gate_ED", 0.0);
  EXPECT_EQ(Told(step.FindingOf("d_gate_ED")),
            "fail: lost_path [] nothing comes along the scores path");
}

TEST(Judge, FollowsStridedShards) {
  Step step("dp2.tp3.ep2.etp1");
  step.Run();
  auto& rows = step.manifest.tensors["d_w1_EFD"];
  rows.placements = {{Axis::kEp, StridedShard(0, 2)}, {Axis::kEdp, Shard(1)}};
  EXPECT_EQ(SliceOf(step.manifest, "d_w1_EFD", 0).index[0], (Ranks{0, 2}));
  EXPECT_TRUE(Passes(step.Judge()));
}

TEST(Judge, FollowsTokenLists) {
  Step step("dp2.tp2");
  step.Run();
  step.manifest.tokens = {{0, 3, 1}, {11, 2, 4}, {5, 7, 9}, {10, 8, 6}};
  EXPECT_TRUE(Passes(step.Judge()));
  step.Tamper("d_x_TD", [](std::int64_t rank, Values& local) {
    std::swap_ranges(local.begin(), local.begin() + (rank == 1 ? 8 : 0), local.begin() + 8);
  });
  const Finding finding = step.FindingOf("d_x_TD");
  EXPECT_EQ(finding.verdict, Verdict::kFail);
  EXPECT_EQ(finding.ranks, (Ranks{1}));
}

TEST(Judge, WantsExactZerosOfAnExpertWithoutTokens) {
  Model model = SmallModel();
  model.expert_bias = true;
  Step step("dp2.ep2", model);
  step.problem["expert_bias_E"] = {0.0, 0.0, 0.0, -10.0};
  step.Run();
  const Judgement judgement = step.Judge();
  EXPECT_TRUE(Passes(judgement));
  EXPECT_TRUE(Notes(judgement, "expert 3 got no tokens"));
  step.Tamper("d_w2_EDF",
              [](std::int64_t rank, Values& local) { local.back() += rank == 1 ? 1e-30 : 0.0; });
  const Finding finding = step.FindingOf("d_w2_EDF");
  EXPECT_EQ(finding.verdict, Verdict::kFail);
  EXPECT_EQ(finding.ranks, (Ranks{1}));
}

TEST(Judge, ProvesNothingAboutATensorThatIsNotThere) {
  Step step("tp2");
  step.Run().Drop("d_w3_EFD");
  EXPECT_EQ(step.Judge().verdict, Verdict::kVacuous);
  EXPECT_TRUE(Has(TextOf(step.FindingOf("d_w3_EFD")), "neither dumped nor named in not_dumped"));
  step.manifest.not_dumped = {"d_w3_EFD"};
  const Judgement judgement = step.Judge();
  EXPECT_TRUE(Passes(judgement));
  EXPECT_EQ(DescribeGaps(step.manifest).front(), "d_w3_EFD: left out on purpose (not_dumped)");
}

TEST(Judge, ProvesNothingWithAZeroCotangent) {
  Step step("tp2");
  std::fill(step.problem["d_y_TD"].begin(), step.problem["d_y_TD"].end(), 0.0);
  step.Run();
  const Judgement judgement = step.Judge();
  EXPECT_EQ(judgement.verdict, Verdict::kVacuous);
  EXPECT_EQ(step.FindingOf("y_TD").verdict, Verdict::kPass);
  EXPECT_TRUE(Has(TextOf(step.FindingOf("d_gate_ED")), "zero in the reference and proves nothing"));
}

TEST(Judge, BlamesRoutingForATokenThatGoesAstray) {
  Step step("tp2");
  reference::Routing routing = step.Routing();
  const std::int64_t chosen = routing.topk_expert_TK(7, 1);
  for (std::int64_t other = 0; other < 4; ++other) {
    if (other != chosen && other != routing.topk_expert_TK(7, 0)) {
      routing.topk_expert_TK(7, 1) = other;
    }
  }
  step.Run(&routing);
  const Finding finding = step.FindingOf("topk_expert_TK");
  EXPECT_EQ(finding.verdict, Verdict::kFail);
  EXPECT_TRUE(TextOf(finding).starts_with("token 7 goes to experts "));
  EXPECT_EQ(finding.ranks, (Ranks{1}));
  EXPECT_EQ(step.FindingOf("d_gate_ED").verdict, Verdict::kPass)
      << "the gradients are not at fault";
}

// Experts 0 and 3 tie for every token; the first that goes to 0 goes to `expert` instead.
Step StepWithTies(std::int64_t expert) {
  Model model = SmallModel();
  model.top_k = 1;
  Step step("tp2", model);
  Values& gate = step.problem["gate_ED"];
  std::copy_n(gate.begin(), 8, gate.begin() + 3 * 8);
  reference::Routing routing = step.Routing();
  std::int64_t tied = 0;
  while (routing.topk_expert_TK(tied, 0) != 0) {
    ++tied;
  }
  routing.topk_expert_TK(tied, 0) = expert;
  step.Run(&routing);
  return step;
}

TEST(Judge, LetsATieFallEitherWay) {
  Step step = StepWithTies(3);
  const Judgement judgement = step.Judge();
  EXPECT_TRUE(Passes(judgement));
  EXPECT_TRUE(Notes(judgement,
                    "tie: 1 tokens are routed otherwise than in the reference, within "
                    "rounding (token "));
}

TEST(Judge, TakesNoFlipForATieBecauseItsTokenHasOne) {
  Step step = StepWithTies(1);  // not one of the two
  EXPECT_EQ(step.FindingOf("topk_expert_TK").verdict, Verdict::kFail);
}

// Experts 0 and 3 whose logits differ by about `gap` for every token, of which one goes to 3.
Step StepWithGap(double gap) {
  Model model = SmallModel();
  model.top_k = 1;
  Step step("tp2", model);
  Values& gate = step.problem["gate_ED"];
  for (std::size_t i = 0; i < 8; ++i) {
    gate[3 * 8 + i] = gate[i] * (1.0 - gap);
  }
  reference::Routing routing = step.Routing();
  for (std::int64_t token = 0; token < model.tokens; ++token) {
    if (routing.topk_expert_TK(token, 0) == 0) {
      routing.topk_expert_TK(token, 0) = 3;
      step.Run(&routing);
      return step;
    }
  }
  return step;
}

TEST(Judge, MeasuresATieByTheDtypeOfTheLogits) {
  Step step = StepWithGap(1e-4);
  EXPECT_EQ(step.FindingOf("topk_expert_TK").verdict, Verdict::kFail);
  step.manifest.dtype = Dtype::kFloat32;
  EXPECT_EQ(step.FindingOf("topk_expert_TK").verdict, Verdict::kFail);
  step.manifest.casts = {{"logits_TE", Dtype::kBfloat16}};
  EXPECT_EQ(step.FindingOf("topk_expert_TK").verdict, Verdict::kPass);
  step.Drop("topk_expert_TK");
  EXPECT_TRUE(Notes(step.Judge(), "a tie may have fallen otherwise than in the reference"));
}

TEST(Judge, MeasuresATieByTheDeclaredCasts) {
  Step step = StepWithGap(1e-9);
  for (const char* stage : {"routed_in_ND", "routed_out_ND"}) {  // come after the choice
    step.manifest.casts = {{stage, Dtype::kFloat32}};
    EXPECT_EQ(step.FindingOf("topk_expert_TK").verdict, Verdict::kFail) << stage;
  }
  for (const char* stage : {"scores_TE", "logits_TE"}) {
    step.manifest.casts = {{stage, Dtype::kFloat32}};
    EXPECT_EQ(step.FindingOf("topk_expert_TK").verdict, Verdict::kPass) << stage;
  }
}

TEST(Judge, RefusesACaseThatRoundingDecides) {
  Step step = StepWithGap(1e-4);
  step.Drop("topk_expert_TK");
  const StepGraph graph(step.manifest.model, step.manifest.layout, {});
  EXPECT_EQ(ErrorOf([&] { step.Judge({.graph = &graph}); }), "no error");
  step.manifest.casts = {{"logits_TE", Dtype::kBfloat16}};
  EXPECT_TRUE(Has(ErrorOf([&] { step.Judge({.graph = &graph}); }),
                  "leaves the choice of experts to rounding in float64 (token "));
}

TEST(Judge, LetsNoNearTieFallTheOtherWayWhereTheProblemIsExact) {
  Model model = SmallModel();
  model.top_k = 1;
  Step step("tp2", model);
  step.manifest.dtype = Dtype::kBfloat16;
  Values& gate = step.problem["gate_ED"];
  std::copy_n(gate.begin(), 8, gate.begin() + 3 * 8);
  gate[3 * 8] += 0x1p-10;  // between experts 0 and 3 far less decides than bfloat16 rounds
  reference::Routing routing = step.Routing();
  std::int64_t close = 0;
  while (routing.topk_expert_TK(close, 0) % 3 != 0) {
    ASSERT_LT(++close, model.tokens);
  }
  routing.topk_expert_TK(close, 0) = 3 - routing.topk_expert_TK(close, 0);
  step.Run(&routing);
  EXPECT_EQ(step.FindingOf("topk_expert_TK").verdict, Verdict::kPass);
  EXPECT_EQ(step.FindingOf("topk_expert_TK", {.exact = true}).verdict, Verdict::kFail);
}

TEST(Judge, ComparesCountsExactly) {
  Step step("tp2");
  step.Run();
  step.whole["tokens_per_expert_E"][2] += 1.0;
  const Finding finding = step.FindingOf("tokens_per_expert_E");
  EXPECT_EQ(finding.verdict, Verdict::kFail);
  EXPECT_TRUE(Has(TextOf(finding), "expert 2 counts ")) << TextOf(finding);
  EXPECT_EQ(finding.ranks, (Ranks{0, 1}));
}

// A golden file of the step's problem, which allows what the error model does.
Golden GoldenOf(const Step& step) {
  ReferenceSums sums;
  for (const TensorInfo& result : ResultsOf(step.manifest.model)) {
    sums.Add(result.name, step.whole.at(result.name), /*first=*/0);
  }
  return {.smallest_logit_margin = step.Routing().logit_margin_T.minCoeff(),
          .reference = sums.ByTensor()};
}

TEST(Judge, RefusesValuesStoredMoreCoarselyThanTheyClaim) {
  Step step("tp2");
  step.Run().stored_in_float32 = "d_w1_EFD";
  EXPECT_TRUE(
      Has(ErrorOf([&] { step.Judge(); }),
          "d_w1_EFD of rank 0 is stored in float32, which is coarser than the dtype of the step"));
  step.manifest.casts = {{"d_w1_EFD", Dtype::kFloat32}};
  EXPECT_TRUE(Passes(step.Judge()));
  step.Scale("d_w3_EFD", 1.0 + 1e-9);  // stored as before, so it is held to what it was
  EXPECT_EQ(step.FindingOf("d_w3_EFD").verdict, Verdict::kFail);
  EXPECT_EQ(step.FindingOf("d_w1_EFD").verdict, Verdict::kPass);
  // What shares lose is not known from their sum, so everything is held to less.
  step.manifest.tensors.at("d_w1_EFD").placements[Axis::kEdp] = Partial();  // of one rank
  EXPECT_EQ(step.FindingOf("d_w3_EFD").verdict, Verdict::kFail);
  step.manifest.tensors.at("d_w1_EFD").placements[Axis::kEtp] = Partial();
  EXPECT_EQ(step.FindingOf("d_w3_EFD").verdict, Verdict::kPass);
  Golden golden = GoldenOf(step);  // which speaks of a step that stores nothing so
  golden.tolerances[Dtype::kFloat64]["d_w3_EFD"] = {.tolerance = 1e-14};
  EXPECT_EQ(step.FindingOf("d_w3_EFD", {.golden = &golden}).verdict, Verdict::kPass);
  EXPECT_EQ(RoundingOf(step.manifest).reduce, UnitRoundoff(Dtype::kFloat32));
}

TEST(Judge, AllowsNothingForACastOfWhatHasNoRounding) {
  Step step("tp2");
  step.Run().Scale("d_w3_EFD", 1.0 + 1e-9).Drop("d_w1_EFD");
  step.manifest.not_dumped = {"d_w1_EFD"};
  for (const char* tensor : {"tokens_per_expert_E", "topk_expert_TK", "d_w1_EFD"}) {
    step.manifest.casts = {{tensor, Dtype::kBfloat16}};
    EXPECT_EQ(step.FindingOf("d_w3_EFD").verdict, Verdict::kFail) << tensor;
  }
}

TEST(Judge, CountsTheRoundingOfAResultThatIsStoredCoarsely) {
  Step step("tp2");
  step.Run();
  const JudgeOptions options{.worst_case = true};
  const auto before = step.Judge(options).measured;
  step.manifest.casts = {{"d_gate_ED", Dtype::kFloat32}};
  const auto after = step.Judge(options).measured;
  const double unit = UnitRoundoff(Dtype::kFloat32);
  EXPECT_NEAR(after.at("d_gate_ED").worst_case, unit, 1e-3 * unit);
  EXPECT_NEAR(after.at("d_gate_ED").bound, unit, 1e-3 * unit);
  EXPECT_GT(after.at("d_gate_ED").scale_bound, 0.1 * unit);
  EXPECT_EQ(after.at("d_w1_EFD").scale_bound, before.at("d_w1_EFD").scale_bound);
}

// Rounding towards zero in float32, which averages out in nothing.
TEST(Judge, AllowsStagesToRoundInOneDirection) {
  Model model = SmallModel();
  model.tokens = 768;
  Step step("tp2", model);
  const double unit = UnitRoundoff(Dtype::kFloat32);
  step.Run().Scale("y_TD", 1.0 - 3.0 * unit);
  EXPECT_EQ(step.FindingOf("y_TD").verdict, Verdict::kFail);
  step.manifest.casts = {{"routed_out_ND", Dtype::kFloat32}};
  const Judgement judgement = step.Judge();
  EXPECT_LT(judgement.measured.at("y_TD").scale_bound, 1.5 * unit);  // of errors of either sign
  EXPECT_EQ(step.FindingOf("y_TD").verdict, Verdict::kPass);
}

TEST(DumpedProblem, IsPutTogetherFromTheRanks) {
  Step step("dp2.tp3.ep2.etp1");
  step.Run().CarryInputs();
  step.manifest.tensors["x_TD"].placements = {{Axis::kDpShard, StridedShard(0, 2)},
                                              {Axis::kTp, Shard(1)}};
  step.manifest.tensors["w1_EFD"].placements = {{Axis::kTp, Shard(2)}};
  const Dump dump = step.MakeDump();
  EXPECT_TRUE(Passes(Judge(dump, DumpedProblem(dump), {})));
}

TEST(DumpedProblem, IsOneForAllRanks) {
  Step step("tp2");
  step.Run().CarryInputs().Tamper(
      "gate_ED", [](std::int64_t rank, Values& local) { local[9] = rank == 1 ? 0.75 : 0.5; });
  const Dump dump = step.MakeDump();
  EXPECT_TRUE(Has(ErrorOf([&] { Judge(dump, DumpedProblem(dump), {}); }),
                  "different values of one element of gate_ED, 5.000000e-01 on rank 0 and "
                  "7.500000e-01 on rank 1"));
}

TEST(DumpedProblem, IsFinite) {
  for (const std::int64_t bad_rank : {0, 1}) {
    Step step("tp2");
    step.Run().CarryInputs().Tamper("w2_EDF", [&](std::int64_t rank, Values& local) {
      local[9] = rank == bad_rank ? std::numeric_limits<double>::quiet_NaN() : local[9];
    });
    const Dump dump = step.MakeDump();
    EXPECT_TRUE(
        Has(ErrorOf([&] { Judge(dump, DumpedProblem(dump), {}); }), "holds NaN or Inf in w2_EDF"));
  }
}

// A golden file that allows d_gate_ED in bfloat16 a relative error of 1e-3, less than its bound.
Golden NarrowGolden(Step& step) {
  step.manifest.dtype = Dtype::kBfloat16;
  Golden golden = GoldenOf(step);
  golden.tolerances[Dtype::kBfloat16]["d_gate_ED"] = {.tolerance = 1e-3};
  return golden;
}

TEST(Judge, NarrowsAToleranceToThatOfAGoldenFile) {
  Step step("tp2");
  const Golden golden = NarrowGolden(step.Run());
  step.Scale("d_gate_ED", 1.0 + 9e-4);
  EXPECT_TRUE(Passes(step.Judge({.golden = &golden})));
  step.Scale("d_gate_ED", 1.0 + 9e-4);
  EXPECT_EQ(step.Judge({.golden = &golden}).verdict, Verdict::kFail);
  EXPECT_TRUE(Passes(step.Judge()));
}

TEST(Judge, NeverWidensATolerance) {
  Step step("tp2");
  Golden golden = NarrowGolden(step.Run());
  golden.tolerances[Dtype::kBfloat16]["d_gate_ED"].tolerance = 0.9;
  step.Scale("d_gate_ED", 1.5);
  EXPECT_EQ(step.FindingOf("d_gate_ED", {.golden = &golden}).verdict, Verdict::kFail);
}

TEST(Judge, LeavesTheGoldenToleranceToUncastSteps) {
  Step step("tp2");
  Golden golden = NarrowGolden(step.Run());
  step.manifest.dtype = Dtype::kFloat32;
  golden.tolerances[Dtype::kFloat32] = golden.tolerances[Dtype::kBfloat16];
  step.Scale("d_gate_ED", 1.0 + 2e-3);
  EXPECT_EQ(step.FindingOf("d_gate_ED", {.golden = &golden}).verdict, Verdict::kFail);
  step.manifest.casts = {{"scores_TE", Dtype::kBfloat16}};
  EXPECT_EQ(step.FindingOf("d_gate_ED", {.golden = &golden}).verdict, Verdict::kPass);
  step.manifest.casts = {{"d_w1_EFD", Dtype::kBfloat16}};  // another result's business
  EXPECT_EQ(step.FindingOf("d_gate_ED", {.golden = &golden}).verdict, Verdict::kFail);
}

TEST(Judge, RefusesTheGoldenFileOfAnotherProblem) {
  Step step("tp2");
  Golden golden = NarrowGolden(step.Run());
  golden.reference["d_gate_ED"].norm *= 1.001;
  EXPECT_TRUE(
      Has(ErrorOf([&] { step.Judge({.golden = &golden}); }),
          "dump: is not the problem of its golden file: the reference's d_gate_ED has norm"));
}

// All that their order changes is the order of the results' rows.
TEST(Judge, RefusesTheGoldenFileOfTheSameTokensInAnotherOrder) {
  Step right("tp2");
  const Golden golden = GoldenOf(right.Run());
  Step step("tp2");
  for (const char* name : {"x_TD", "d_y_TD"}) {
    Values& rows = step.problem[name];
    std::rotate(rows.begin(), rows.begin() + 8, rows.end());
  }
  step.Run();
  EXPECT_TRUE(Has(ErrorOf([&] { step.Judge({.golden = &golden}); }),
                  "the reference's d_x_TD has the same norm and, with signs, the sum"));
}

}  // namespace
}  // namespace moe
