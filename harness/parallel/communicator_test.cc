// What the step's collectives add to those of a group: which group, and the log of sums.

#include "harness/parallel/communicator.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include "harness/layout/step_graph.h"
#include "harness/parallel/ranks_under_test.h"

namespace moe::parallel {
namespace {

constexpr Model kModel = {.tokens = 8, .d_model = 4, .d_expert = 4, .experts = 4, .top_k = 1};
const Reduction kGate{"d_gate_ED", Axis::kTp};

StepContract ContractOf(const Layout& layout, const Program& program = {}) {
  return StepGraph(kModel, layout, program).contract();
}

// A group that is never used.
class NoGroup : public Group {
 public:
  std::int64_t rank() const override { return 0; }
  std::int64_t size() const override { return 1; }
  at::Tensor AllReduceSum(const at::Tensor& input) override { return input; }
  at::Tensor AllGather(const at::Tensor& input) override { return input; }
  at::Tensor ReduceScatterSum(const at::Tensor& input) override { return input; }
  at::Tensor AllToAll(const at::Tensor& input, const std::vector<std::int64_t>& /*send_rows*/,
                      const std::vector<std::int64_t>& /*receive_rows*/) override {
    return input;
  }
};

// "tp 2,3": the groups that a rank opens, in their order.
std::string GroupsOf(std::int64_t rank, const Layout& layout) {
  std::vector<std::string> opened;
  const MeshCommunicator comm(ContractOf(layout), rank,
                              [&](const std::vector<std::int64_t>& ranks, const std::string& name) {
                                opened.push_back(fmt::format("{} {}", name, fmt::join(ranks, ",")));
                                return std::make_unique<NoGroup>();
                              });
  return fmt::format("{}", fmt::join(opened, "; "));
}

// Group after group in one order on all ranks, or those that open one wait for ever.
TEST(MeshCommunicator, OpensTheGroupOfEveryAxisOverOneInTheSameOrder) {
  const Layout layout{.dp_shard = 2, .tp = 2, .ep = 2};
  EXPECT_EQ(GroupsOf(0, layout), "dp_shard 0,2; tp 0,1; edp 0,2; ep 0,1");
  EXPECT_EQ(GroupsOf(3, layout), "dp_shard 1,3; tp 2,3; edp 1,3; ep 2,3");
}

// The log of rank 0 of a tp of 2 after `calls`.
std::vector<std::string> LogOf(const std::function<void(MeshCommunicator&)>& calls,
                               const Program& program = {}) {
  std::vector<std::string> log;
  EXPECT_EQ(OnMesh(ContractOf({.tp = 2, .ep = 2}, program),
                   [&](MeshCommunicator& comm) {
                     calls(comm);
                     if (comm.rank() == 0) {
                       log = comm.calls();
                     }
                   }),
            "");
  return log;
}

at::Tensor Ones() {
  return at::ones({4, 2}, at::kDouble);
}

TEST(MeshCommunicator, LogsSumsByTheirNamesInOrder) {
  EXPECT_EQ(LogOf([](MeshCommunicator& comm) {
              comm.AllReduceSum(kGate, Ones(), 1.0);
              comm.ReduceScatterSum({"y_TD", Axis::kTp}, Ones());
              comm.AllReduceSum(kGate, Ones(), 1.0);
            }),
            (std::vector<std::string>{"d_gate_ED@tp", "y_TD@tp", "d_gate_ED@tp"}));
}

TEST(MeshCommunicator, LogsNothingThatIsNoSum) {
  EXPECT_TRUE(LogOf([](MeshCommunicator& comm) {
                comm.Settled(kGate, Ones());
                comm.AllGather("x_TD", Axis::kTp, Ones());
                comm.AllToAll(Axis::kEp, Ones(), {2, 2}, {2, 2});
              }).empty());
}

TEST(MeshCommunicator, LogsADividedSumAsAnother) {
  EXPECT_EQ(LogOf([](MeshCommunicator& comm) { comm.AllReduceSum(kGate, Ones(), 2.0); }),
            std::vector<std::string>{"d_gate_ED@tp/2"});
}

TEST(MeshCommunicator, DividesASumByTheDivisor) {
  LogOf([](MeshCommunicator& comm) {
    EXPECT_TRUE(comm.AllReduceSum(kGate, Ones(), 4.0).equal(Ones() * 0.5));
  });
}

TEST(MeshCommunicator, SumsWhereTheContractOwesIt) {
  EXPECT_EQ(LogOf([](MeshCommunicator& comm) {
              EXPECT_TRUE(comm.SumWhereOwed(kGate, Ones()).equal(Ones() * 2.0));
            }),
            std::vector<std::string>{"d_gate_ED@tp"});
}

TEST(MeshCommunicator, LeavesAloneWhatIsSettled) {
  EXPECT_TRUE(LogOf(
                  [](MeshCommunicator& comm) {
                    EXPECT_TRUE(comm.SumWhereOwed(kGate, Ones()).equal(Ones()));
                  },
                  {.tp_backward = TpBackward::kSumInside})
                  .empty());
}

TEST(MeshCommunicator, OwnRowsAreTheRanksChunk) {
  LogOf([](MeshCommunicator& comm) {
    const at::Tensor rows = at::arange(4, at::kDouble);
    EXPECT_TRUE(comm.OwnRows(Axis::kTp, rows)
                    .equal(at::arange(4, at::kDouble).narrow(0, 2 * comm.rank(), 2)));
  });
}

}  // namespace
}  // namespace moe::parallel
