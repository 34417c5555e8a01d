#include "harness/run_step.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

#include "harness/base/error.h"
#include "harness/launch/rank_processes.h"
#include "harness/launch/scratch_folder.h"

namespace moe {
namespace {

namespace fs = std::filesystem;

const StepPlugin* LoadPlugin() {
  const fs::path path = fs::read_symlink("/proc/self/exe").parent_path() / "libmoegate_step.so";
  if (!fs::exists(path)) {
    throw Error(path.string(),
                "is missing: this moegate was built to judge dumps only (MOEGATE_STEP=OFF); run "
                "tools/setup.sh to build the parallel step");
  }
  void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr) {
    throw Error(path.string(), fmt::format("cannot be loaded: {}", ::dlerror()));
  }
  using Entry = StepPlugin* (*)();
  const auto entry = reinterpret_cast<Entry>(::dlsym(library, kStepPluginEntry));
  if (entry == nullptr) {
    throw Error(path.string(), fmt::format("does not export {}; rebuild it", kStepPluginEntry));
  }
  return entry();
}

void WriteBytes(const fs::path& path, const void* data, std::size_t size) {
  std::ofstream file(path, std::ios::binary);
  file.write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
  if (!file.flush()) {
    throw Error(path.string(), "cannot be written");
  }
}

std::string ReadBytes(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw Error(path.string(), "was not written by its rank");
  }
  return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<RankOutput> RunProcesses(const StepRequest& request, const std::string& backend) {
  const ScratchFolder scratch;
  const std::int64_t world_size = request.graph->layout().WorldSize();
  const auto tensors = [&](std::int64_t rank) {
    return scratch.path() / fmt::format("{}.tensors", rank);
  };
  const auto calls = [&](std::int64_t rank) {
    return scratch.path() / fmt::format("{}.calls", rank);
  };
  const StepPlugin& plugin = TheStepPlugin();
  const LaunchOptions launch{.world_size = world_size,
                             .deadline = request.deadline,
                             .before_signal_death = [&] { scratch.Remove(); }};
  RunRanks(launch, [&](std::int64_t rank) {
    const RankOutput output =
        plugin.RunRank(request, {.backend = backend,
                                 .rank = rank,
                                 .world_size = world_size,
                                 .local_rank = rank,
                                 .file = (scratch.path() / "store").string()});
    WriteBytes(tensors(rank), output.tensors.data(), output.tensors.size());
    const std::string list = fmt::format("{}", fmt::join(output.calls, " "));
    WriteBytes(calls(rank), list.data(), list.size());
  });
  std::vector<RankOutput> outputs;
  for (std::int64_t rank = 0; rank < world_size; ++rank) {
    const std::string bytes = ReadBytes(tensors(rank));
    RankOutput output;
    const auto* data = reinterpret_cast<const std::byte*>(bytes.data());
    output.tensors.assign(data, data + bytes.size());
    std::istringstream words(ReadBytes(calls(rank)));
    output.calls.assign(std::istream_iterator<std::string>(words), {});
    outputs.push_back(std::move(output));
  }
  return outputs;
}

}  // namespace

const StepPlugin& TheStepPlugin() {
  static const StepPlugin* plugin = LoadPlugin();
  return *plugin;
}

std::vector<RankOutput> RunRanksOf(const StepRequest& request, const std::string& backend) {
  if (backend != "threads" && backend != "gloo" && backend != "nccl") {
    throw Error("backend", fmt::format("\"{}\" is none; use threads, gloo or nccl", backend));
  }
  return backend == "threads" ? TheStepPlugin().RunThreads(request)
                              : RunProcesses(request, backend);
}

}  // namespace moe
