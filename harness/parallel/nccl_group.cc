// The module of nccl_module.h: ProcessGroupNCCL, one GPU per rank.

#include <c10/cuda/CUDAFunctions.h>

#include <algorithm>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "harness/parallel/c10d_group.h"
#include "harness/parallel/nccl_module.h"

namespace moe::parallel {
namespace {

class LibTorchNccl : public NcclModule {
 public:
  std::unique_ptr<Group> Open(const std::vector<std::int64_t>& ranks, std::int64_t rank,
                              std::int64_t local_rank, const c10::intrusive_ptr<c10d::Store>& store,
                              std::chrono::milliseconds deadline) const override {
    const at::Device device(at::kCUDA, static_cast<at::DeviceIndex>(local_rank));
    c10::cuda::set_device(device.index());
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = deadline;
    const auto place = std::find(ranks.begin(), ranks.end(), rank) - ranks.begin();
    auto backend = c10::make_intrusive<c10d::ProcessGroupNCCL>(
        store, static_cast<int>(place), static_cast<int>(ranks.size()), options);
    // Without it the backend guesses the device from the rank within the group.
    backend->setBoundDeviceId(device);
    return WrapBackend(backend, ranks, device);
  }
};

}  // namespace
}  // namespace moe::parallel

extern "C" const moe::parallel::NcclModule* moegate_nccl_module() {
  static const moe::parallel::LibTorchNccl module;
  return &module;
}
