// Causes in words.
#pragma once

#include <string>
#include <vector>

#include "harness/explain/explanation.h"

namespace moe {

std::string AxesText(const std::vector<Axis>& axes);  // "dp_shard * cp"

// "missing sum over tp", "wrong group: sum over ep instead of edp", "the contribution of rank 1 is
// missing", followed by " in the gate path" where the cause is limited to a path.
std::string ToText(const Explanation& explanation);

}  // namespace moe
