// The in-process collectives: right sums, the same on every rank, and an end to every wait.

#include "harness/parallel/thread_group.h"

#include <gtest/gtest.h>

#include <functional>
#include <numeric>

#include "harness/base/error.h"
#include "harness/parallel/ranks_under_test.h"

namespace moe::parallel {
namespace {

// Runs body(rank, group) on `size` ranks that are all in one group; returns what each of them
// threw.
std::vector<std::string> InOneGroup(std::int64_t size, std::chrono::milliseconds deadline,
                                    const std::function<void(std::int64_t, Group&)>& body) {
  std::vector<std::int64_t> ranks(static_cast<std::size_t>(size));
  std::iota(ranks.begin(), ranks.end(), std::int64_t{0});
  return OnRanks(size, deadline, [&](std::int64_t rank, ThreadWorld& world) {
    const auto group = world.Join(ranks, rank);
    body(rank, *group);
  });
}

constexpr std::chrono::milliseconds kLong{10'000};

TEST(ThreadGroup, SumsInRankOrderAlikeOnAllRanks) {
  std::vector<at::Tensor> sums(3);
  InOneGroup(3, kLong, [&](std::int64_t rank, Group& group) {
    sums[static_cast<std::size_t>(rank)] =
        group.AllReduceSum(at::full({4}, 0.1 * static_cast<double>(rank + 1), at::kDouble));
  });
  EXPECT_EQ(sums[0][0].item<double>(), (0.1 + 0.1 * 2.0) + 0.1 * 3.0);
  EXPECT_TRUE(sums[0].equal(sums[1]) && sums[1].equal(sums[2]));
}

TEST(ThreadGroup, ReduceScatterKeepsTheRanksOwnRows) {
  std::vector<at::Tensor> rows(2);
  InOneGroup(2, kLong, [&](std::int64_t rank, Group& group) {
    rows[static_cast<std::size_t>(rank)] =
        group.ReduceScatterSum(at::arange(6, at::kDouble).view({6, 1}) + static_cast<double>(rank));
  });
  EXPECT_TRUE(rows[1].equal(at::tensor({7.0, 9.0, 11.0}, at::kDouble).view({3, 1})));
}

TEST(ThreadGroup, AllToAllExchangesUnevenRows) {
  std::vector<at::Tensor> got(2);
  InOneGroup(2, kLong, [&](std::int64_t rank, Group& group) {
    const std::vector<std::int64_t> send =
        rank == 0 ? std::vector<std::int64_t>{1, 2} : std::vector<std::int64_t>{0, 3};
    const std::vector<std::int64_t> receive =
        rank == 0 ? std::vector<std::int64_t>{1, 0} : std::vector<std::int64_t>{2, 3};
    got[static_cast<std::size_t>(rank)] = group.AllToAll(
        at::arange(3, at::kDouble).view({3, 1}) + 10.0 * static_cast<double>(rank), send, receive);
  });
  EXPECT_TRUE(got[0].equal(at::tensor({0.0}, at::kDouble).view({1, 1})));
  EXPECT_TRUE(got[1].equal(at::tensor({1.0, 2.0, 10.0, 11.0, 12.0}, at::kDouble).view({5, 1})));
}

TEST(ThreadGroup, RefusesShapesThatDifferOnEveryRank) {
  const auto words = InOneGroup(2, kLong, [](std::int64_t rank, Group& group) {
    group.AllReduceSum(at::zeros({3 + rank}, at::kDouble));
  });
  EXPECT_EQ(words[0],
            "rank 0 is in all_reduce with 3 elements while rank 1 is in all_reduce with 4");
  EXPECT_EQ(words[1],
            "rank 1 is in all_reduce with 4 elements while rank 0 is in all_reduce with 3");
}

TEST(ThreadGroup, RefusesDifferentOperations) {
  const auto words = InOneGroup(2, kLong, [](std::int64_t rank, Group& group) {
    rank == 0 ? group.AllReduceSum(at::zeros({2}, at::kDouble))
              : group.AllGather(at::zeros({2}, at::kDouble));
  });
  EXPECT_EQ(words[0],
            "rank 0 is in all_reduce with 2 elements while rank 1 is in all_gather with 2");
}

TEST(ThreadGroup, EndsTheWaitForARankThatNeverComes) {
  const auto words =
      InOneGroup(2, std::chrono::milliseconds(50), [](std::int64_t rank, Group& group) {
        if (rank == 0) {
          group.AllReduceSum(at::zeros({2}, at::kDouble));
        }
      });
  EXPECT_EQ(words[0], "waited 50 ms in all_reduce for ranks 0, 1; 1 of 2 came");
}

TEST(ThreadGroup, PassesTheWordsOfAFailedRankToTheOthers) {
  const auto words = InOneGroup(3, kLong, [](std::int64_t rank, Group& group) {
    if (rank == 1) {
      throw Error("", "out of luck");
    }
    group.AllReduceSum(at::zeros({2}, at::kDouble));
  });
  EXPECT_EQ(words, (std::vector<std::string>{"out of luck", "out of luck", "out of luck"}));
}

}  // namespace
}  // namespace moe::parallel
