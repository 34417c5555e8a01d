// What another framework is given to run a case's problem: the same numbers in every dtype, and
// what it owes for them.

#include "tools/commands/problem_folder.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "harness/base/error.h"
#include "harness/dump/safetensors.h"
#include "harness/json/model_json.h"

namespace moe {
namespace {

CaseSpec SmallCase() {
  return {.name = "issues/a",
          .model = {.tokens = 8,
                    .d_model = 4,
                    .d_expert = 6,
                    .experts = 4,
                    .top_k = 2,
                    .gate_bias = true,
                    .d_shared = 2},
          .numerics = {.seed = 3},
          .layouts = {{.tp = 2, .ep = 2}, {.dp_shard = 2, .tp = 2, .sp = false}}};
}

class ProblemFolderTest : public testing::Test {
 protected:
  ~ProblemFolderTest() override { std::filesystem::remove_all(folder_); }

  const std::string folder_ =
      std::filesystem::temp_directory_path() / fmt::format("problem_folder_test.{}", ::getpid());
  const CaseSpec spec_ = SmallCase();
  const InputGenerator inputs_{spec_};
};

class ProblemInDtype : public ProblemFolderTest, public testing::WithParamInterface<Dtype> {};
std::string NameOf(const testing::TestParamInfo<Dtype>& dtype) {
  return std::string(ToText(dtype.param));
}
INSTANTIATE_TEST_SUITE_P(Dtypes, ProblemInDtype,
                         testing::Values(Dtype::kFloat64, Dtype::kFloat32, Dtype::kBfloat16),
                         NameOf);

TEST_P(ProblemInDtype, HoldsEveryInputToTheBit) {
  WriteProblem(spec_, inputs_, folder_, GetParam());
  const SafetensorsFile file = SafetensorsFile::Open(folder_ + "/inputs.safetensors");
  for (const TensorInfo& input : InputsOf(spec_.model)) {
    const TensorView& view = file.tensors().at(input.name);
    EXPECT_EQ(view.dtype, GetParam());
    EXPECT_EQ(view.shape, input.shape);
    std::vector<double> want(static_cast<std::size_t>(NumElements(input.shape)));
    inputs_.Read(input.name, WholeOf(input.shape), want);
    for (std::size_t i = 0; i < want.size(); ++i) {
      EXPECT_EQ(view.At(static_cast<std::int64_t>(i)), want[i]) << input.name << " " << i;
    }
  }
}

TEST_F(ProblemFolderTest, HoldsTheInputsOfTheModelAndNoOthers) {
  const std::size_t tensors = WriteProblem(spec_, inputs_, folder_, Dtype::kFloat64);
  EXPECT_EQ(tensors, InputsOf(spec_.model).size());
  EXPECT_EQ(SafetensorsFile::Open(folder_ + "/inputs.safetensors").tensors().size(), tensors);
}

TEST_F(ProblemFolderTest, SaysWhichProblemItIs) {
  WriteProblem(spec_, inputs_, folder_, Dtype::kBfloat16);
  const Json problem = ReadJsonFile(folder_ + "/problem.json");
  EXPECT_EQ(problem["case"], "issues/a");
  EXPECT_EQ(problem["model"], ToJson(spec_.model));
  EXPECT_EQ(problem["dtype"], "bfloat16");
  EXPECT_EQ(problem["loss"]["reduction"], "sum");
  EXPECT_EQ(problem["layouts"], Json({"tp2.ep2.etp1", "dp2.tp2.etp1.sp0"}));
}

TEST_F(ProblemFolderTest, SaysWhatAStepOwes) {
  WriteProblem(spec_, inputs_, folder_, Dtype::kFloat64);
  EXPECT_EQ(ReadJsonFile(folder_ + "/problem.json")["owed"],
            Json({"y_TD", "d_x_TD", "d_gate_ED", "d_w1_EFD", "d_w3_EFD", "d_w2_EDF",
                  "d_gate_bias_E", "d_shared_w1_FD", "d_shared_w3_FD", "d_shared_w2_DF"}));
}

TEST_F(ProblemFolderTest, NamesAFolderThatCannotBeMade) {
  try {
    WriteProblem(spec_, inputs_, "/dev/null/folder", Dtype::kFloat64);
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "/dev/null/folder: cannot be made: Not a directory");
  }
}

}  // namespace
}  // namespace moe
