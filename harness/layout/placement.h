// How one tensor lies on a mesh, axis by axis, in DTensor's terms.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "harness/base/tensors.h"
#include "harness/layout/layout.h"

namespace moe {

struct Placement {
  enum class Kind { kReplicate, kShard, kStridedShard, kPartial };

  Kind kind = Kind::kReplicate;
  std::int64_t dim = 0;    // sharded dimension
  std::int64_t split = 1;  // kStridedShard: how many parts each chunk is taken from

  bool IsShard() const { return kind == Kind::kShard || kind == Kind::kStridedShard; }

  bool operator==(const Placement&) const = default;
};

inline Placement Replicate() {
  return {};
}
inline Placement Shard(std::int64_t dim) {
  return {Placement::Kind::kShard, dim, 1};
}
inline Placement Partial() {
  return {Placement::Kind::kPartial, 0, 1};
}
inline Placement StridedShard(std::int64_t dim, std::int64_t split) {
  return {Placement::Kind::kStridedShard, dim, split};
}

std::string ToText(const Placement& placement);  // "R", "S(0)", "SS(0,4)", "P"
std::optional<Placement> PlacementFromText(std::string_view text);

// An axis that is not listed replicates.
using Placements = std::map<Axis, Placement>;

Placement PlacementOn(const Placements& placements, Axis axis);

// Which global indices a rank holds, per dimension: element (i, j) of the local tensor is element
// (index[0][i], index[1][j]) of the global one.
struct Slice {
  std::vector<std::vector<std::int64_t>> index;

  Shape LocalShape() const;
  bool operator==(const Slice&) const = default;
};

Slice WholeOf(const Shape& shape);

// Moves `at`, a place in the first at.size() dimensions of `slice`, on to the next one, the last
// dimension fastest; after the last place comes the first.
void Advance(const Slice& slice, std::vector<std::size_t>& at);

// Applies the placements outermost axis first, as DTensor does: Shard cuts what is left of the
// dimension into chunks of ceil(n / size), the last ones smaller or empty; StridedShard(dim, k)
// cuts it into k parts and takes this rank's chunk of each (torch.distributed.tensor
// _StridedShard).
Slice SliceOf(const Shape& global_shape, const Mesh& mesh, const Placements& placements,
              std::int64_t rank);

}  // namespace moe
