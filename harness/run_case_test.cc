// What becomes of a case's runs: whether a planted fault was told as wanted, and what a case says
// that is not told so. The step runs on threads; what the judge says is made up.

#include "harness/run_case.h"

#include <gtest/gtest.h>

#include "harness/base/error.h"
#include "harness/run_step.h"

namespace moe {
namespace {

// A failing result of one tensor.
Result Failing(const std::string& tensor, const Explanation& explanation) {
  Result result{.verdict = Verdict::kFail};
  result.judgement.findings = {
      {.tensor = "y_TD"},
      {.tensor = tensor, .verdict = Verdict::kFail, .explanation = explanation}};
  return result;
}

Result MissingOverTp() {
  return Failing("d_gate_ED", {.cause = Cause::kMissingSum, .axes = {Axis::kTp}});
}

TEST(IsCaught, WhereTensorCauseAndAxesAreThoseWanted) {
  EXPECT_TRUE(
      IsCaught({.cause = "missing_sum", .axes = {"tp"}, .tensor = "d_gate_ED"}, MissingOverTp()));
}

TEST(IsCaught, WhereNothingMoreThanAFailureIsWanted) {
  EXPECT_TRUE(IsCaught({}, MissingOverTp()));
}

TEST(IsCaught, NotWhereAnotherTensorFails) {
  EXPECT_FALSE(
      IsCaught({.cause = "missing_sum", .axes = {"tp"}, .tensor = "d_x_TD"}, MissingOverTp()));
}

TEST(IsCaught, NotWhereTheCauseIsAnother) {
  EXPECT_FALSE(
      IsCaught({.cause = "double_sum", .axes = {"tp"}, .tensor = "d_gate_ED"}, MissingOverTp()));
}

TEST(IsCaught, NotWhereTheAxisIsAnother) {
  EXPECT_FALSE(
      IsCaught({.cause = "missing_sum", .axes = {"cp"}, .tensor = "d_gate_ED"}, MissingOverTp()));
}

TEST(IsCaught, NotWhereThereIsOneAxisMore) {
  EXPECT_FALSE(IsCaught(
      {.cause = "missing_sum", .axes = {"tp"}},
      Failing("d_gate_ED", {.cause = Cause::kMissingSum, .axes = {Axis::kTp, Axis::kCp}})));
}

TEST(IsCaught, NotByAFindingThatPasses) {
  Result result = MissingOverTp();
  result.judgement.findings[1].verdict = Verdict::kPass;
  EXPECT_FALSE(IsCaught({.tensor = "d_gate_ED"}, result));
}

TEST(IsCaught, NotInARunThatCouldNotBeJudged) {
  Result result = MissingOverTp();
  result.verdict = Verdict::kError;
  EXPECT_FALSE(IsCaught({}, result));
}

// A case on tp2 whose runs are judged by `judge_`, by the fault planted ("" for none).
class RunCaseTest : public testing::Test {
 protected:
  RunCaseTest() { spec_.layouts = {layout_}; }

  void MustCatch(const std::string& fault) {
    spec_.must_catch.push_back({.fault = ParseFault(fault, "test"),
                                .on = layout_,
                                .cause = "missing_sum",
                                .tensor = "d_gate_ED"});
  }
  void MustPass(const std::string& fault) {
    spec_.must_pass.push_back({.fault = ParseFault(fault, "test"), .on = layout_});
  }

  // Runs the case where a run under `fault` is judged as `says[fault]`, and any other passes.
  Result Run(const std::map<std::string, Judgement>& says) {
    std::string planted;
    RunOptions options;
    options.run_ranks = [&](const StepRequest& request) {
      planted = request.fault ? ToText(*request.fault) : "";
      ++runs_;
      if (planted == breaks_) {
        throw Error("rank 0", "fell over");
      }
      return RunRanksOf(request, "threads");
    };
    options.judge = [&](const Dump&, const TensorSource&, const JudgeOptions&) {
      const auto found = says.find(planted);
      return found == says.end() ? Judgement{} : found->second;
    };
    return RunCase(spec_, graph_, Dtype::kFloat64, InputGenerator(spec_), {}, options);
  }

  static Judgement Fails(Cause cause) {
    Judgement judgement{.verdict = Verdict::kFail};
    judgement.findings = {{.tensor = "d_gate_ED",
                           .verdict = Verdict::kFail,
                           .explanation = {.cause = cause, .axes = {Axis::kTp}}}};
    return judgement;
  }

  const Layout layout_{.tp = 2, .ep = 2};
  CaseSpec spec_{.name = "a",
                 .model = {.tokens = 8, .d_model = 4, .d_expert = 4, .experts = 4, .top_k = 2}};
  const StepGraph graph_ = GraphOf(spec_, layout_);
  std::string breaks_ = "none";  // the fault under which a rank falls over
  int runs_ = 0;
};

constexpr const char* kDrop = "drop d_gate_ED@tp";

TEST_F(RunCaseTest, PassesWhereEveryFaultIsToldAsWanted) {
  MustCatch(kDrop);
  MustPass("drop d_x_TD@tp");
  const Result result = Run({{kDrop, Fails(Cause::kMissingSum)}});
  EXPECT_EQ(result.verdict, Verdict::kPass);
  EXPECT_EQ(runs_, 3);
}

TEST_F(RunCaseTest, RunsNoFaultOfAnotherLayout) {
  MustCatch(kDrop);
  spec_.must_catch[0].on = {.dp_shard = 2};
  EXPECT_EQ(Run({}).verdict, Verdict::kPass);
  EXPECT_EQ(runs_, 1);
}

TEST_F(RunCaseTest, PlantsNothingInAStepThatIsWrongAlready) {
  MustCatch(kDrop);
  EXPECT_EQ(Run({{"", Fails(Cause::kMissingSum)}}).verdict, Verdict::kFail);
  EXPECT_EQ(runs_, 1);
}

TEST_F(RunCaseTest, FailsWhereAFaultIsNotSeen) {
  MustCatch(kDrop);
  const Result result = Run({});
  EXPECT_EQ(result.verdict, Verdict::kFail);
  EXPECT_EQ(result.text, "planted 'drop d_gate_ED@tp' was told wrong: no error was seen");
}

TEST_F(RunCaseTest, FailsWhereAFaultIsToldAsAnother) {
  MustCatch(kDrop);
  const Result result = Run({{kDrop, Fails(Cause::kDoubleSum)}});
  EXPECT_EQ(result.verdict, Verdict::kFail);
  EXPECT_EQ(result.text,
            "planted 'drop d_gate_ED@tp' was told wrong: d_gate_ED: sum over tp counted twice");
}

TEST_F(RunCaseTest, GivesTheLineThatPlantsTheFaultAgain) {
  MustCatch(kDrop);
  EXPECT_EQ(Run({}).repro,
            "build/moegate run a@tp2.ep2.etp1 --dtype=float64 --backend=threads "
            "--fault='drop d_gate_ED@tp'");
}

TEST_F(RunCaseTest, FailsWhereAFaultThatMustPassDoesNot) {
  MustPass("drop d_x_TD@tp");
  EXPECT_EQ(Run({{"drop d_x_TD@tp", Fails(Cause::kMissingSum)}}).verdict, Verdict::kFail);
}

TEST_F(RunCaseTest, IsInErrorWhereARunWithAFaultIs) {
  MustCatch(kDrop);
  breaks_ = kDrop;
  const Result result = Run({});
  EXPECT_EQ(result.verdict, Verdict::kError);
  EXPECT_EQ(result.text, "planted 'drop d_gate_ED@tp' was told wrong: rank 0: fell over");
}

TEST_F(RunCaseTest, KeepsWhatWasSaidOfEveryFault) {
  MustCatch(kDrop);
  const Result result = Run({{kDrop, Fails(Cause::kMissingSum)}});
  ASSERT_EQ(result.planted.size(), 1U);
  EXPECT_EQ(result.planted[0].fault, kDrop);
  EXPECT_TRUE(result.planted[0].as_wanted);
  EXPECT_EQ(result.planted[0].said, "d_gate_ED: missing sum over tp");
}

TEST_F(RunCaseTest, AsksForTheRequestsOfAJobInTheOrderOfItsRuns) {
  MustCatch(kDrop);
  MustPass("drop d_x_TD@tp");
  std::vector<std::string> faults;
  for (const StepRequest& request :
       RequestsOf(spec_, graph_, Dtype::kFloat64, InputGenerator(spec_), {})) {
    faults.push_back(request.fault ? ToText(*request.fault) : "");
  }
  EXPECT_EQ(faults, (std::vector<std::string>{"", kDrop, "drop d_x_TD@tp"}));
}

TEST_F(RunCaseTest, SkipsWhatTheMachineLacks) {
  const std::string obstacle = TheStepPlugin().FindObstacle("nccl", layout_.WorldSize());
  if (obstacle.empty()) {
    GTEST_SKIP() << "NCCL runs here";
  }
  const Result result = RunOnce(spec_, graph_, Dtype::kFloat64, InputGenerator(spec_), std::nullopt,
                                nullptr, {.backend = "nccl"});
  EXPECT_EQ(result.verdict, Verdict::kSkipped);
  EXPECT_EQ(result.text, obstacle);
}

}  // namespace
}  // namespace moe
