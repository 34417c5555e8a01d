#include "harness/explain/sum_table.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace moe {
namespace {

const Meshes kMeshes = MakeMeshes(ParseLayout("dp2.tp3.ep2.etp1", "test"));  // rank = 3 dp + tp

// How often each rank's share is held, by rank.
SumTable::Row Row(std::initializer_list<double> times) {
  SumTable::Row row;
  std::int64_t source = 0;
  for (const double of_source : times) {
    if (of_source != 0.0) {
      row.push_back({source, of_source});
    }
    ++source;
  }
  return row;
}

std::vector<SumHypothesis> Find(const std::vector<SumHypothesis>& all, Cause cause) {
  std::vector<SumHypothesis> found;
  std::copy_if(all.begin(), all.end(), std::back_inserter(found),
               [&](const SumHypothesis& h) { return h.explanation.cause == cause; });
  return found;
}

TEST(SumTable, SumsOverAllAxesReachEveryRankOnce) {
  EXPECT_EQ(AfterSums(kMeshes, {Axis::kTp, Axis::kDpShard}).RowOf(3), Row({1, 1, 1, 1, 1, 1}));
  EXPECT_EQ(AfterSums(kMeshes, {Axis::kTp}).RowOf(4), Row({0, 0, 0, 1, 1, 1}));
}

TEST(SumTable, WithoutASumOnlyTheOwnCoordinateIsLeft) {
  const SumTable right = AfterSums(kMeshes, {Axis::kTp, Axis::kDpShard});
  EXPECT_EQ(right.Without({Axis::kTp}).RowOf(4), Row({0, 1, 0, 0, 1, 0}));
  EXPECT_EQ(right.Without({Axis::kTp, Axis::kDpShard}).RowOf(4), Row({0, 0, 0, 0, 1, 0}));
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
  EXPECT_EQ(found->table.RowOf(4), Row({0, 2, 0, 0, 2, 0}));
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
  EXPECT_EQ(found->table.RowOf(1), Row({1, 1, 1, 0, 0, 0}));
  EXPECT_EQ(found->table.RowOf(2), Row({1, 1, 1, 1, 1, 1}));
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

std::vector<std::vector<Axis>> UsedInstead(const std::string& layout) {
  const Meshes meshes = MakeMeshes(ParseLayout(layout, "test"));
  std::vector<std::vector<Axis>> used;
  for (const SumHypothesis& h :
       Find(SumHypothesesOf({.meshes = &meshes, .own = MeshKind::kExpert, .alone = {Axis::kEdp}}),
            Cause::kWrongGroup)) {
    EXPECT_EQ(h.explanation.axes, std::vector{Axis::kEdp});
    used.push_back(h.explanation.used);
  }
  return used;
}

// Megatron-core 0.18.2 with etp over tp: experts that are alone on edp are summed over the ranks of
// the dense mesh, which have other slices.
TEST(SumHypotheses, ASumThatIsOwedNothingMayGoOverOtherRanks) {
  using Used = std::vector<std::vector<Axis>>;
  EXPECT_EQ(UsedInstead("dp2.tp1.etp2"), (Used{{Axis::kDpShard}}));  // etp has the same groups
  EXPECT_EQ(UsedInstead("dp2.tp2.etp4"), (Used{{Axis::kDpShard}, {Axis::kTp}, {Axis::kEtp}}));
  EXPECT_EQ(
      UsedInstead("dp2.cp2.tp2.etp8"),
      (Used{
          {Axis::kDpShard}, {Axis::kCp}, {Axis::kTp}, {Axis::kEtp}, {Axis::kDpShard, Axis::kCp}}));
  EXPECT_EQ(UsedInstead("dp1"), Used{});
}

TEST(SumHypotheses, ExpertsMayBeSummedOverTheWholeBatchOfTheDenseMesh) {
  const Meshes meshes = MakeMeshes(ParseLayout("dp2.cp2.tp2.etp1", "test"));
  const auto wrong = Find(SumHypothesesOf({.meshes = &meshes,
                                           .own = MeshKind::kExpert,
                                           .sums = {Axis::kEdp},
                                           .order_is_known = true}),
                          Cause::kWrongGroup);
  const auto found = std::find_if(wrong.begin(), wrong.end(), [](const SumHypothesis& h) {
    return h.explanation.used == std::vector{Axis::kDpShard, Axis::kCp};
  });
  ASSERT_NE(found, wrong.end());
  EXPECT_EQ(found->table.RowOf(3), Row({0, 1, 0, 1, 0, 1, 0, 1}));
}

TEST(SumHypotheses, ARankOfASumInsideTheStepIsLackedByAll) {
  const auto all = RankHypothesesOf(AfterSums(kMeshes, {Axis::kTp, Axis::kDpShard}), Axis::kEtp);
  const auto dropped = Find(all, Cause::kDroppedContribution);
  const auto doubled = Find(all, Cause::kDoubledContribution);
  ASSERT_EQ(dropped.size(), 6U);
  ASSERT_EQ(doubled.size(), 6U);
  EXPECT_EQ(dropped[2].explanation.sources, std::vector<std::int64_t>{2});
  EXPECT_EQ(dropped[2].table.RowOf(5), Row({1, 1, 0, 1, 1, 1}));
  EXPECT_EQ(doubled[2].table.RowOf(5), Row({1, 1, 2, 1, 1, 1}));
}

TEST(SumTable, OfThousandsOfRanksHasNoMoreThanTheRowsThatAreAskedFor) {
  const Meshes meshes = MakeMeshes(ParseLayout("dp512.tp8.ep64.etp1", "test"));
  const SumTable right = AfterSums(meshes, {Axis::kTp, Axis::kDpShard});
  EXPECT_EQ(std::ssize(right.RowOf(17)), 4096);
  EXPECT_EQ(std::ssize(right.Without({Axis::kDpShard}).RowOf(17)), 8);
  EXPECT_EQ(right, AfterSums(meshes, {Axis::kDpShard, Axis::kTp}));
  EXPECT_FALSE(right == right.Without({Axis::kTp}));
}

}  // namespace
}  // namespace moe
