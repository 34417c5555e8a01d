// Ranks as threads and as processes: what they bring back, and what they are told.

#include "harness/run_step.h"

#include <gtest/gtest.h>

#include "harness/base/error.h"
#include "harness/inputs/generator.h"

namespace moe {
namespace {

// A step on tp2.ep2.
class RunRanksOfTest : public testing::Test {
 protected:
  StepRequest RequestFor(const TensorSource& inputs) const {
    return {.graph = &graph_, .inputs = &inputs};
  }

  std::vector<RankOutput> Run(const std::string& backend) const {
    return RunRanksOf(RequestFor(inputs_), backend);
  }

  // What RunRanksOf throws.
  std::string Complaint(const TensorSource& inputs, const std::string& backend) const {
    try {
      RunRanksOf(RequestFor(inputs), backend);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  const CaseSpec spec_{
      .name = "a", .model = {.tokens = 8, .d_model = 4, .d_expert = 4, .experts = 4, .top_k = 2}};
  const StepGraph graph_ = GraphOf(spec_, {.tp = 2, .ep = 2});
  const InputGenerator inputs_{spec_};
};

// Two shares have one sum, whoever adds them.
TEST_F(RunRanksOfTest, ProcessesHoldWhatThreadsHold) {
  const auto threads = Run("threads");
  const auto processes = Run("gloo");
  ASSERT_EQ(processes.size(), 2U);
  EXPECT_EQ(processes[0].tensors, threads[0].tensors);
  EXPECT_EQ(processes[1].tensors, threads[1].tensors);
}

TEST_F(RunRanksOfTest, ProcessesBringBackTheLogOfThreads) {
  const auto threads = Run("threads");
  const auto processes = Run("gloo");
  ASSERT_EQ(threads[1].calls.size(), 3U);
  EXPECT_EQ(processes[0].calls, threads[0].calls);
  EXPECT_EQ(processes[1].calls, threads[1].calls);
}

TEST_F(RunRanksOfTest, NamesABackendThatIsNone) {
  EXPECT_EQ(Complaint(inputs_, "mpi"), "backend: \"mpi\" is none; use threads, gloo or nccl");
}

// Inputs whose last token cannot be read.
class TornInputs : public TensorSource {
 public:
  explicit TornInputs(const TensorSource& inputs) : inputs_(inputs) {}
  void Read(const std::string& name, const Slice& slice, std::span<double> out) const override {
    if (name == "x_TD" && slice.index[0].back() == 7) {
      throw Error("x_TD", "is torn");
    }
    inputs_.Read(name, slice, out);
  }

 private:
  const TensorSource& inputs_;
};

TEST_F(RunRanksOfTest, NamesTheThreadThatFailedWhileTheOtherWaited) {
  EXPECT_EQ(Complaint(TornInputs(inputs_), "threads"), "threads: rank 1 of 2: x_TD: is torn");
}

TEST_F(RunRanksOfTest, NamesTheProcessThatFailedWhileTheOtherWaited) {
  const std::string complaint = Complaint(TornInputs(inputs_), "gloo");
  EXPECT_TRUE(complaint.starts_with("rank 1 of 2")) << complaint;
  EXPECT_NE(complaint.find("x_TD: is torn"), std::string::npos) << complaint;
}

}  // namespace
}  // namespace moe
