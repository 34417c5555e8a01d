// A run as one rank of a job that somebody else started: torchrun, srun, mpirun.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "harness/launch/job_environment.h"
#include "harness/parallel/step_plugin.h"

namespace moe {

// What all steps of a job left on all ranks, to be asked for step by step. Every rank runs every
// step, whatever the judge on rank 0 thinks of the ones before, so that no rank waits for a call
// that another never makes.
class JobOutputs {
 public:
  // Runs the requests on this rank. Throws Error when a layout does not fill the job.
  JobOutputs(const Job& job, const std::string& backend, const std::vector<StepRequest>& requests);

  // On rank 0: the outputs of one of the requests.
  std::vector<RankOutput> Of(const StepRequest& request) const;

 private:
  std::map<std::string, std::vector<RankOutput>> outputs_;
};

}  // namespace moe
