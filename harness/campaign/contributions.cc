#include "harness/campaign/contributions.h"

#include <algorithm>
#include <functional>

namespace moe {

Groups GroupsOf(const Meshes& meshes, Axis axis) {
  return GroupsOf(meshes.With(axis), {axis});
}

Groups GroupsOf(const Mesh& mesh, const std::vector<Axis>& axes) {
  Groups groups;
  for (std::int64_t rank = 0; rank < mesh.WorldSize(); ++rank) {
    groups.push_back(mesh.GroupOf(rank, axes));
  }
  return groups;
}

Contributions Summed(const Contributions& held, const Groups& groups) {
  Contributions sums(held.size(), std::vector<std::int64_t>(held.size(), 0));
  for (std::size_t rank = 0; rank < held.size(); ++rank) {
    for (const std::int64_t member : groups[rank]) {
      const auto& of_member = held[static_cast<std::size_t>(member)];
      std::transform(of_member.begin(), of_member.end(), sums[rank].begin(), sums[rank].begin(),
                     std::plus<>());
    }
  }
  return sums;
}

Contributions ContributionsTo(const ContractTensor& tensor, const Meshes& meshes, Axis wrong,
                              Axis used) {
  const auto world = static_cast<std::size_t>(meshes.dense.WorldSize());
  const Groups same = GroupsOf(meshes.Of(tensor.mesh), tensor.settled);
  Contributions held(world, std::vector<std::int64_t>(world, 0));
  for (std::size_t rank = 0; rank < world; ++rank) {
    held[rank][static_cast<std::size_t>(same[rank].front())] = 1;
  }
  for (const Axis axis : tensor.owed) {
    held = Summed(held, GroupsOf(meshes, axis == wrong ? used : axis));
  }
  return held;
}

}  // namespace moe
