#include "harness/compare/sum_table.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace moe {
namespace {

const Meshes kMeshes = MakeMeshes(ParseLayout("dp2.tp3.ep2.etp1", "test"));  // rank = 3 dp + tp

Eigen::RowVectorXd Row(std::initializer_list<double> values) {
  Eigen::RowVectorXd row(static_cast<Eigen::Index>(values.size()));
  std::copy(values.begin(), values.end(), row.data());
  return row;
}

std::vector<SumHypothesis> Find(const std::vector<SumHypothesis>& all, Cause cause) {
  std::vector<SumHypothesis> found;
  std::copy_if(all.begin(), all.end(), std::back_inserter(found),
               [&](const SumHypothesis& h) { return h.explanation.cause == cause; });
  return found;
}

TEST(SumTable, SumsOverAllAxesReachEveryRankOnce) {
  EXPECT_EQ(AfterSums(kMeshes, {Axis::kTp, Axis::kDpShard}), SumTable::Ones(6, 6));
  EXPECT_EQ(AfterSums(kMeshes, {Axis::kTp}).row(4), Row({0, 0, 0, 1, 1, 1}));
}

TEST(SumTable, WithoutASumOnlyTheOwnCoordinateIsLeft) {
  const SumTable right = AfterSums(kMeshes, {Axis::kTp, Axis::kDpShard});
  EXPECT_EQ(WithoutSums(kMeshes, right, {Axis::kTp}).row(4), Row({0, 1, 0, 0, 1, 0}));
  EXPECT_EQ(WithoutSums(kMeshes, right, {Axis::kTp, Axis::kDpShard}).row(4),
            Row({0, 0, 0, 0, 1, 0}));
}

TEST(SumHypotheses, AWrongGroupCountsItsRanksTwiceWhereTheyAreSummedAgain) {
  const auto all = SumHypothesesOf(
      {.meshes = &kMeshes, .sums = {Axis::kTp, Axis::kDpShard}, .order_is_known = true});
  const auto wrong = Find(all, Cause::kWrongGroup);
  const auto found = std::find_if(wrong.begin(), wrong.end(), [](const SumHypothesis& h) {
    return h.explanation.axes == std::vector{Axis::kTp} &&
           h.explanation.used == std::vector{Axis::kDpShard};
  });
  ASSERT_NE(found, wrong.end());
  EXPECT_EQ(found->table.row(4), Row({0, 2, 0, 0, 2, 0}));
}

// What a rank brings to the second sum is the first one's result; only its own group lacks it.
TEST(SumHypotheses, ARankLeftOutOfALaterSumTakesItsGroupWithIt) {
  const auto dropped =
      Find(SumHypothesesOf(
               {.meshes = &kMeshes, .sums = {Axis::kTp, Axis::kDpShard}, .order_is_known = true}),
           Cause::kDroppedContribution);
  const auto found = std::find_if(dropped.begin(), dropped.end(), [](const SumHypothesis& h) {
    return h.explanation.axes == std::vector{Axis::kDpShard} &&
           h.explanation.sources == std::vector<std::int64_t>{4};
  });
  ASSERT_NE(found, dropped.end());
  EXPECT_EQ(found->table.row(1), Row({1, 1, 1, 0, 0, 0}));
  EXPECT_EQ(found->table.row(2), Row({1, 1, 1, 1, 1, 1}));
}

TEST(SumHypotheses, NameNothingThatTheJudgeHasSummedItself) {
  const auto all = SumHypothesesOf(
      {.meshes = &kMeshes, .sums = {Axis::kTp, Axis::kDpShard}, .judged = {Axis::kDpShard}});
  for (const SumHypothesis& h : Find(all, Cause::kMissingSum)) {
    EXPECT_EQ(std::count(h.explanation.axes.begin(), h.explanation.axes.end(), Axis::kDpShard), 0);
  }
  EXPECT_FALSE(Find(all, Cause::kMissingSum).empty());
}

TEST(SumHypotheses, OneGroupHasOneName) {
  const Meshes meshes = MakeMeshes(ParseLayout("tp2.ep2.etp1", "test"));  // ep has tp's groups
  const auto missing =
      Find(SumHypothesesOf({.meshes = &meshes, .sums = {Axis::kTp}}), Cause::kMissingSum);
  ASSERT_EQ(missing.size(), 1U);
  EXPECT_EQ(missing[0].explanation.axes, std::vector{Axis::kTp});
}

}  // namespace
}  // namespace moe
