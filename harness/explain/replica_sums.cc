#include "harness/explain/replica_sums.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <utility>

#include "harness/explain/costs.h"
#include "harness/explain/sum_table.h"
#include "harness/measure/norms.h"

namespace moe {
namespace {

using PieceOf = std::map<std::pair<std::size_t, std::int64_t>, std::size_t>;

// Over each group of `axes` the values differ and add up to what each should be: all but the first
// of the group may be anything, and the first is the rest.
Hypothesis AddUp(const Suspect& suspect, const Mesh& mesh, const std::vector<Axis>& axes,
                 std::shared_ptr<const PieceOf> piece_of) {
  auto differ = std::make_shared<bool>(false);
  const auto predict = [&suspect, &mesh, axes, differ, piece_of](const Piece& piece,
                                                                 Prediction& prediction) {
    const auto replicas = suspect.observed().Replicas(piece.holder, mesh, axes);
    // A rank that holds the whole lacks no share.
    const bool all_wrong = std::all_of(replicas.begin(), replicas.end(), [&](std::size_t replica) {
      return suspect.HolderIsWrong(replica);
    });
    if (replicas.size() < 2 || !all_wrong) {
      return false;
    }
    prediction.values = piece.want;
    const bool is_first = piece.holder == *std::min_element(replicas.begin(), replicas.end());
    for (const std::size_t replica : replicas) {
      if (replica == piece.holder) {
        continue;
      }
      const Piece& other = suspect.Load(piece_of->at({replica, piece.local_expert}));
      *differ = *differ ||
                Distance(piece.got, other.got) > 8.0 * Norm(piece.deviation);  // twice a tolerance
      std::transform(prediction.values.begin(), prediction.values.end(), other.got.begin(),
                     prediction.values.begin(), std::minus<>());
    }
    Misfit alone;
    if (!suspect.Add(piece, prediction, alone)) {
      return false;
    }
    if (!is_first) {
      prediction.values = piece.want;
      prediction.free.assign(piece.got.size(), true);
    }
    return true;
  };
  const double extra = kLongerCost * static_cast<double>(axes.size() - 1);
  return {.explanation = {.cause = Cause::kMissingSum, .axes = axes},
          .cost = kRareCost + kAxisCost * static_cast<double>(axes.size()) + extra +
                  (&mesh == &suspect.mesh() ? 0.0 : kOtherViewCost),
          .predict = predict,
          .finish = [differ](Fit&) { return *differ; }};
}

}  // namespace

std::vector<Fit> FindReplicaSums(const Suspect& suspect) {
  std::vector<Hypothesis> hypotheses;
  auto piece_of = std::make_shared<PieceOf>();
  for (std::size_t index = 0; index < suspect.Pieces(); ++index) {
    (*piece_of)[{suspect.HolderOf(index), suspect.LocalExpertOf(index)}] = index;
  }
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
      hypotheses.push_back(AddUp(suspect, *mesh, product, piece_of));
    }
  }
  return Test(suspect, std::move(hypotheses));
}

}  // namespace moe
