// Whether what replicas hold adds up to what each of them should: then they lack a sum, whatever
// the shares are.
#pragma once

#include <vector>

#include "harness/explain/hypothesis.h"

namespace moe {

std::vector<Fit> FindReplicaSums(const Suspect& suspect);

}  // namespace moe
