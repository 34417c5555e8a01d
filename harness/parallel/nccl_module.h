// NCCL, as a module that is loaded when somebody asks for it: the CPU program needs no CUDA
// library, and the NCCL code is compiled wherever its headers are found.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <vector>

#include "harness/parallel/group.h"

namespace moe::parallel {

// Why NCCL cannot run `ranks` ranks here, in one sentence: not built, a missing library, no GPU,
// too few GPUs. Empty when it can.
std::string FindNcclObstacle(std::int64_t ranks);

// The group over NCCL on GPU `local_rank`. Throws Error with the sentence above.
std::unique_ptr<Group> OpenNcclGroup(const std::vector<std::int64_t>& ranks, std::int64_t rank,
                                     std::int64_t local_rank,
                                     const c10::intrusive_ptr<c10d::Store>& store,
                                     std::chrono::milliseconds deadline);

// What the module exports as "moegate_nccl_module".
class NcclModule {
 public:
  virtual ~NcclModule() = default;
  virtual std::unique_ptr<Group> Open(const std::vector<std::int64_t>& ranks, std::int64_t rank,
                                      std::int64_t local_rank,
                                      const c10::intrusive_ptr<c10d::Store>& store,
                                      std::chrono::milliseconds deadline) const = 0;
};

}  // namespace moe::parallel
