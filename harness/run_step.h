// Starts the ranks of one step and brings back what they hold, whatever they are: threads, or
// processes.
#pragma once

#include <string>
#include <vector>

#include "harness/parallel/step_plugin.h"

namespace moe {

// The parallel step's library, loaded when first asked for. Throws Error when it was not built
// (-DMOEGATE_STEP=OFF) or cannot be loaded.
const StepPlugin& TheStepPlugin();

// Runs every rank of the request on `backend` ("threads", "gloo", "nccl") and returns their outputs
// in rank order. Processes are forked from this one, which must not have started threads; what they
// hold travels through files, not through the collectives under test. Throws Error naming the rank
// that failed.
std::vector<RankOutput> RunRanksOf(const StepRequest& request, const std::string& backend);

}  // namespace moe
