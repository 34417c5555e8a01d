// A cause in words.
#pragma once

#include <string>
#include <vector>

#include "harness/explain/finding.h"

namespace moe {

std::string AxesText(const std::vector<Axis>& axes);  // "dp_shard * tp"

// "missing sum over tp", "sum over dp_shard instead of tp in the gate path"
std::string ToText(const Explanation& explanation);

}  // namespace moe
