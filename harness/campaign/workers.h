// Many independent tasks on a few forked processes.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace moe {

struct WorkerOptions {
  std::int64_t jobs = 0;                // processes; 0: one per core
  bool progress = false;                // shows how many tasks are done on standard error
  std::chrono::seconds deadline{3600};  // of all tasks together
};

// body(task) for every task from 0 to count - 1, each on whichever worker is free; returns what
// they returned, by task. Workers are forked from this process, which must not have started
// threads, and end with it. Throws Error("workers", ...) when body throws, crashes, or the deadline
// passes.
std::vector<std::string> RunInWorkers(std::int64_t count,
                                      const std::function<std::string(std::int64_t task)>& body,
                                      const WorkerOptions& options);

}  // namespace moe
