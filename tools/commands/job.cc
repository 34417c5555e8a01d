#include "tools/commands/job.h"

#include <fmt/format.h>

#include "harness/base/error.h"
#include "harness/run_step.h"

namespace moe {
namespace {

// Tells the requests of one job apart; the generator stands for the case.
std::string KeyOf(const StepRequest& request) {
  return fmt::format("{} {} {} {}", fmt::ptr(request.inputs), ToText(request.graph->layout()),
                     ToText(request.dtype), request.fault ? ToText(*request.fault) : "");
}

}  // namespace

JobOutputs::JobOutputs(const Job& job, const std::string& backend,
                       const std::vector<StepRequest>& requests) {
  for (const StepRequest& request : requests) {
    const Layout& layout = request.graph->layout();
    if (layout.WorldSize() != job.world_size) {
      throw Error("--layout",
                  fmt::format("{} needs {} ranks and the job has {}; select layouts of that many",
                              ToText(layout), layout.WorldSize(), job.world_size));
    }
  }
  auto all = TheStepPlugin().RunJob(requests, {.backend = backend,
                                               .rank = job.rank,
                                               .world_size = job.world_size,
                                               .local_rank = job.local_rank,
                                               .address = job.master_addr,
                                               .port = job.master_port,
                                               .store_is_open = job.store_is_served});
  for (std::size_t i = 0; i < all.size(); ++i) {
    outputs_[KeyOf(requests[i])] = std::move(all[i]);
  }
}

std::vector<RankOutput> JobOutputs::Of(const StepRequest& request) const {
  return outputs_.at(KeyOf(request));
}

}  // namespace moe
