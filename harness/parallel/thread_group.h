// Ranks as threads of one process: collectives in shared memory, summed in rank order, so that the
// result is the same on every rank and on every run.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "harness/parallel/group.h"

namespace moe::parallel {

class ThreadMeeting;

// What the threads of one run share. Outlives the groups it hands out.
class ThreadWorld {
 public:
  explicit ThreadWorld(std::chrono::milliseconds deadline);
  ~ThreadWorld();

  // The group of these world ranks as `rank`, one of them, sees it.
  std::unique_ptr<Group> Join(const std::vector<std::int64_t>& ranks, std::int64_t rank);

  // Ends every wait of every group, now and later, with Error(why). The first call counts.
  void Poison(const std::string& why);

 private:
  std::chrono::milliseconds deadline_;
  std::mutex mutex_;
  std::string poison_;
  std::map<std::vector<std::int64_t>, std::unique_ptr<ThreadMeeting>> meetings_;
};

}  // namespace moe::parallel
