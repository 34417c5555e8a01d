#include "harness/parallel/step_plugin.h"

#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <mutex>
#include <sstream>
#include <thread>
#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "harness/base/error.h"
#include "harness/parallel/c10d_group.h"
#include "harness/parallel/communicator.h"
#include "harness/parallel/faulty_communicator.h"
#include "harness/parallel/moe_step.h"
#include "harness/parallel/nccl_module.h"
#include "harness/parallel/tensors.h"
#include "harness/parallel/thread_group.h"

namespace moe::parallel {
namespace {

RankOutput RunOnRank(const StepRequest& request, std::int64_t rank, const GroupFactory& open) {
  StepRequest planted = request;
  std::optional<StepGraph> other;  // of the step that computes another model than it says
  if (request.fault && request.fault->kind == Fault::Kind::kModel) {
    const StepGraph& own = *request.graph;
    planted.graph =
        &other.emplace(OtherModel(own.model(), request.fault->name), own.layout(), own.program());
  }
  MeshCommunicator mesh(planted.graph->contract(), rank, open);
  if (!request.fault) {
    return {Encode(RunStep(request, mesh)), mesh.calls()};
  }
  FaultyCommunicator faulty(mesh, *request.fault);
  return {Encode(RunStep(planted, faulty)), mesh.calls()};
}

// c10d's errors end in a stack trace; what went wrong is in their first line.
std::string FirstLine(const std::exception& error) {
  const std::string words = error.what();
  return words.substr(0, words.find('\n'));
}

// Runs `body`; what it throws becomes an Error that names the rank.
template <typename Body>
auto AsRank(const Rendezvous& rendezvous, const Body& body) {
  try {
    return body();
  } catch (const std::exception& error) {
    throw Error(
        fmt::format("rank {} of {}", rendezvous.rank, rendezvous.world_size),
        fmt::format("stopped, since a rank did not come or went away: {}", FirstLine(error)));
  }
}

// Looks for a key every millisecond at first. FileStore does so every 10, which is as long as a
// small case takes.
class QuickFileStore : public c10d::FileStore {
 public:
  using c10d::FileStore::FileStore;
  using c10d::FileStore::wait;

  void wait(const std::vector<std::string>& keys,
            const std::chrono::milliseconds& timeout) override {
    constexpr int kLooks = 100;
    for (int look = 0; look < kLooks && !check(keys); ++look) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    c10d::FileStore::wait(keys, timeout);
  }
};

// The groups of a process: one backend instance per mesh axis, each with a part of the store to
// itself.
class ProcessGroups {
 public:
  ProcessGroups(const Rendezvous& rendezvous, std::chrono::milliseconds deadline)
      : rendezvous_(rendezvous), deadline_(deadline) {
    if (!rendezvous.file.empty()) {
      store_ = c10::make_intrusive<QuickFileStore>(rendezvous.file,
                                                   static_cast<int>(rendezvous.world_size));
    } else {
      c10d::TCPStoreOptions options;
      options.port = static_cast<std::uint16_t>(rendezvous.port);
      options.isServer = rendezvous.rank == 0 && !rendezvous.store_is_open;
      options.numWorkers = static_cast<std::size_t>(rendezvous.world_size);
      options.waitWorkers = false;
      options.useLibUV = false;
      options.timeout = deadline;
      store_ = c10::make_intrusive<c10d::TCPStore>(rendezvous.address, options);
    }
    store_->setTimeout(deadline);
  }

  c10d::Store& store() { return *store_; }

  GroupFactory FactoryFor(const std::string& run) {
    return [this, run](const std::vector<std::int64_t>& ranks, const std::string& name) {
      const auto part = c10::make_intrusive<c10d::PrefixStore>(
          fmt::format("{}/{}/{}/", run, name, ranks.front()), store_);
      if (rendezvous_.backend == "nccl") {
        return OpenNcclGroup(ranks, rendezvous_.rank, rendezvous_.local_rank, part, deadline_);
      }
      if (gloo_device_ == nullptr) {
        gloo_device_ = OpenGlooDevice(OnOneMachine());
      }
      const auto backend = OpenGloo(ranks, rendezvous_.rank, part, gloo_device_, deadline_);
      if (keeps_open_) {
        kept_.push_back(backend);
      }
      return WrapBackend(backend, ranks, at::kCPU);
    };
  }

  // From now on what FactoryFor opens with Gloo stays open as long as this.
  void KeepOpen() { keeps_open_ = true; }

  // Waits until all ranks are here.
  void Meet() {
    std::vector<std::string> all;
    for (std::int64_t rank = 0; rank < rendezvous_.world_size; ++rank) {
      all.push_back(fmt::format("moegate/met/{}", rank));
    }
    store_->set(all[static_cast<std::size_t>(rendezvous_.rank)], std::vector<std::uint8_t>{1});
    store_->wait(all);
  }

 private:
  bool OnOneMachine() const {
    return rendezvous_.address.empty() || rendezvous_.address == "127.0.0.1" ||
           rendezvous_.address == "localhost";
  }

  Rendezvous rendezvous_;
  std::chrono::milliseconds deadline_;
  c10::intrusive_ptr<c10d::Store> store_;
  GlooDevice gloo_device_;
  bool keeps_open_ = false;
  std::vector<c10::intrusive_ptr<c10d::Backend>> kept_;
};

class LibTorchPlugin : public StepPlugin {
 public:
  std::vector<RankOutput> RunThreads(const StepRequest& request) const override {
    const std::int64_t world_size = request.graph->layout().WorldSize();
    ThreadWorld world(request.deadline);
    std::vector<RankOutput> outputs(static_cast<std::size_t>(world_size));
    std::vector<std::thread> threads;
    std::mutex mutex;
    std::string first_failure;
    const auto run = [&](std::int64_t rank) {
      try {
        at::set_num_threads(1);
        at::AutoGradMode grad(true);
        outputs[static_cast<std::size_t>(rank)] = RunOnRank(
            request, rank, [&](const std::vector<std::int64_t>& ranks, const std::string&) {
              return world.Join(ranks, rank);
            });
      } catch (const std::exception& error) {
        const std::string words = fmt::format("rank {} of {}: {}", rank, world_size, error.what());
        const std::lock_guard lock(mutex);
        if (first_failure.empty()) {
          first_failure = words;
        }
        world.Poison(words);
      }
    };
    for (std::int64_t rank = 0; rank < world_size; ++rank) {
      threads.emplace_back(run, rank);
    }
    for (std::thread& thread : threads) {
      thread.join();
    }
    if (!first_failure.empty()) {
      throw Error("threads", first_failure, Newlines::kKeep);
    }
    return outputs;
  }

  RankOutput RunRank(const StepRequest& request, const Rendezvous& rendezvous) const override {
    at::set_num_threads(1);
    // Never destroyed, since the process ends next and Gloo takes its time to close connections.
    auto& groups = *new ProcessGroups(rendezvous, request.deadline);
    groups.KeepOpen();
    RankOutput output = RunOnRank(request, rendezvous.rank, groups.FactoryFor("run"));
    groups.Meet();  // else a rank that is not as far yet might lose a connection
    return output;
  }

  std::vector<std::vector<RankOutput>> RunJob(const std::vector<StepRequest>& requests,
                                              const Rendezvous& rendezvous) const override {
    return AsRank(rendezvous, [&] { return RunAll(requests, rendezvous); });
  }

  std::string FindObstacle(const std::string& backend, std::int64_t ranks) const override {
    return backend == "nccl" ? FindNcclObstacle(ranks) : "";
  }

 private:
  static std::vector<std::vector<RankOutput>> RunAll(const std::vector<StepRequest>& requests,
                                                     const Rendezvous& rendezvous) {
    at::set_num_threads(1);
    ProcessGroups groups(rendezvous, requests.front().deadline);
    c10d::Store& store = groups.store();
    std::vector<std::vector<RankOutput>> all;
    const auto key = [](std::size_t run, std::int64_t rank, const char* what) {
      return fmt::format("moegate/{}/{}/{}", run, rank, what);
    };
    for (std::size_t run = 0; run < requests.size(); ++run) {
      RankOutput mine =
          RunOnRank(requests[run], rendezvous.rank, groups.FactoryFor(std::to_string(run)));
      if (rendezvous.rank != 0) {
        const auto* bytes = reinterpret_cast<const std::uint8_t*>(mine.tensors.data());
        store.set(key(run, rendezvous.rank, "tensors"),
                  std::vector<std::uint8_t>(bytes, bytes + mine.tensors.size()));
        const std::string calls = fmt::format("{}", fmt::join(mine.calls, " "));
        store.set(key(run, rendezvous.rank, "calls"),
                  std::vector<std::uint8_t>(calls.begin(), calls.end()));
        continue;
      }
      std::vector<RankOutput> outputs = {std::move(mine)};
      for (std::int64_t rank = 1; rank < rendezvous.world_size; ++rank) {
        RankOutput output;
        const auto bytes = store.get(key(run, rank, "tensors"));
        const auto* data = reinterpret_cast<const std::byte*>(bytes.data());
        output.tensors.assign(data, data + bytes.size());
        const auto calls = store.get(key(run, rank, "calls"));
        std::istringstream words(std::string(calls.begin(), calls.end()));
        for (std::string call; words >> call;) {
          output.calls.push_back(call);
        }
        outputs.push_back(std::move(output));
      }
      all.push_back(std::move(outputs));
    }
    // Rank 0 holds the store: it leaves last.
    if (rendezvous.rank == 0) {
      store.set("moegate/collected", std::vector<std::uint8_t>{1});
      for (std::int64_t rank = 1; rank < rendezvous.world_size; ++rank) {
        store.wait({fmt::format("moegate/left/{}", rank)});
      }
    } else {
      store.wait({"moegate/collected"});
      store.set(fmt::format("moegate/left/{}", rendezvous.rank), std::vector<std::uint8_t>{1});
    }
    return all;
  }
};

}  // namespace
}  // namespace moe::parallel

extern "C" moe::StepPlugin* moegate_step_plugin() {
  static moe::parallel::LibTorchPlugin plugin;
  return &plugin;
}
