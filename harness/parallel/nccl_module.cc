#include "harness/parallel/nccl_module.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <filesystem>

#include "harness/base/error.h"

namespace moe::parallel {
namespace {

struct Loaded {
  const NcclModule* module = nullptr;
  std::string obstacle;
};

// The module lies beside the library that this code is in.
std::filesystem::path ModulePath() {
  Dl_info info{};
  ::dladdr(reinterpret_cast<const void*>(&FindNcclObstacle), &info);
  return std::filesystem::path(info.dli_fname).parent_path() / "libmoegate_nccl.so";
}

Loaded Load() {
  const std::filesystem::path path = ModulePath();
  if (!std::filesystem::exists(path)) {
    return {nullptr,
            "NCCL was not built in: no nccl.h and cuda_runtime_api.h were found; run "
            "tools/setup.sh --nccl"};
  }
  void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return {nullptr, fmt::format("NCCL cannot be loaded: {}", ::dlerror())};
  }
  using Entry = const NcclModule* (*)();
  const auto entry = reinterpret_cast<Entry>(::dlsym(library, "moegate_nccl_module"));
  return {entry(), ""};
}

// Counted without CUDA: a process that has called it can no longer fork ranks.
std::int64_t CountGpus() {
  std::int64_t gpus = 0;
  std::error_code code;
  while (std::filesystem::exists(fmt::format("/dev/nvidia{}", gpus), code)) {
    ++gpus;
  }
  return gpus;
}

const Loaded& TheModule() {
  static const Loaded loaded = Load();
  return loaded;
}

}  // namespace

std::string FindNcclObstacle(std::int64_t ranks) {
  if (TheModule().module == nullptr) {
    return TheModule().obstacle;
  }
  const std::int64_t gpus = CountGpus();
  return gpus >= ranks ? "" : fmt::format("NCCL needs {} GPUs, found {}", ranks, gpus);
}

std::unique_ptr<Group> OpenNcclGroup(const std::vector<std::int64_t>& ranks, std::int64_t rank,
                                     std::int64_t local_rank,
                                     const c10::intrusive_ptr<c10d::Store>& store,
                                     std::chrono::milliseconds deadline) {
  if (TheModule().module == nullptr) {
    throw Error("nccl", TheModule().obstacle);
  }
  return TheModule().module->Open(ranks, rank, local_rank, store, deadline);
}

}  // namespace moe::parallel
