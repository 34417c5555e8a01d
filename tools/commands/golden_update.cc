#include "tools/commands/golden_update.h"

#include <filesystem>

#include "harness/measure/tolerance.h"

namespace moe {
namespace {

bool IsAnyWider(const Golden& now, const std::optional<Golden>& before) {
  for (const auto& [dtype, tensors] : now.tolerances) {
    for (const auto& [tensor, entry] : tensors) {
      if (IsWider(entry, EntryOf(before, dtype, tensor))) {
        return true;
      }
    }
  }
  return false;
}

}  // namespace

std::optional<Golden> GoldenBefore(const std::string& path) {
  if (!std::filesystem::exists(path)) {
    return std::nullopt;
  }
  return ParseGolden(ReadJsonFile(path), path);
}

std::optional<GoldenTolerance> EntryOf(const std::optional<Golden>& golden, Dtype dtype,
                                       const std::string& tensor) {
  if (!golden || !golden->tolerances.contains(dtype) ||
      !golden->tolerances.at(dtype).contains(tensor)) {
    return std::nullopt;
  }
  return golden->tolerances.at(dtype).at(tensor);
}

GoldenTolerance ToleranceFrom(const CleanRuns& runs, const std::optional<GoldenTolerance>& before,
                              const std::string& why) {
  const double bound = RoundedUp(runs.bound);
  return {.tolerance = kSafety * bound,
          .bound = bound,
          .worst_case = RoundedUp(runs.worst_case),
          .detectable_scale = RoundedUp(runs.detectable_scale),
          .noise_floor = NoiseStep(runs.noise, bound, before),
          .why = why};
}

bool IsWider(const GoldenTolerance& now, const std::optional<GoldenTolerance>& before) {
  constexpr double kSame = 1.0 + 1e-9;  // the file has three digits
  return before && now.tolerance > before->tolerance * kSame;
}

GoldenUpdate UpdateGolden(const std::string& path, const std::optional<Golden>& before,
                          const Golden& now, bool accept) {
  const Json json = ToJson(now);
  ParseGolden(json, path);
  if (before && ToJson(*before) == json) {
    return GoldenUpdate::kUnchanged;
  }
  if (!accept && IsAnyWider(now, before)) {
    return GoldenUpdate::kRefused;
  }
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  WriteJsonFile(path, json);
  return GoldenUpdate::kWritten;
}

}  // namespace moe
