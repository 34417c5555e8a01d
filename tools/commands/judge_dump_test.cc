// Which problem a dump is judged against: its own inputs, or those of the case that it names.

#include "tools/commands/judge_dump.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "harness/base/error.h"
#include "harness/run_case.h"
#include "harness/run_step.h"
#include "tools/commands/problem_folder.h"

namespace moe {
namespace {

// A clean dump of the smallest case, in a folder that goes away with the test.
class JudgeDumpTest : public testing::Test {
 protected:
  ~JudgeDumpTest() override {
    std::filesystem::remove_all(folder_);
    std::filesystem::remove_all(problem_);
  }

  // Of the case with another seed, where one is given.
  Dump MakeCleanDump(std::uint64_t seed_offset = 0) const {
    CaseSpec spec = spec_;
    spec.numerics.seed += seed_offset;
    const InputGenerator inputs(spec);
    const StepGraph graph = GraphOf(spec, spec.layouts.front());
    return MakeRunDump(spec, graph, Dtype::kFloat64,
                       RunRanksOf({.graph = &graph, .inputs = &inputs}, "threads"))
        .dump;
  }

  Result Judge(const Dump& dump) const {
    WriteDump(folder_, dump);
    return JudgeDump({.cases_folder = kCases, .golden_folder = MOEGATE_SOURCE_DIR "/golden"},
                     folder_);
  }

  std::string Complaint(const Dump& dump) const {
    try {
      Judge(dump);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  static constexpr const char* kCases = MOEGATE_SOURCE_DIR "/cases";
  const std::string folder_ =
      std::filesystem::temp_directory_path() / fmt::format("judge_dump_test.{}", ::getpid());
  const std::string problem_ = folder_ + ".problem";
  const CaseSpec spec_ = FindCase(kCases, "smoke/smoke");
};

TEST_F(JudgeDumpTest, TakesTheInputsOfTheCaseWhereTheDumpHasNone) {
  EXPECT_EQ(Judge(MakeCleanDump()).verdict, Verdict::kPass);
}

TEST_F(JudgeDumpTest, NeedsInputsWhereThereIsNoCase) {
  Dump dump = MakeCleanDump();
  dump.manifest.case_name.reset();
  EXPECT_NE(Complaint(dump), "");
}

TEST_F(JudgeDumpTest, RefusesADumpOfAnotherModelThanThatOfItsCase) {
  Dump dump = MakeCleanDump();
  dump.manifest.model.route_scale = 2.0;
  EXPECT_EQ(Complaint(dump), folder_ + ": names the case smoke/smoke, whose model is another one");
}

TEST_F(JudgeDumpTest, FailsAStepOnOtherInputsThanThoseOfItsCase) {
  EXPECT_EQ(Judge(MakeCleanDump(/*seed_offset=*/1)).verdict, Verdict::kFail);
}

// With its own inputs it is a right step, of another problem than the case's.
TEST_F(JudgeDumpTest, RefusesOtherInputsUnderTheNameOfTheCase) {
  Dump dump = MakeCleanDump(/*seed_offset=*/1);
  CaseSpec other = spec_;
  other.numerics.seed += 1;
  dump.manifest.inputs = "inputs.safetensors";
  WriteProblem(other, InputGenerator(other), problem_, Dtype::kFloat64);
  dump.inputs = SafetensorsFile::Open(problem_ + "/inputs.safetensors");
  EXPECT_TRUE(Complaint(dump).starts_with(folder_ + ": is not the problem of its golden file"))
      << Complaint(dump);
}

}  // namespace
}  // namespace moe
