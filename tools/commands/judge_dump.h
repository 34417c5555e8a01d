// One dump folder, judged.
#pragma once

#include <string>

#include "harness/report/result.h"
#include "tools/commands/commands.h"

namespace moe {

// Opens the dump and judges it by its own inputs, or by those of the case that it names, with that
// case's golden file. The result's id is the folder. Throws Error for a dump that cannot be judged.
Result JudgeDump(const CommonOptions& common, const std::string& folder);

}  // namespace moe
