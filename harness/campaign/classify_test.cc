// Made-up verdicts of planted faults, one of every outcome.

#include "harness/campaign/classify.h"

#include <gtest/gtest.h>

namespace moe {
namespace {

const PlantedFault kDropGate = {
    .fault = {.kind = Fault::Kind::kDrop, .reduction = {"d_gate_ED", Axis::kTp}},
    .bug_class = "FC1",
    .answers = {{"d_gate_ED", {.cause = Cause::kMissingSum, .axes = {Axis::kTp}}},
                {"d_gate_ED",
                 {.cause = Cause::kDoubleSum, .axes = {Axis::kCp}},
                 /*same_numbers=*/true},
                {"d_x_TD", {.cause = Cause::kMissingSum, .axes = {Axis::kTp}, .path = "gate"}}}};

Finding Failed(const std::string& tensor, const Explanation& explanation,
               std::vector<Explanation> candidates = {}) {
  return {.tensor = tensor,
          .verdict = Verdict::kFail,
          .explanation = explanation,
          .candidates = std::move(candidates)};
}

Outcome OutcomeOf(const std::vector<Finding>& findings, const PlantedFault& planted = kDropGate) {
  return Classify(planted, {.dtype = Dtype::kFloat32},
                  {.verdict = Verdict::kFail, .findings = findings})
      .outcome;
}

const Explanation kMissing = {.cause = Cause::kMissingSum, .axes = {Axis::kTp}};
const Explanation kUnknown = {.cause = Cause::kUnexplained};

TEST(Classify, IsNamedRightByOneTensorWithTheCauseAndItsAxes) {
  EXPECT_EQ(OutcomeOf({Failed("d_gate_ED", kMissing)}), Outcome::kNamedRight);
  EXPECT_EQ(OutcomeOf({Failed("d_gate_ED", {.cause = Cause::kMissingSum, .axes = {Axis::kCp}})}),
            Outcome::kNamedWrong);
  EXPECT_EQ(OutcomeOf({Failed("d_gate_ED", {.cause = Cause::kMeanForSum, .axes = {Axis::kTp}})}),
            Outcome::kNamedWrong);
}

TEST(Classify, AsksForThePathOnlyWhereTheAnswerHasOne) {
  Explanation limited = kMissing;
  limited.path = "gate";
  EXPECT_EQ(OutcomeOf({Failed("d_x_TD", limited)}), Outcome::kNamedRight);
  EXPECT_EQ(OutcomeOf({Failed("d_gate_ED", limited)}), Outcome::kNamedRight);
  limited.path = "routed";
  EXPECT_EQ(OutcomeOf({Failed("d_x_TD", limited)}), Outcome::kNamedWrong);
}

TEST(Classify, IsNamedWrongByAnyOtherDefiniteCause) {
  EXPECT_EQ(
      OutcomeOf({Failed("d_gate_ED", kMissing), Failed("d_w1_EFD", {.cause = Cause::kPrecision})}),
      Outcome::kNamedWrong);
}

TEST(Classify, LetsAFurtherTensorBeUnexplainedAndCountsIt) {
  const Classified classified =
      Classify(kDropGate, {.dtype = Dtype::kFloat32},
               {.verdict = Verdict::kFail,
                .findings = {Failed("d_gate_ED", kMissing), Failed("d_x_TD", kUnknown)}});
  EXPECT_EQ(classified.outcome, Outcome::kNamedRight);
  EXPECT_EQ(classified.unexplained, 1);
}

TEST(Classify, IsAmbiguousWhenTheCauseIsAmongTheCandidates) {
  const Explanation ambiguous = {.cause = Cause::kAmbiguous};
  EXPECT_EQ(OutcomeOf({Failed("d_gate_ED", ambiguous, {{.cause = Cause::kPrecision}, kMissing})}),
            Outcome::kAmbiguous);
  EXPECT_EQ(OutcomeOf({Failed("d_gate_ED", ambiguous, {{.cause = Cause::kPrecision}})}),
            Outcome::kNamedWrong);
  EXPECT_EQ(OutcomeOf({Failed("d_gate_ED", ambiguous, {kMissing}), Failed("d_x_TD", kUnknown)}),
            Outcome::kAmbiguous);
}

TEST(Classify, TakesACauseOfTheSameNumbersForAmbiguous) {
  EXPECT_EQ(OutcomeOf({Failed("d_gate_ED", {.cause = Cause::kDoubleSum, .axes = {Axis::kCp}})}),
            Outcome::kAmbiguous);
}

TEST(Classify, IsUnexplainedWhenNothingIsNamedThoughItHasAName) {
  EXPECT_EQ(OutcomeOf({Failed("d_gate_ED", kUnknown)}), Outcome::kUnexplained);
}

TEST(Classify, TakesAnyFailureOfAFaultWithoutAName) {
  EXPECT_EQ(OutcomeOf({Failed("d_gate_ED", kUnknown)}, {.bug_class = "FC22"}), Outcome::kUnnamed);
}

TEST(Classify, ComparesFactorsToThreeDigitsAndSourcesAsSets) {
  const PlantedFault scaled = {
      .answers = {{"d_gate_ED", {.cause = Cause::kWrongScale, .factor = 0.5}}}};
  const auto with_factor = [&](double factor) {
    return OutcomeOf({Failed("d_gate_ED", {.cause = Cause::kWrongScale, .factor = factor})},
                     scaled);
  };
  EXPECT_EQ(with_factor(0.5004), Outcome::kNamedRight);
  EXPECT_EQ(with_factor(0.5006), Outcome::kNamedWrong);
  const PlantedFault skipped = {
      .answers = {{"d_gate_ED", {.cause = Cause::kDroppedContribution, .sources = {0, 2}}}}};
  const auto with_sources = [&](const std::vector<std::int64_t>& sources) {
    return OutcomeOf(
        {Failed("d_gate_ED", {.cause = Cause::kDroppedContribution, .sources = sources})}, skipped);
  };
  EXPECT_EQ(with_sources({2, 0}), Outcome::kNamedRight);
  EXPECT_EQ(with_sources({0}), Outcome::kNamedWrong);
}

Classified Passed(const PlantedFault& planted, const PlantedRun& run) {
  return Classify(planted, run,
                  {.findings = {{.tensor = "d_x_TD", .error = 1e-3, .tolerance = 4e-3},
                                {.tensor = "d_gate_ED", .error = 2e-3, .tolerance = 4e-3}}});
}

TEST(Classify, SurvivesWhenItPassesAndNothingProvesWhy) {
  const Classified classified = Passed(kDropGate, {.dtype = Dtype::kFloat32});
  EXPECT_EQ(classified.outcome, Outcome::kSurvived);
  EXPECT_EQ(classified.why, "d_gate_ED is off by 2.00e-03 at most, and 4.0e-03 is allowed");
  EXPECT_EQ(Passed(kDropGate, {.dtype = Dtype::kBfloat16}).outcome, Outcome::kUnseen);
}

TEST(Classify, IsEquivalentByProofOrBySameBits) {
  EXPECT_EQ(Passed(kDropGate, {.is_clean = true}).outcome, Outcome::kEquivalent);
  PlantedFault settled = kDropGate;
  settled.equivalent = "the value is whole on tp already";
  const Classified classified = Passed(settled, {});
  EXPECT_EQ(classified.outcome, Outcome::kEquivalent);
  EXPECT_EQ(classified.why, settled.equivalent);
}

TEST(Classify, IsEquivalentWhereNothingIsAllowedAndItPasses) {
  EXPECT_EQ(Passed(kDropGate, {.dtype = Dtype::kBfloat16, .exact = true}).outcome,
            Outcome::kEquivalent);
}

TEST(Classify, CallsAnAlarmOnWhatIsProvedEquivalentWrong) {
  PlantedFault settled = kDropGate;
  settled.equivalent = "the value is whole on tp already";
  EXPECT_EQ(OutcomeOf({Failed("d_gate_ED", kMissing)}, settled), Outcome::kNamedWrong);
}

TEST(Describe, TellsTheCauseAndItsMembers) {
  EXPECT_EQ(Describe({.cause = Cause::kWrongGroup, .axes = {Axis::kTp}, .used = {Axis::kEp}}),
            "wrong_group [tp] used [ep]");
  EXPECT_EQ(Describe({.cause = Cause::kDroppedContribution, .path = "gate", .sources = {1}}),
            "dropped_contribution gate of ranks 1");
}

}  // namespace
}  // namespace moe
