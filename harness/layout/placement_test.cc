#include "harness/layout/placement.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace moe {
namespace {

using Indices = std::vector<std::int64_t>;

const Mesh kDp2Tp4 = {.axes = {Axis::kDpShard, Axis::kTp}, .sizes = {2, 4}};

// What every rank holds of a tensor of one dimension.
std::vector<Indices> Held(std::int64_t size, const Placements& placements) {
  std::vector<Indices> held;
  for (std::int64_t rank = 0; rank < kDp2Tp4.WorldSize(); ++rank) {
    held.push_back(SliceOf({size}, kDp2Tp4, placements, rank).index[0]);
  }
  return held;
}

TEST(Placement, ReadsWhatItPrints) {
  for (const char* text : {"R", "P", "S(0)", "S(2)", "SS(0,4)", "SS(1,1)"}) {
    ASSERT_TRUE(PlacementFromText(text)) << text;
    EXPECT_EQ(ToText(*PlacementFromText(text)), text);
  }
  EXPECT_EQ(PlacementFromText("SS(1,4)"), StridedShard(1, 4));
}

TEST(Placement, RefusesWhatIsNoPlacement) {
  for (const char* text :
       {"", "r", "S", "S(", "S()", "S(-1)", "S(x)", "S(0", "S(0,1)", "S(0) ", "S( 0)", "SS(0)",
        "SS(0,0)", "SS(0,-2)", "SS(0,4,2)", "SS(,4)", "RP", "S(99999999999999999999)"}) {
    EXPECT_FALSE(PlacementFromText(text)) << text;
  }
}

TEST(Placement, ReplicatesOnAnAxisThatIsNotListed) {
  EXPECT_EQ(PlacementOn({{Axis::kTp, Shard(0)}}, Axis::kDpShard), Replicate());
}

TEST(Slice, ShardsAnUnevenDimensionAsTorchChunkDoes) {
  EXPECT_EQ(Held(6, {{Axis::kTp, Shard(0)}}),
            (std::vector<Indices>{{0, 1}, {2, 3}, {4, 5}, {}, {0, 1}, {2, 3}, {4, 5}, {}}));
}

TEST(Slice, AppliesTheOuterAxisFirst) {
  EXPECT_EQ(Held(8, {{Axis::kDpShard, Shard(0)}, {Axis::kTp, Shard(0)}}),
            (std::vector<Indices>{{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}}));
}

// FSDP shards what TP left of a weight, though dp is the outer axis: DTensor spells this
// (_StridedShard(0, split_factor=4), Shard(0)).
TEST(Slice, StridedShardIsTpFirstThenFsdp) {
  EXPECT_EQ(
      Held(16, {{Axis::kDpShard, StridedShard(0, 4)}, {Axis::kTp, Shard(0)}}),
      (std::vector<Indices>{{0, 1}, {4, 5}, {8, 9}, {12, 13}, {2, 3}, {6, 7}, {10, 11}, {14, 15}}));
  EXPECT_EQ(Held(16, {{Axis::kDpShard, StridedShard(0, 4)}})[4],
            (Indices{2, 3, 6, 7, 10, 11, 14, 15}));
}

TEST(Slice, TilesTheTensorForEveryPairOfPlacements) {
  for (std::int64_t size = 1; size <= 17; ++size) {
    for (const Placement dp : {Shard(0), StridedShard(0, 4), StridedShard(0, 3)}) {
      Indices held;
      for (const Indices& indices : Held(size, {{Axis::kDpShard, dp}, {Axis::kTp, Shard(0)}})) {
        held.insert(held.end(), indices.begin(), indices.end());
      }
      std::sort(held.begin(), held.end());
      EXPECT_EQ(held, WholeOf({size}).index[0]) << size << " " << ToText(dp);
    }
  }
}

TEST(Slice, CutsEachDimensionOnItsOwn) {
  const Slice slice =
      SliceOf({4, 6, 2}, kDp2Tp4, {{Axis::kDpShard, Shard(1)}, {Axis::kTp, Shard(0)}}, 6);
  EXPECT_EQ(slice.index, (std::vector<Indices>{{2}, {3, 4, 5}, {0, 1}}));
  EXPECT_EQ(slice.LocalShape(), (Shape{1, 3, 2}));
}

TEST(Slice, IsWholeWhereValuesAreReplicatedOrPartial) {
  EXPECT_EQ(SliceOf({4, 2}, kDp2Tp4, {{Axis::kDpShard, Partial()}, {Axis::kTp, Replicate()}}, 5),
            WholeOf({4, 2}));
}

TEST(Advance, VisitsEveryPlaceLastDimensionFastest) {
  const Slice slice = WholeOf({2, 3});
  std::vector<std::size_t> at = {0, 0};
  std::vector<std::vector<std::size_t>> visited;
  for (int i = 0; i < 6; ++i) {
    visited.push_back(at);
    Advance(slice, at);
  }
  EXPECT_EQ(visited, (std::vector<std::vector<std::size_t>>{
                         {0, 0}, {0, 1}, {0, 2}, {1, 0}, {1, 1}, {1, 2}}));
  EXPECT_EQ(at, (std::vector<std::size_t>{0, 0}));
}

}  // namespace
}  // namespace moe
