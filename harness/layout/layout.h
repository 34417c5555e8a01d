// How the ranks of one run are arranged: axis sizes, the two meshes, and who talks to whom.
//
// Dense mesh, outermost first: dp_replicate, dp_shard, cp, tp. Expert mesh: edp, ep, etp. Both are
// views of the same ranks, the last axis fastest (DESIGN: layouts; torchtitan parallel_dims.py).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "harness/base/model.h"
#include "harness/base/tensor_table.h"

namespace moe {

enum class Axis { kDpReplicate, kDpShard, kCp, kTp, kEdp, kEp, kEtp };

std::string_view ToText(Axis axis);  // "dp_replicate", "dp_shard", "cp", "tp", "edp", "ep", "etp"
std::optional<Axis> AxisFromText(std::string_view text);

struct Layout {
  std::int64_t dp_replicate = 1;
  std::int64_t dp_shard = 1;
  std::int64_t cp = 1;
  std::int64_t tp = 1;
  std::int64_t ep = 1;
  std::int64_t etp = 1;
  bool sp = true;                // sequence parallelism; means something only when tp > 1
  std::int64_t local_batch = 1;  // sequences per data-parallel rank

  std::int64_t WorldSize() const { return dp_replicate * dp_shard * cp * tp; }
  std::int64_t Edp() const { return WorldSize() / (ep * etp); }
  // Whether each tp rank brings a part of its group's tokens to the experts. With etp = tp all of
  // them bring the same tokens, each to its slice of the hidden units.
  bool SplitsTokensOverTp() const { return tp > 1 && etp != tp; }
  // Whether the experts' hidden units are spread over ranks that have tokens of their own, which
  // they gather first (Megatron's parallel folding).
  bool IsFolded() const { return etp > 1 && etp != tp; }
  bool operator==(const Layout&) const = default;
};

// "dp2.tp2.ep4.etp1", axes of size 1 left out: dpr (dp_replicate), dp (dp_shard), cp, tp, ep, etp;
// etp is printed when tp and ep are both over 1, and where it is not its default (tp when ep is 1,
// else 1), and then with tp even when that is 1 ("dp2.tp1.etp2"). Then "sp0" for sequence
// parallelism off and "lb2" for a local batch of 2. One rank: "dp1".
std::string ToText(const Layout& layout);

// The reverse. Throws Error(where, ...) for text that is no layout, or sizes that do not fill the
// world.
Layout ParseLayout(std::string_view text, const std::string& where);

// Why `model` cannot run under `layout`, as one sentence that says what would be right
// ("etp 5 does not divide d_expert 48; use 1, 2, 3, 4 or 6"); empty when it can.
std::string FindMisfit(const Model& model, const Layout& layout);

// One view of the ranks.
struct Mesh {
  std::vector<Axis> axes;  // outermost first
  std::vector<std::int64_t> sizes;

  std::int64_t WorldSize() const;
  bool Has(Axis axis) const;
  std::int64_t SizeOf(Axis axis) const;                         // 1 for an axis that the mesh lacks
  std::int64_t Coordinate(std::int64_t rank, Axis axis) const;  // 0 for an axis that the mesh lacks

  // The ranks that differ from `rank` along `along` only, `rank` among them, in the order of their
  // coordinates on those axes.
  std::vector<std::int64_t> GroupOf(std::int64_t rank, const std::vector<Axis>& along) const;
};

struct Meshes {
  Mesh dense;
  Mesh expert;

  const Mesh& Of(MeshKind kind) const { return kind == MeshKind::kDense ? dense : expert; }
  // That in which the axis is: dense where both have it.
  const Mesh& With(Axis axis) const { return dense.Has(axis) ? dense : expert; }
};

Meshes MakeMeshes(const Layout& layout);  // with all axes, those of size 1 included

// Global token indices that `rank` holds of a tensor that is sharded like the layer's input: its
// data-parallel share, of each sequence its context-parallel chunk, and when `split_over_tp` of
// that its tp chunk. With a local batch over 1 this is not a contiguous range.
std::vector<std::int64_t> TokensOf(const Model& model, const Layout& layout, std::int64_t rank,
                                   bool split_over_tp);

}  // namespace moe
