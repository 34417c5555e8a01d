// Rows on their way to the experts' owners and back, on threads, against the same on one rank. All
// values are whole numbers, so that equal means equal.

#include "harness/parallel/dispatch.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "harness/layout/step_graph.h"
#include "harness/parallel/ranks_under_test.h"

namespace moe::parallel {
namespace {

constexpr std::int64_t kWidth = 2;  // of a row

// Of a model with six experts.
StepContract ContractOf(const Layout& layout) {
  const Model model{.tokens = 6, .d_model = kWidth, .d_expert = 6, .experts = 6, .top_k = 1};
  return StepGraph(model, layout, {}).contract();
}

at::Tensor Integers(const std::vector<std::int64_t>& values) {
  return at::tensor(values, at::kLong);
}

std::vector<std::int64_t> ListOf(const at::Tensor& integers) {
  return {integers.const_data_ptr<std::int64_t>(),
          integers.const_data_ptr<std::int64_t>() + integers.numel()};
}

// Slots 0 to 5 of three tokens; experts 1 and 3 get none.
SlotOrder OrderOfSix() {
  return OrderByExpert(Integers({2, 0, 0, 2, 2, 0}).view({3, 2}), /*experts=*/4);
}

TEST(OrderByExpert, SortsSlotsByExpertAndWithinOneByToken) {
  EXPECT_EQ(ListOf(OrderOfSix().slot), (std::vector<std::int64_t>{1, 2, 5, 0, 3, 4}));
}

TEST(OrderByExpert, KnowsTheTokenOfEverySlot) {
  EXPECT_EQ(ListOf(OrderOfSix().token_of_slot), (std::vector<std::int64_t>{0, 1, 2, 0, 1, 2}));
}

TEST(OrderByExpert, FindsEverySlotAgain) {
  EXPECT_EQ(ListOf(OrderOfSix().inverse), (std::vector<std::int64_t>{3, 0, 1, 4, 5, 2}));
}

TEST(OrderByExpert, CountsExpertsWithoutSlotsToo) {
  EXPECT_EQ(OrderOfSix().slots_per_expert, (std::vector<std::int64_t>{3, 0, 3, 0}));
}

// How many rows each rank brings for each expert.
using Counts = std::vector<std::vector<std::int64_t>>;

// Uneven; nobody has a row for expert 4, rank 1 has none at all.
const Counts kUneven = {{2, 1, 1, 3, 0, 0}, {0, 0, 0, 0, 0, 0}, {1, 4, 2, 0, 0, 2}};
// All rows are for the experts of one rank.
const Counts kCrowded = {{0, 0, 2, 1, 0, 0}, {0, 0, 0, 4, 0, 0}, {0, 0, 1, 1, 0, 0}};
const Counts kNone = {{0, 0, 0, 0, 0, 0}, {0, 0, 0, 0, 0, 0}, {0, 0, 0, 0, 0, 0}};

std::int64_t RowsOf(const std::vector<std::int64_t>& counts) {
  std::int64_t rows = 0;
  for (const std::int64_t of_expert : counts) {
    rows += of_expert;
  }
  return rows;
}

// The rows that a rank brings, ordered by expert; no two of all ranks are equal. With `salt`, other
// such numbers.
at::Tensor RowsOfRank(const Counts& counts, std::int64_t rank, double salt = 0.0) {
  const std::int64_t rows = RowsOf(counts[static_cast<std::size_t>(rank)]);
  return at::arange(rows * kWidth, at::kDouble).view({rows, kWidth}) +
         100.0 * static_cast<double>(rank + 1) + salt;
}

// The rows of all ranks for the experts from `first` to `last`, expert by expert, and of one expert
// rank by rank: what their owner must hold.
at::Tensor RowsForExperts(const Counts& counts, std::size_t first, std::size_t last,
                          double salt = 0.0) {
  std::vector<at::Tensor> rows = {at::empty({0, kWidth}, at::kDouble)};
  for (std::size_t expert = first; expert < last; ++expert) {
    for (std::size_t rank = 0; rank < counts.size(); ++rank) {
      std::int64_t before = 0;
      for (std::size_t other = 0; other < expert; ++other) {
        before += counts[rank][other];
      }
      rows.push_back(RowsOfRank(counts, static_cast<std::int64_t>(rank), salt)
                         .narrow(0, before, counts[rank][expert]));
    }
  }
  return at::cat(rows);
}

// One number per expert, by which a rank's rows are multiplied to tell that they met their expert.
at::Tensor FactorOfRows(const std::vector<std::int64_t>& rows_per_expert,
                        std::int64_t first_expert) {
  std::vector<double> factors;
  for (std::size_t expert = 0; expert < rows_per_expert.size(); ++expert) {
    factors.insert(factors.end(), static_cast<std::size_t>(rows_per_expert[expert]),
                   static_cast<double>(first_expert + static_cast<std::int64_t>(expert) + 2));
  }
  return at::tensor(factors, at::kDouble).unsqueeze(1);
}

// Which rows there are.
class OfRows : public testing::TestWithParam<Counts> {
 protected:
  const Counts& counts() const { return GetParam(); }
  const std::vector<std::int64_t>& CountsOf(std::int64_t rank) const {
    return counts()[static_cast<std::size_t>(rank)];
  }
};

std::string NameOf(const testing::TestParamInfo<Counts>& info) {
  return std::vector<std::string>{"Uneven", "ForOneRank", "None"}[info.index];
}

// Three ranks with two experts each.
class DispatchOverEp : public OfRows {
 protected:
  static void OnEp(const std::function<void(Communicator& comm)>& body) {
    EXPECT_EQ(OnMesh(ContractOf({.dp_shard = 3, .ep = 3}), body), "");
  }
};
INSTANTIATE_TEST_SUITE_P(Rows, DispatchOverEp, testing::Values(kUneven, kCrowded, kNone), NameOf);

TEST_P(DispatchOverEp, BringsRowsToTheOwnersOrderedByExpertAndRank) {
  OnEp([&](Communicator& comm) {
    const Dispatched sent =
        Dispatch(comm, RowsOfRank(counts(), comm.rank()), CountsOf(comm.rank()));
    const auto first = static_cast<std::size_t>(comm.rank()) * 2;
    EXPECT_TRUE(sent.rows_nD.equal(RowsForExperts(counts(), first, first + 2))) << comm.rank();
  });
}

TEST_P(DispatchOverEp, CountsTheRowsOfEachOfItsExperts) {
  OnEp([&](Communicator& comm) {
    const Dispatched sent =
        Dispatch(comm, RowsOfRank(counts(), comm.rank()), CountsOf(comm.rank()));
    std::vector<std::int64_t> want(2);
    for (const auto& of_rank : counts()) {
      want[0] += of_rank[static_cast<std::size_t>(comm.rank()) * 2];
      want[1] += of_rank[static_cast<std::size_t>(comm.rank()) * 2 + 1];
    }
    EXPECT_EQ(sent.rows_per_expert, want) << comm.rank();
  });
}

TEST_P(DispatchOverEp, CombineBringsEveryRowBackToItsPlace) {
  OnEp([&](Communicator& comm) {
    const at::Tensor rows_nD = RowsOfRank(counts(), comm.rank());
    const Dispatched sent = Dispatch(comm, rows_nD, CountsOf(comm.rank()));
    EXPECT_TRUE(Combine(comm, sent.rows_nD, sent).equal(rows_nD)) << comm.rank();
  });
}

TEST_P(DispatchOverEp, EveryRowMeetsItsExpertInForwardAndBackward) {
  OnEp([&](Communicator& comm) {
    const at::Tensor rows_nD = RowsOfRank(counts(), comm.rank()).requires_grad_();
    const Dispatched sent = Dispatch(comm, rows_nD, CountsOf(comm.rank()));
    const at::Tensor y_nD = Combine(
        comm, sent.rows_nD * FactorOfRows(sent.rows_per_expert, /*first_expert=*/comm.rank() * 2),
        sent);
    const at::Tensor d_y_nD = RowsOfRank(counts(), comm.rank(), /*salt=*/7.0);
    y_nD.backward(d_y_nD);
    const at::Tensor factor_n = FactorOfRows(CountsOf(comm.rank()), /*first_expert=*/0);
    EXPECT_TRUE(y_nD.equal(rows_nD.detach() * factor_n)) << comm.rank();
    EXPECT_TRUE(rows_nD.grad().equal(d_y_nD * factor_n)) << comm.rank();
  });
}

TEST_P(DispatchOverEp, TheOwnerOfAnExpertGetsTheGradientsOfAllItsRows) {
  OnEp([&](Communicator& comm) {
    const Dispatched sent =
        Dispatch(comm, RowsOfRank(counts(), comm.rank()).requires_grad_(), CountsOf(comm.rank()));
    const at::Tensor outputs_nD = sent.rows_nD.detach().requires_grad_();
    Combine(comm, outputs_nD, sent).backward(RowsOfRank(counts(), comm.rank(), /*salt=*/7.0));
    const auto first = static_cast<std::size_t>(comm.rank()) * 2;
    EXPECT_TRUE(outputs_nD.grad().equal(RowsForExperts(counts(), first, first + 2, /*salt=*/7.0)))
        << comm.rank();
  });
}

TEST(DispatchOnOneRank, HandsOverTheRowsAsTheyAre) {
  const StepContract contract = ContractOf({});
  MeshCommunicator comm(contract, /*rank=*/0, nullptr);
  const at::Tensor rows_nD = RowsOfRank(kUneven, 0);
  const Dispatched sent = Dispatch(comm, rows_nD, kUneven[0]);
  EXPECT_TRUE(sent.rows_nD.is_same(rows_nD));
  EXPECT_EQ(sent.rows_per_expert, kUneven[0]);
  EXPECT_TRUE(Combine(comm, rows_nD, sent).is_same(rows_nD));
}

// Three ranks that have slices of the same six experts.
class GatherOverEtpOf : public OfRows {
 protected:
  static void OnEtp(const std::function<void(MeshCommunicator& comm)>& body) {
    EXPECT_EQ(OnMesh(ContractOf({.dp_shard = 3, .etp = 3}), body), "");
  }
  std::vector<std::int64_t> RowsPerExpert() const {
    std::vector<std::int64_t> sums(counts()[0].size());
    for (const auto& of_rank : counts()) {
      for (std::size_t expert = 0; expert < sums.size(); ++expert) {
        sums[expert] += of_rank[expert];
      }
    }
    return sums;
  }
};
INSTANTIATE_TEST_SUITE_P(Rows, GatherOverEtpOf, testing::Values(kUneven, kCrowded, kNone), NameOf);

TEST_P(GatherOverEtpOf, GivesEveryRankTheRowsOfAllOrderedByExpertAndRank) {
  OnEtp([&](Communicator& comm) {
    const Gathered all =
        GatherOverEtp(comm, RowsOfRank(counts(), comm.rank()), CountsOf(comm.rank()));
    EXPECT_TRUE(all.rows_nD.equal(RowsForExperts(counts(), 0, 6))) << comm.rank();
    EXPECT_EQ(all.rows_per_expert, RowsPerExpert()) << comm.rank();
  });
}

TEST_P(GatherOverEtpOf, BackwardGivesARowTheSumOfItsGradientsOnAllRanks) {
  OnEtp([&](Communicator& comm) {
    const at::Tensor rows_nD = RowsOfRank(counts(), comm.rank()).requires_grad_();
    const Gathered all = GatherOverEtp(comm, rows_nD, CountsOf(comm.rank()));
    // The ranks' shares of the gradient of one row are 1, 2 and 3 times the row.
    all.rows_nD.backward(all.rows_nD.detach() * static_cast<double>(comm.rank() + 1));
    EXPECT_TRUE(rows_nD.grad().equal(rows_nD.detach() * 6.0)) << comm.rank();
  });
}

TEST_P(GatherOverEtpOf, SumOverEtpGivesEveryRankTheSumsOfItsOwnRows) {
  OnEtp([&](Communicator& comm) {
    const at::Tensor rows_nD = RowsOfRank(counts(), comm.rank());
    const Gathered all = GatherOverEtp(comm, rows_nD, CountsOf(comm.rank()));
    const at::Tensor sums_nD =
        SumOverEtp(comm, all.rows_nD * static_cast<double>(comm.rank() + 1), all);
    EXPECT_TRUE(sums_nD.equal(rows_nD * 6.0)) << comm.rank();
  });
}

TEST_P(GatherOverEtpOf, BackwardGivesEveryShareOfARowItsGradient) {
  OnEtp([&](Communicator& comm) {
    const Gathered all =
        GatherOverEtp(comm, RowsOfRank(counts(), comm.rank()), CountsOf(comm.rank()));
    const at::Tensor part_nD = at::zeros_like(all.rows_nD).requires_grad_();
    SumOverEtp(comm, part_nD, all).backward(RowsOfRank(counts(), comm.rank(), /*salt=*/7.0));
    EXPECT_TRUE(part_nD.grad().equal(RowsForExperts(counts(), 0, 6, /*salt=*/7.0))) << comm.rank();
  });
}

TEST(GatherOverEtp, NamesItsSumsInTheLog) {
  const StepContract contract = ContractOf({.dp_shard = 3, .etp = 3});
  EXPECT_EQ(OnMesh(contract,
                   [&](MeshCommunicator& comm) {
                     const auto rank = static_cast<std::size_t>(comm.rank());
                     const at::Tensor rows_nD = RowsOfRank(kUneven, comm.rank()).requires_grad_();
                     const Gathered all = GatherOverEtp(comm, rows_nD, kUneven[rank]);
                     SumOverEtp(comm, all.rows_nD, all).sum().backward();
                     EXPECT_EQ(comm.calls(),
                               (std::vector<std::string>{"y_routed_ND@etp", "d_routed_ND@etp"}));
                   }),
            "");
}

at::Tensor Coarse(const std::vector<double>& values) {
  return at::tensor(values, at::kDouble).to(at::kBFloat16);
}

// (1 + 2^-7) (1 + 2^-8) lies above the middle between two numbers of bfloat16, and the second
// factor is none of them.
TEST(ScaleRows, RoundsTheProductOnceAndTheScaleNever) {
  const at::Tensor rows_nD = Coarse({1.0 + 0x1p-7}).view({1, 1});
  const at::Tensor scale_n = at::tensor({1.0 + 0x1p-8}, at::kDouble).to(at::kFloat);
  EXPECT_EQ(ScaleRows(rows_nD, scale_n).item<float>(), 1.0F + 0x1p-6F);
}

// Added one by one in bfloat16, either of the small ones would be lost.
TEST(SumSlots, RoundsTheSumOnce) {
  const at::Tensor slots_TKD = Coarse({1.0, 0x1p-8, 0x1p-8}).view({1, 3, 1});
  const at::Tensor weights_TK = at::ones({1, 3}, at::kFloat);
  EXPECT_EQ(SumSlots(slots_TKD, weights_TK, ScorePlacement::kAfterExperts).item<float>(),
            1.0F + 0x1p-7F);
}

TEST(SumSlots, WeighsSlotsUnlessTheExpertsDid) {
  const at::Tensor slots_TKD = at::tensor({10.0, 1.0}, at::kDouble).view({1, 2, 1});
  const at::Tensor weights_TK = at::tensor({2.0, 3.0}, at::kDouble).view({1, 2});
  EXPECT_EQ(SumSlots(slots_TKD, weights_TK, ScorePlacement::kAfterExperts).item<double>(), 23.0);
  EXPECT_EQ(SumSlots(slots_TKD, weights_TK, ScorePlacement::kBeforeExperts).item<double>(), 11.0);
}

}  // namespace
}  // namespace moe::parallel
