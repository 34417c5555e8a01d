// A group of processes over one of c10d's backends.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <vector>

#include "harness/parallel/group.h"

namespace gloo::transport {
class Device;
}

namespace moe::parallel {

using GlooDevice = std::shared_ptr<::gloo::transport::Device>;

// The socket and the thread with which this process meets others: on the loopback when all ranks
// are `on_one_machine`, else on the interface that GLOO_SOCKET_IFNAME names or the one of the
// host's name. One serves all groups of a process; its thread takes 10 ms to end.
GlooDevice OpenGlooDevice(bool on_one_machine);

// The backend "gloo" (tensors on the CPU) among the world ranks `ranks`, of which `rank` is one;
// `store` is this group's own (a PrefixStore). To destroy it takes 10 ms for each other rank.
c10::intrusive_ptr<c10d::Backend> OpenGloo(const std::vector<std::int64_t>& ranks,
                                           std::int64_t rank,
                                           const c10::intrusive_ptr<c10d::Store>& store,
                                           const GlooDevice& device,
                                           std::chrono::milliseconds deadline);

// Wraps any backend. Before each collective the ranks compare what they came for, since neither
// Gloo nor NCCL checks: tensors are moved to `device` for the call and back.
std::unique_ptr<Group> WrapBackend(c10::intrusive_ptr<c10d::Backend> backend,
                                   const std::vector<std::int64_t>& ranks, at::Device device);

}  // namespace moe::parallel
