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
    contract_ = StepGraph({.tokens = 8, .d_model = 4, .d_expert = 4, .experts = 4, .top_k = 1},
                          {.dp_shard = 2, .tp = 2, .ep = 2}, {})
                    .contract();
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
  at::Tensor AllGather(std::string_view /*tensor*/, Axis /*axis*/,
                       const at::Tensor& input) override {
    return at::cat({input, input + 10.0});
  }
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
      SumUnder({.kind = Fault::Kind::kWrongGroup, .reduction = kGate, .axis = Axis::kDpShard}),
      105.0);
}

TEST(FaultyCommunicator, WrongGroupSumsOverOtherRanksWhereNoSumIsOwed) {
  FakeCommunicator right;
  FaultyCommunicator faulty(
      right, {.kind = Fault::Kind::kWrongGroup, .reduction = kGate, .axis = Axis::kDpShard});
  EXPECT_EQ(faulty.Settled(kGate, at::full({4}, 5.0, at::kDouble))[0].item<double>(), 105.0);
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

TEST(FaultyCommunicator, DoubleRankSendsTwiceFromThatRankOnly) {
  EXPECT_EQ(SumUnder({.kind = Fault::Kind::kDoubleRank, .reduction = kGate, .rank = 0}), 11.0);
  EXPECT_EQ(SumUnder({.kind = Fault::Kind::kDoubleRank, .reduction = kGate, .rank = 1}), 6.0);
}

TEST(FaultyCommunicator, DropAllDropsEverySumOfAParameterAndNoOther) {
  const Fault fault{.kind = Fault::Kind::kDropAll};
  EXPECT_EQ(SumUnder(fault), 5.0);
  EXPECT_EQ(SumUnder(fault, {"d_w1_EFD", Axis::kEdp}), 5.0);
  EXPECT_EQ(SumUnder(fault, {"d_x_TD", Axis::kTp}), 6.0);
}

TEST(FaultyCommunicator, MisreadSumsTheTransposedValues) {
  FakeCommunicator right;
  FaultyCommunicator faulty(right, {.kind = Fault::Kind::kMisread, .reduction = kGate});
  const at::Tensor share = at::tensor({0.0, 1.0, 2.0, 3.0}, at::kDouble).view({2, 2});
  EXPECT_TRUE(faulty.AllReduceSum(kGate, share, 1.0)
                  .equal(at::tensor({1.0, 3.0, 2.0, 4.0}, at::kDouble).view({2, 2})));
}

// What a rank's share of a result, [0, 1, 2, 3] in two rows, has become when the step is over.
at::Tensor FinishedUnder(const Fault& fault, at::ScalarType type = at::kDouble) {
  FakeCommunicator right;
  FaultyCommunicator faulty(right, fault);
  const at::Tensor share = at::arange(4, at::kDouble).view({2, 2}).to(type);
  EXPECT_TRUE(faulty.Finished("d_shared_w1_FD", share).equal(share)) << "another tensor changed";
  return faulty.Finished(fault.tensor, share);
}

bool Equals(const at::Tensor& got, std::vector<double> want) {
  return got.to(at::kDouble).equal(at::tensor(want, at::kDouble).view(got.sizes()));
}

TEST(FaultyCommunicator, ScalesAFinishedTensorAndCountsToo) {
  EXPECT_TRUE(
      Equals(FinishedUnder({.kind = Fault::Kind::kScale, .tensor = "d_gate_ED", .factor = 0.5}),
             {0.0, 0.5, 1.0, 1.5}));
  const at::Tensor counts = FinishedUnder(
      {.kind = Fault::Kind::kScale, .tensor = "tokens_per_expert_E", .factor = 2.0}, at::kLong);
  EXPECT_EQ(counts.scalar_type(), at::kLong);
  EXPECT_TRUE(Equals(counts, {0.0, 2.0, 4.0, 6.0}));
}

TEST(FaultyCommunicator, PermutesUnitsOfTheirOwnDimension) {
  EXPECT_TRUE(
      Equals(FinishedUnder({.kind = Fault::Kind::kPermute, .tensor = "y_TD", .name = "tokens"}),
             {2.0, 3.0, 0.0, 1.0}));
  EXPECT_TRUE(Equals(
      FinishedUnder({.kind = Fault::Kind::kPermute, .tensor = "d_shared_w2_DF", .name = "hidden"}),
      {1.0, 0.0, 3.0, 2.0}));
}

TEST(FaultyCommunicator, MisplacedRankHoldsItsNeighboursShard) {
  EXPECT_TRUE(
      Equals(FinishedUnder({.kind = Fault::Kind::kMisplace, .tensor = "y_TD", .axis = Axis::kTp}),
             {10.0, 11.0, 12.0, 13.0}));
}

TEST(FaultyCommunicator, StaleRankHoldsSomethingElseThere) {
  const Fault fault{.kind = Fault::Kind::kStaleRank, .tensor = "d_gate_ED", .rank = 0};
  EXPECT_FALSE(Equals(FinishedUnder(fault), {0.0, 1.0, 2.0, 3.0}));
  EXPECT_TRUE(
      Equals(FinishedUnder({.kind = Fault::Kind::kStaleRank, .tensor = "d_gate_ED", .rank = 1}),
             {0.0, 1.0, 2.0, 3.0}));
}

TEST(FaultyCommunicator, RoundsEveryDtypeMoreCoarselyThanItself) {
  FakeCommunicator right;
  FaultyCommunicator faulty(right, {.kind = Fault::Kind::kRound, .tensor = "y_TD"});
  const auto rounded = [&](double value, at::ScalarType type) {
    return faulty.Finished("y_TD", at::full({1}, value, at::kDouble).to(type))
        .to(at::kDouble)[0]
        .item<double>();
  };
  EXPECT_EQ(rounded(1.0 + 0x1p-30, at::kDouble), 1.0);
  EXPECT_EQ(rounded(1.0 + 0x1p-20, at::kDouble), 1.0 + 0x1p-20);
  EXPECT_EQ(rounded(1.0 + 0x1p-12, at::kFloat), 1.0);
  EXPECT_EQ(rounded(1.0 + 0x1p-6, at::kFloat), 1.0 + 0x1p-6);
  EXPECT_EQ(rounded(1.0 + 0x1p-5, at::kBFloat16), 1.0);
  EXPECT_EQ(rounded(-3.5, at::kBFloat16), -3.5);
}

TEST(FaultyCommunicator, CorruptsThreeElementsAndPutsOneNan) {
  const at::Tensor corrupt = FinishedUnder({.kind = Fault::Kind::kCorrupt, .tensor = "d_gate_ED"});
  EXPECT_TRUE(Equals(corrupt, {10.0, 10.0, 10.0, 3.0}));
  const at::Tensor nan = FinishedUnder({.kind = Fault::Kind::kNan, .tensor = "d_gate_ED"});
  EXPECT_EQ(nan.isnan().sum().item<std::int64_t>(), 1);
}

TEST(FaultyCommunicator, FillsTheGradientOfAnExpertWithoutRows) {
  FakeCommunicator right;
  FaultyCommunicator faulty(right, {.kind = Fault::Kind::kIdleGarbage, .tensor = "d_w1_EFD"});
  at::Tensor share = at::zeros({2, 2, 2}, at::kDouble);
  share[0].fill_(5.0);
  const at::Tensor filled = faulty.Share("d_w1_EFD", share);
  EXPECT_TRUE(filled[0].equal(share[0]));
  EXPECT_EQ(filled[1].count_nonzero().item<std::int64_t>(), 4);
  EXPECT_TRUE(faulty.Share("d_w3_EFD", share).equal(share));
}

TEST(FaultyCommunicator, DividesAShareByItsOwnRowsInsteadOfTheMean) {
  FakeCommunicator right;
  FaultyCommunicator faulty(right, {.kind = Fault::Kind::kLocalNorm, .tensor = "d_w1_EFD"});
  faulty.Arrived(at::zeros({5, 1}, at::kDouble));  // the peer has ten rows more
  EXPECT_TRUE(Equals(faulty.Share("d_w1_EFD", at::ones({1, 2}, at::kDouble)), {2.0, 2.0}));
}

TEST(FaultyCommunicator, LosesAndDoublesThePathOfItsNameInBackwardOnly) {
  const auto gradient_on = [](const char* path, Fault::Kind kind) {
    FakeCommunicator right;
    FaultyCommunicator faulty(right, {.kind = kind, .name = "gate"});
    const at::Tensor x = at::ones({1}, at::kDouble).requires_grad_();
    const at::Tensor y = faulty.OnPath(path, x);
    EXPECT_EQ(y.item<double>(), 1.0);
    y.sum().backward();
    return x.grad().item<double>();
  };
  EXPECT_EQ(gradient_on("gate", Fault::Kind::kLosePath), 0.0);
  EXPECT_EQ(gradient_on("gate", Fault::Kind::kDoublePath), 2.0);
  EXPECT_EQ(gradient_on("routed", Fault::Kind::kLosePath), 1.0);
}

TEST(FaultyCommunicator, DroppedGatherIsZeroOutsideTheOwnRows) {
  FakeCommunicator right;
  FaultyCommunicator faulty(right,
                            {.kind = Fault::Kind::kDropGather, .reduction = {"d_y_TD", Axis::kTp}});
  const at::Tensor own = at::ones({1, 2}, at::kDouble);
  EXPECT_TRUE(
      faulty.AllGather("d_y_TD", Axis::kTp, own).equal(at::cat({own, at::zeros_like(own)})));
  EXPECT_TRUE(faulty.AllGather("x_TD", Axis::kTp, own).equal(at::cat({own, own + 10.0})));
}

TEST(FaultyCommunicator, ShufflesRowsAndMovesTheBorderBetweenExperts) {
  FakeCommunicator right;
  FaultyCommunicator shuffles(right, {.kind = Fault::Kind::kShuffleRows});
  EXPECT_TRUE(Equals(shuffles.Arrived(at::arange(3, at::kDouble)), {2.0, 0.0, 1.0}));
  FaultyCommunicator splits(right, {.kind = Fault::Kind::kSplitRows});
  EXPECT_EQ(splits.Split({0, 3, 2}), (std::vector<std::int64_t>{0, 2, 3}));
  EXPECT_EQ(shuffles.Split({0, 3, 2}), (std::vector<std::int64_t>{0, 3, 2}));
}

TEST(FaultyCommunicator, LeaksAGradientIntoTheSlotsOfOtherRanks) {
  const auto gradient_under = [](const Fault& fault) {
    FakeCommunicator right;
    FaultyCommunicator faulty(right, fault);
    const at::Tensor all = at::ones({4, 1}, at::kDouble).requires_grad_();
    faulty.OwnSlots(all, /*first=*/2, /*count=*/2).sum().backward();
    return all.grad();
  };
  EXPECT_TRUE(Equals(gradient_under({.kind = Fault::Kind::kLeakSlots}), {1.0, 1.0, 1.0, 1.0}));
  EXPECT_TRUE(Equals(gradient_under({.kind = Fault::Kind::kShuffleRows}), {0.0, 0.0, 1.0, 1.0}));
}

TEST(FaultyCommunicator, WeighsByTheBiasedScoresOfTheSelection) {
  FakeCommunicator right;
  FaultyCommunicator faulty(right, {.kind = Fault::Kind::kModel, .name = "expert_bias"});
  const at::Tensor scores = at::full({1}, 0.5, at::kDouble).requires_grad_();
  const at::Tensor weights = faulty.Weights(scores, at::full({1}, 0.75, at::kDouble));
  weights.sum().backward();
  EXPECT_EQ(weights.item<double>(), 0.75);
  EXPECT_EQ(scores.grad().item<double>(), 1.0);
}

}  // namespace
}  // namespace moe::parallel
