#include "harness/layout/placement.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <numeric>

namespace moe {
namespace {

using Indices = std::vector<std::int64_t>;

// Chunk `which` of `count` as torch.chunk cuts: every chunk has ceil(n / count) elements until they
// run out.
Indices ChunkOf(const Indices& all, std::int64_t count, std::int64_t which) {
  const auto n = static_cast<std::int64_t>(all.size());
  const std::int64_t size = (n + count - 1) / count;
  const std::int64_t begin = std::min(n, which * size);
  const std::int64_t end = std::min(n, begin + size);
  return {all.begin() + begin, all.begin() + end};
}

Indices StridedChunkOf(const Indices& all, std::int64_t parts, std::int64_t count,
                       std::int64_t which) {
  Indices chunk;
  for (std::int64_t part = 0; part < parts; ++part) {
    const Indices piece = ChunkOf(ChunkOf(all, parts, part), count, which);
    chunk.insert(chunk.end(), piece.begin(), piece.end());
  }
  return chunk;
}

// The whole numbers of "2" or "0,4"; nothing unless that is all there is.
std::optional<Indices> NumbersOf(std::string_view text) {
  Indices numbers;
  while (true) {
    const std::string_view part = text.substr(0, text.find(','));
    std::int64_t number = 0;
    const auto [end, code] = std::from_chars(part.data(), part.data() + part.size(), number);
    if (code != std::errc{} || end != part.data() + part.size() || number < 0) {
      return std::nullopt;
    }
    numbers.push_back(number);
    if (part.size() == text.size()) {
      return numbers;
    }
    text.remove_prefix(part.size() + 1);
  }
}

}  // namespace

std::string ToText(const Placement& placement) {
  switch (placement.kind) {
    case Placement::Kind::kReplicate:
      return "R";
    case Placement::Kind::kPartial:
      return "P";
    case Placement::Kind::kShard:
      return fmt::format("S({})", placement.dim);
    case Placement::Kind::kStridedShard:
      return fmt::format("SS({},{})", placement.dim, placement.split);
  }
  return "";
}

std::optional<Placement> PlacementFromText(std::string_view text) {
  if (text == "R") {
    return Replicate();
  }
  if (text == "P") {
    return Partial();
  }
  const bool strided = text.starts_with("SS(");
  if ((!strided && !text.starts_with("S(")) || !text.ends_with(")")) {
    return std::nullopt;
  }
  text.remove_prefix(strided ? 3 : 2);
  text.remove_suffix(1);
  const auto numbers = NumbersOf(text);
  if (!numbers || numbers->size() != (strided ? 2U : 1U)) {
    return std::nullopt;
  }
  if (!strided) {
    return Shard((*numbers)[0]);
  }
  if ((*numbers)[1] < 1) {
    return std::nullopt;
  }
  return StridedShard((*numbers)[0], (*numbers)[1]);
}

Placement PlacementOn(const Placements& placements, Axis axis) {
  const auto found = placements.find(axis);
  return found == placements.end() ? Replicate() : found->second;
}

Shape Slice::LocalShape() const {
  Shape shape;
  for (const auto& indices : index) {
    shape.push_back(static_cast<std::int64_t>(indices.size()));
  }
  return shape;
}

Slice WholeOf(const Shape& shape) {
  Slice slice;
  for (const std::int64_t size : shape) {
    Indices all(static_cast<std::size_t>(size));
    std::iota(all.begin(), all.end(), 0);
    slice.index.push_back(std::move(all));
  }
  return slice;
}

void Advance(const Slice& slice, std::vector<std::size_t>& at) {
  for (std::size_t dim = at.size(); dim-- > 0;) {
    if (++at[dim] < slice.index[dim].size()) {
      return;
    }
    at[dim] = 0;
  }
}

Slice SliceOf(const Shape& global_shape, const Mesh& mesh, const Placements& placements,
              std::int64_t rank) {
  Slice slice = WholeOf(global_shape);
  for (const Axis axis : mesh.axes) {
    const Placement placement = PlacementOn(placements, axis);
    if (placement.kind != Placement::Kind::kShard &&
        placement.kind != Placement::Kind::kStridedShard) {
      continue;
    }
    Indices& indices = slice.index.at(static_cast<std::size_t>(placement.dim));
    indices =
        StridedChunkOf(indices, placement.split, mesh.SizeOf(axis), mesh.Coordinate(rank, axis));
  }
  return slice;
}

}  // namespace moe
