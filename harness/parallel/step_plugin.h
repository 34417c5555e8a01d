// The door between moegate and the parallel step. The step lives in a shared library of its own
// that is loaded on demand, so that judging a dump never loads LibTorch; nothing in this header
// needs it.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "harness/base/dtype.h"
#include "harness/layout/fault.h"
#include "harness/layout/step_graph.h"
#include "harness/layout/tensor_source.h"

namespace moe {

struct StepRequest {
  const StepGraph* graph = nullptr;  // of the model, the layout and the program
  Dtype dtype = Dtype::kFloat64;
  const TensorSource* inputs = nullptr;
  std::optional<Fault> fault;
  std::chrono::milliseconds deadline{20'000};  // of every wait for another rank
};

// What one rank holds when its step is over.
struct RankOutput {
  std::vector<std::byte> tensors;  // a safetensors file: its local results and routing
  std::vector<std::string> calls;  // the sums it took part in, in order: "y_TD@tp", "d_gate_ED@tp"
};

// How ranks that are processes find one another.
struct Rendezvous {
  std::string backend;  // "gloo" or "nccl"
  std::int64_t rank = 0;
  std::int64_t world_size = 1;
  std::int64_t local_rank = 0;
  std::string file;            // a file that all ranks can open, on one machine; or, when empty,
  std::string address;         // the machine and
  int port = 0;                // port of a TCP store, which rank 0 opens unless
  bool store_is_open = false;  // somebody did already (torchrun's agent)
};

class StepPlugin {
 public:
  virtual ~StepPlugin() = default;

  // Runs every rank of the layout as a thread of this process. Throws Error naming the rank whose
  // failure ended the others.
  virtual std::vector<RankOutput> RunThreads(const StepRequest& request) const = 0;

  // Runs this process's rank; for a process that ends next, as connections stay open. Throws Error.
  virtual RankOutput RunRank(const StepRequest& request, const Rendezvous& rendezvous) const = 0;

  // RunRank for every request in turn within one job, each layout filling the world; on rank 0
  // returns all ranks' outputs, sent through the store rather than the collectives under test,
  // elsewhere nothing.
  virtual std::vector<std::vector<RankOutput>> RunJob(const std::vector<StepRequest>& requests,
                                                      const Rendezvous& rendezvous) const = 0;

  // One sentence saying why `backend` cannot run here; empty when it can.
  virtual std::string FindObstacle(const std::string& backend, std::int64_t ranks) const = 0;
};

// The function that the library exports under this name returns its only instance.
inline constexpr const char* kStepPluginEntry = "moegate_step_plugin";

}  // namespace moe
