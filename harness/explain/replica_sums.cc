#include "harness/explain/replica_sums.h"

#include <algorithm>
#include <map>

#include "harness/measure/norms.h"

namespace moe {
namespace {

// Whether over each group of `axes` the values differ and add up to what each should be.
bool AddUp(const Suspect& suspect, const Mesh& mesh, const std::vector<Axis>& axes,
           FitQuality& quality) {
  std::map<std::pair<std::size_t, std::int64_t>, std::size_t> index_of;
  for (std::size_t index = 0; index < suspect.Pieces(); ++index) {
    const Piece piece = suspect.Load(index);
    index_of[{piece.holder, piece.local_expert}] = index;
  }
  bool differ = false;
  for (const auto& [place, index] : index_of) {
    Piece piece = suspect.Load(index);
    const auto replicas = suspect.observed().Replicas(piece.holder, mesh, axes);
    // A rank that holds the whole lacks no share.
    const bool all_wrong = std::all_of(replicas.begin(), replicas.end(), [&](std::size_t replica) {
      return suspect.HolderIsWrong(replica);
    });
    if (replicas.size() < 2 || !all_wrong) {
      return false;
    }
    const std::vector<double> own = piece.got;
    for (const std::size_t replica : replicas) {
      if (replica == piece.holder) {
        continue;
      }
      const Piece other = suspect.Load(index_of.at({replica, piece.local_expert}));
      differ = differ || Distance(own, other.got) > 2.0 * Norm(piece.allowed);
      std::transform(piece.got.begin(), piece.got.end(), other.got.begin(), piece.got.begin(),
                     std::plus<>());
    }
    if (!suspect.Explains(piece, piece.want, quality)) {
      return false;
    }
  }
  return differ;
}

}  // namespace

std::vector<Fit> FindReplicaSums(const Suspect& suspect) {
  std::vector<Fit> fits;
  const Meshes& meshes = suspect.manifest().meshes;
  for (const Mesh* mesh : {&meshes.dense, &meshes.expert}) {
    std::vector<Axis> axes;
    for (const Axis axis : mesh->axes) {
      const bool is_own = mesh == &suspect.mesh();
      const auto kind = PlacementOn(suspect.observed().claim().placements, axis).kind;
      if (mesh->SizeOf(axis) > 1 && (!is_own || kind == Placement::Kind::kReplicate)) {
        axes.push_back(axis);
      }
    }
    for (const auto& product : ProductsOf(axes)) {
      FitQuality quality;
      if (AddUp(suspect, *mesh, product, quality)) {
        fits.push_back({.explanation = {.cause = Cause::kMissingSum, .axes = product},
                        .residual = quality.residual});
      }
    }
  }
  return fits;
}

}  // namespace moe
