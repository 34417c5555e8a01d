// The MoE step as one rank of a layout computes it, in LibTorch: enter, route, dispatch, experts,
// combine, leave; autograd runs it backward, and every collective of the backward pass is written
// where its forward half stands. The modes are torchtitan's (TP only, EP only, EP with etp = tp, EP
// with etp = 1) and Megatron's folding (any other etp).
#pragma once

#include <ATen/ATen.h>

#include <map>
#include <string>

#include "harness/parallel/communicator.h"
#include "harness/parallel/step_plugin.h"

namespace moe::parallel {

// Local tensors of one rank by their dump names: the results of the model as they lie when the step
// is over (StepContract placements), topk_expert_TK for the rank's own tokens and
// tokens_per_expert_E, this rank's share of the counts.
using LocalTensors = std::map<std::string, at::Tensor>;

// Runs forward, backward and the owed sums of the parameters' gradients. Throws Error when a
// collective fails.
LocalTensors RunStep(const StepRequest& request, Communicator& comm);

}  // namespace moe::parallel
