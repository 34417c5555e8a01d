// A group of processes over one of c10d's backends.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <vector>

#include "harness/parallel/group.h"

namespace moe::parallel {

// Opens the backend "gloo" (tensors on the CPU) for the world ranks `ranks`, of which `rank` is
// one; `store` is this group's own (a PrefixStore). Ranks meet on the loopback when they are all
// `on_one_machine`, else on the interface that GLOO_SOCKET_IFNAME names or the one of the host's
// name.
std::unique_ptr<Group> OpenGlooGroup(const std::vector<std::int64_t>& ranks, std::int64_t rank,
                                     const c10::intrusive_ptr<c10d::Store>& store,
                                     bool on_one_machine, std::chrono::milliseconds deadline);

// Wraps any backend. Before each collective the ranks compare what they came for, since neither
// Gloo nor NCCL checks: tensors are moved to `device` for the call and back.
std::unique_ptr<Group> WrapBackend(c10::intrusive_ptr<c10d::Backend> backend,
                                   const std::vector<std::int64_t>& ranks, at::Device device);

}  // namespace moe::parallel
