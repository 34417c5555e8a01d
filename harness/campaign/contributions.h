// Whose contributions a parameter's gradient is made of, on every rank, after sums over the right
// or the wrong ranks. Two faults that leave the same contributions are the same numbers.
#pragma once

#include <cstdint>
#include <vector>

#include "harness/layout/step_contract.h"

namespace moe {

using Groups = std::vector<std::vector<std::int64_t>>;         // of each rank
using Contributions = std::vector<std::vector<std::int64_t>>;  // how often a rank holds another's

// Who talks to whom on an axis, or on several of one mesh. Axes of the two meshes can be the same
// groups of ranks.
Groups GroupsOf(const Meshes& meshes, Axis axis);
Groups GroupsOf(const Mesh& mesh, const std::vector<Axis>& axes);

// What every rank holds after one more sum.
Contributions Summed(const Contributions& held, const Groups& groups);

// What every rank holds of `tensor` when all its sums are done, the one over `wrong` over `used`
// instead. Ranks of a settled axis have the same contribution, which bears the first one's name.
Contributions ContributionsTo(const ContractTensor& tensor, const Meshes& meshes, Axis wrong,
                              Axis used);

}  // namespace moe
