// manifest.json of a dump: what a producer claims about the tensors in its rank files (DESIGN:
// formats).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "harness/base/dtype.h"
#include "harness/base/model.h"
#include "harness/base/tensors.h"
#include "harness/json/json_reader.h"
#include "harness/layout/layout.h"
#include "harness/layout/placement.h"

namespace moe {

// One entry of "tensors".
struct DumpedTensor {
  Shape shape;  // global
  MeshKind mesh = MeshKind::kDense;
  Placements placements;  // claims; P: the sum over the axis is still owed
  double scale = 1.0;     // a factor that the values still lack
};

struct Manifest {
  std::string producer;
  Meshes meshes;  // only the axes that the producer named, in its order
  Layout layout;
  Model model;
  Dtype dtype = Dtype::kFloat64;
  // Stage of the step (IsStage) or tensor of the dump -> the dtype it is computed or stored in,
  // where that is not the step's.
  std::map<std::string, Dtype> casts;
  std::optional<std::string> inputs;  // file with the whole problem, inside the folder
  std::optional<std::string> case_name;
  std::map<std::string, DumpedTensor> tensors;
  std::vector<std::string> not_dumped;          // left out on purpose
  std::map<std::string, std::string> missing;   // tensor that should be there -> why it is not
  std::map<std::string, std::string> versions;  // of what made it: "torch" -> "2.11.0"
  // Per rank the global token indices of its rows; empty when the manifest has none, and then the
  // placements of dimension 0 say it.
  std::vector<std::vector<std::int64_t>> tokens;

  std::int64_t WorldSize() const { return meshes.dense.WorldSize(); }
};

// The stages of a step that a producer may declare to compute in another dtype than the step's.
// Each stands for a tensor and its gradient, with the operations that make and use them:
//   logits_TE      the router's linear layer, x and the gate in it, and d_gate
//   scores_TE      the logits as they enter the score function, the scores, the weights that are
//                  made of them, and the gradients of all these
//   routed_in_ND   rows as they enter the experts, and their product with the score where it is
//                  applied before the experts: (float32(x) * score).to(dtype)
//   routed_out_ND  what the experts give, its product with the score where that comes after them,
//                  and the sum over a token's experts: (float32(o) * score).to(dtype)
// A finished result under "casts" is stored in that dtype, and computed in the step's. What inputs,
// weights and shares (P) lose by it is not known in detail, so they widen every tolerance.
bool IsStage(std::string_view cast);

// Reads and checks everything that can be checked without the tensors: known keys, types, sizes
// (FindFault), meshes that agree on the world and with "layout", known tensor names with the shapes
// that the model gives them, no tensor both dumped and said to be missing, casts of stages and
// of such tensors, placements with existing axes and dimensions (T tensors: rows by `tokens`),
// token lists (one per rank, indices in range, none twice in one rank), an `inputs` name that stays
// inside the folder (no '/', no "..", not absolute). Free text (producer, versions, why a tensor is
// missing) becomes Printable, on one line. Throws Error("file#/pointer", one sentence).
Manifest ParseManifest(const Json& json, const std::string& file);

Json ToJson(const Manifest& manifest);

// True for tensors whose first letter is T, when the manifest has token lists.
bool RowsFollowTokens(const Manifest& manifest, std::string_view name);

// Whether dumped tensor `name` is claimed to be `kind` on an axis of more than one rank.
bool IsClaimed(const Manifest& manifest, const std::string& name, Placement::Kind kind);

// The rows and columns of tensor `name` that `rank` holds: SliceOf its placements, except that rows
// of a tensor whose first letter is T follow manifest.tokens where there are any.
Slice SliceOf(const Manifest& manifest, const std::string& name, std::int64_t rank);

}  // namespace moe
