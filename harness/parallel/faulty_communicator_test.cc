// Each kind of fault does to its sum what its name says, and nothing to any other.

#include "harness/parallel/faulty_communicator.h"

#include <gtest/gtest.h>

namespace moe::parallel {
namespace {

// One rank of a tp of 2 whose peer always brings ones; over any other axis the peer brings
// hundreds.
class FakeCommunicator : public Communicator {
 public:
  FakeCommunicator() {
    contract_ = MakeContract({.tokens = 8, .d_model = 4, .d_expert = 4, .experts = 4, .top_k = 1},
                             {.dp_shard = 2, .tp = 2, .ep = 2}, {});
  }
  std::int64_t rank() const override { return 0; }
  const StepContract& contract() const override { return contract_; }
  at::Tensor AllReduceSum(const Reduction& reduction, const at::Tensor& input,
                          double divisor) override {
    return (input + (reduction.axis == Axis::kTp ? 1.0 : 100.0)) / divisor;
  }
  at::Tensor ReduceScatterSum(const Reduction& reduction, const at::Tensor& input) override {
    return OwnRows(reduction.axis, AllReduceSum(reduction, input, 1.0));
  }
  at::Tensor Settled(const Reduction& /*reduction*/, const at::Tensor& input) override {
    return input;
  }
  at::Tensor AllGather(Axis /*axis*/, const at::Tensor& input) override { return input; }
  at::Tensor AllToAll(Axis /*axis*/, const at::Tensor& input,
                      const std::vector<std::int64_t>& /*send*/,
                      const std::vector<std::int64_t>& /*receive*/) override {
    return input;
  }

 private:
  StepContract contract_;
};

const Reduction kGate{"d_gate_ED", Axis::kTp};

// What the sum of a share of 5 and a peer's 1 becomes.
double SumUnder(const Fault& fault, const Reduction& reduction = kGate) {
  FakeCommunicator right;
  FaultyCommunicator faulty(right, fault);
  return faulty.AllReduceSum(reduction, at::full({4}, 5.0, at::kDouble), 1.0)[0].item<double>();
}

TEST(FaultyCommunicator, DropLeavesTheShare) {
  EXPECT_EQ(SumUnder({.kind = Fault::Kind::kDrop, .reduction = kGate}), 5.0);
}

TEST(FaultyCommunicator, RepeatSumsTheSum) {
  EXPECT_EQ(SumUnder({.kind = Fault::Kind::kRepeat, .reduction = kGate}), 7.0);
}

TEST(FaultyCommunicator, MeanDividesByTheRanks) {
  EXPECT_EQ(SumUnder({.kind = Fault::Kind::kMean, .reduction = kGate}), 3.0);
}

TEST(FaultyCommunicator, WrongGroupSumsOverTheOtherAxis) {
  EXPECT_EQ(
      SumUnder(
          {.kind = Fault::Kind::kWrongGroup, .reduction = kGate, .wrong_axis = Axis::kDpShard}),
      105.0);
}

TEST(FaultyCommunicator, SkipRankSendsZerosFromThatRankOnly) {
  EXPECT_EQ(SumUnder({.kind = Fault::Kind::kSkipRank, .reduction = kGate, .rank = 0}), 1.0);
  EXPECT_EQ(SumUnder({.kind = Fault::Kind::kSkipRank, .reduction = kGate, .rank = 1}), 6.0);
}

TEST(FaultyCommunicator, LeavesOtherReductionsAlone) {
  EXPECT_EQ(SumUnder({.kind = Fault::Kind::kDrop, .reduction = kGate}, {"d_x_TD", Axis::kTp}), 6.0);
}

TEST(FaultyCommunicator, RepeatSumsWhereNoSumIsOwed) {
  FakeCommunicator right;
  FaultyCommunicator faulty(right, {.kind = Fault::Kind::kRepeat, .reduction = kGate});
  EXPECT_EQ(faulty.Settled(kGate, at::full({4}, 5.0, at::kDouble))[0].item<double>(), 6.0);
}

TEST(FaultyCommunicator, DroppedReduceScatterKeepsTheOwnRowsOfTheShare) {
  FakeCommunicator right;
  FaultyCommunicator faulty(right, {.kind = Fault::Kind::kDrop, .reduction = kGate});
  EXPECT_TRUE(faulty.ReduceScatterSum(kGate, at::arange(4, at::kDouble))
                  .equal(at::tensor({0.0, 1.0}, at::kDouble)));
}

}  // namespace
}  // namespace moe::parallel
