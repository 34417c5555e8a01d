// A regenerated golden file beside the one before: what changes, and whether it may be written.
#pragma once

#include <optional>
#include <string>

#include "harness/measure/golden.h"
#include "tools/commands/clean_runs.h"

namespace moe {

// The file at `path` as it is, whatever case it was made of; nothing where there is none. Throws
// Error(path, ...) for a file that breaks a rule of its own (ParseGolden).
std::optional<Golden> GoldenBefore(const std::string& path);

// The entry of a tensor, where there is one.
std::optional<GoldenTolerance> EntryOf(const std::optional<Golden>& golden, Dtype dtype,
                                       const std::string& tensor);

// A tensor's tolerance as its clean runs give it, and with a noise floor that keeps to the step of
// `before` where it can (NoiseStep).
GoldenTolerance ToleranceFrom(const CleanRuns& runs, const std::optional<GoldenTolerance>& before,
                              const std::string& why);

// Whether `now` allows more than `before` did.
bool IsWider(const GoldenTolerance& now, const std::optional<GoldenTolerance>& before);

enum class GoldenUpdate { kWritten, kUnchanged, kRefused };

// Writes `now` to `path`, whole or not at all. Leaves the file alone where it says the same
// already, and refuses to widen a tolerance unless `accept`. Throws Error(path, ...): the loader
// would refuse what is to be written, since a case without room between noise and faults is not
// loosened; the file cannot be written.
GoldenUpdate UpdateGolden(const std::string& path, const std::optional<Golden>& before,
                          const Golden& now, bool accept);

}  // namespace moe
