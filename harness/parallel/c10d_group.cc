#include "harness/parallel/c10d_group.h"

#include <fmt/format.h>

#include <algorithm>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include "harness/base/error.h"

namespace moe::parallel {
namespace {

class C10dGroup : public Group {
 public:
  C10dGroup(c10::intrusive_ptr<c10d::Backend> backend, std::vector<std::int64_t> ranks,
            at::Device device)
      : backend_(std::move(backend)), ranks_(std::move(ranks)), device_(device) {}

  std::int64_t rank() const override { return backend_->getRank(); }
  std::int64_t size() const override { return backend_->getSize(); }

  at::Tensor AllReduceSum(const at::Tensor& input) override {
    Agree("all_reduce", input, /*same_shape=*/true);
    std::vector<at::Tensor> tensors = {input.to(device_, /*non_blocking=*/false, /*copy=*/true)};
    backend_->allreduce(tensors)->wait();
    return tensors[0].cpu();
  }

  at::Tensor AllGather(const at::Tensor& input) override {
    Agree("all_gather", input, /*same_shape=*/true);
    return Gather(input);
  }

  at::Tensor ReduceScatterSum(const at::Tensor& input) override {
    Agree("reduce_scatter", input, /*same_shape=*/true);
    at::Tensor source = input.to(device_);
    std::vector<std::int64_t> shape = input.sizes().vec();
    shape[0] /= size();
    at::Tensor target = at::empty(shape, source.options());
    backend_->_reduce_scatter_base(target, source)->wait();
    return target.cpu();
  }

  at::Tensor AllToAll(const at::Tensor& input, const std::vector<std::int64_t>& send_rows,
                      const std::vector<std::int64_t>& receive_rows) override {
    Agree("all_to_all", input, /*same_shape=*/false);
    at::Tensor source = input.to(device_);
    std::vector<std::int64_t> shape = input.sizes().vec();
    shape[0] = 0;
    for (const std::int64_t rows : receive_rows) {
      shape[0] += rows;
    }
    at::Tensor target = at::empty(shape, source.options());
    // alltoall_base empties the vectors that it is given.
    std::vector<std::int64_t> target_splits = receive_rows;
    std::vector<std::int64_t> source_splits = send_rows;
    backend_->alltoall_base(target, source, target_splits, source_splits)->wait();
    return target.cpu();
  }

 private:
  at::Tensor Gather(const at::Tensor& input) {
    at::Tensor source = input.to(device_);
    std::vector<std::int64_t> shape = input.sizes().vec();
    shape[0] *= size();
    at::Tensor target = at::empty(shape, source.options());
    backend_->_allgather_base(target, source)->wait();
    return target.cpu();
  }

  // Gloo given 4 elements on one rank and 3 on another returns wrong sums on one and hangs on the
  // other, so the ranks first tell one another what they came for.
  void Agree(const std::string& operation, const at::Tensor& input, bool same_shape) {
    const auto code = static_cast<std::int64_t>(std::hash<std::string>{}(operation));
    const at::Tensor mine =
        at::tensor({calls_++, code, static_cast<std::int64_t>(input.scalar_type()),
                    same_shape ? input.numel() : 0, same_shape ? input.size(0) : 0},
                   at::kLong);
    const at::Tensor all = Gather(mine).view({size(), -1});
    for (std::int64_t other = 0; other < size(); ++other) {
      if (!all[other].equal(mine)) {
        throw Error(
            "",
            fmt::format("rank {} came to {} with {} elements, rank {} to another call, dtype or "
                        "shape ({} elements, {} calls before)",
                        ranks_[static_cast<std::size_t>(rank())], operation, input.numel(),
                        ranks_[static_cast<std::size_t>(other)], all[other][3].item<std::int64_t>(),
                        all[other][0].item<std::int64_t>()));
      }
    }
  }

  c10::intrusive_ptr<c10d::Backend> backend_;
  std::vector<std::int64_t> ranks_;
  at::Device device_;
  std::int64_t calls_ = 0;
};

}  // namespace

std::unique_ptr<Group> WrapBackend(c10::intrusive_ptr<c10d::Backend> backend,
                                   const std::vector<std::int64_t>& ranks, at::Device device) {
  return std::make_unique<C10dGroup>(std::move(backend), ranks, device);
}

GlooDevice OpenGlooDevice(bool on_one_machine) {
  using Gloo = c10d::ProcessGroupGloo;
  if (const char* interface = std::getenv("GLOO_SOCKET_IFNAME"); interface != nullptr) {
    return Gloo::createDeviceForInterface(interface);
  }
  // The host's own name need not resolve.
  return on_one_machine ? Gloo::createDeviceForHostname("127.0.0.1") : Gloo::createDefaultDevice();
}

c10::intrusive_ptr<c10d::Backend> OpenGloo(const std::vector<std::int64_t>& ranks,
                                           std::int64_t rank,
                                           const c10::intrusive_ptr<c10d::Store>& store,
                                           const GlooDevice& device,
                                           std::chrono::milliseconds deadline) {
  const auto place = std::find(ranks.begin(), ranks.end(), rank) - ranks.begin();
  auto options = c10d::ProcessGroupGloo::Options::create();
  options->timeout = deadline;
  options->threads = 1;
  options->devices.push_back(device);
  return c10::make_intrusive<c10d::ProcessGroupGloo>(store, static_cast<int>(place),
                                                     static_cast<int>(ranks.size()), options);
}

}  // namespace moe::parallel
