// Ranks as processes of this machine: starts them, watches them, ends them, and says in one
// sentence which rank was at fault. Knows nothing about what the ranks do.
//
// Linux only. At most one launch at a time in a process (a rank may start ranks of its own).
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace moe {

struct LaunchOptions {
  std::int64_t world_size = 1;
  std::chrono::milliseconds deadline{20'000};
  // From SIGTERM to SIGKILL, for ranks that do not end when asked to.
  std::chrono::milliseconds grace{2'000};
  // From the first failure to the choice of the culprit: the first rank to exit is often a victim,
  // whose peer closed the connection a moment before dying itself.
  std::chrono::milliseconds settle{300};
  // Asked ten times a second while ranks run. Where there was progress, it returns the deadline for
  // the next one, which counts from now. What it throws ends the ranks and the launch with it.
  std::function<std::optional<std::chrono::milliseconds>()> progressed;
  // What a message calls the only rank of a world of one ("the producer"), which is no rank to its
  // user.
  std::string called;
  // Called when a signal ends the launch, before it is raised again and this process may die of it.
  std::function<void()> before_signal_death;
};

// Forks one process per rank, runs body(rank) in each and returns when all have ended well: body
// returned, so the exit status is 0. An exception of body becomes the rank's last words ("rank
// failed: what()") and exit status 1. Ranks leave with _exit: nothing of this process is flushed or
// destroyed twice.
//
// Each rank leads a process group of its own, reads /dev/null, and writes to pipes of which the
// last 64 KiB are kept. It dies with this process, even if that is killed by SIGKILL. What a rank
// started itself dies with the rank, as long as it stays in its group and this process lives.
//
// The first failure or the deadline ends all ranks. SIGINT, SIGTERM and SIGHUP that arrive
// meanwhile end all ranks, and are then raised again.
//
// Call it before this process has threads, OpenMP regions or CUDA contexts that body needs: a
// forked child has none of them.
//
// Throws Error("rank 3 of 8", "crashed with signal 11 (Segmentation fault); its last words: ..."),
// or Error("ranks 0-2, 5 of 8", "did not finish within 20 s; the last words of rank 0: ...").
void RunRanks(const LaunchOptions& options, const std::function<void(std::int64_t rank)>& body);

}  // namespace moe
