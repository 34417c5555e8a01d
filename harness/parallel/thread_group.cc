#include "harness/parallel/thread_group.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <condition_variable>

#include "harness/base/error.h"

namespace moe::parallel {

// A barrier with a deadline and a poison, and one slot per rank in which it lays what it brings.
class ThreadMeeting {
 public:
  struct Slot {
    std::string operation;
    at::Tensor tensor;  // kept alive here: a rank that throws leaves while others still look at it
    std::vector<std::int64_t> send_rows;
  };

  ThreadMeeting(std::vector<std::int64_t> ranks, std::chrono::milliseconds deadline)
      : ranks_(std::move(ranks)), deadline_(deadline), slots_(ranks_.size()) {}

  const std::vector<std::int64_t>& ranks() const { return ranks_; }
  Slot& slot(std::size_t rank) { return slots_[rank]; }

  void Poison(const std::string& why) {
    const std::lock_guard lock(mutex_);
    if (poison_.empty()) {
      poison_ = why;
    }
    changed_.notify_all();
  }

  // Returns when every rank of the group is here.
  void Wait(const std::string& operation) {
    std::unique_lock lock(mutex_);
    const std::uint64_t round = round_;
    if (++arrived_ == ranks_.size()) {
      arrived_ = 0;
      ++round_;
      changed_.notify_all();
      return;
    }
    const bool came =
        changed_.wait_for(lock, deadline_, [&] { return round_ != round || !poison_.empty(); });
    if (round_ != round) {
      return;
    }
    if (came) {
      throw Error("", poison_);
    }
    throw Error("", fmt::format("waited {} ms in {} for ranks {}; {} of {} came", deadline_.count(),
                                operation, fmt::join(ranks_, ", "), arrived_, ranks_.size()));
  }

 private:
  std::vector<std::int64_t> ranks_;
  std::chrono::milliseconds deadline_;
  std::vector<Slot> slots_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::uint64_t round_ = 0;
  std::size_t arrived_ = 0;
  std::string poison_;
};

namespace {

class ThreadGroup : public Group {
 public:
  ThreadGroup(ThreadMeeting& meeting, std::size_t rank) : meeting_(meeting), rank_(rank) {}

  std::int64_t rank() const override { return static_cast<std::int64_t>(rank_); }
  std::int64_t size() const override { return static_cast<std::int64_t>(meeting_.ranks().size()); }

  at::Tensor AllReduceSum(const at::Tensor& input) override {
    return Meet("all_reduce", input, {}, /*same_shape=*/true, [&] { return SumOf(input, 0); });
  }

  at::Tensor ReduceScatterSum(const at::Tensor& input) override {
    return Meet("reduce_scatter", input, {}, /*same_shape=*/true, [&] {
      const std::int64_t rows = input.size(0) / size();
      return SumOf(input.narrow(0, rank() * rows, rows), rank() * rows);
    });
  }

  at::Tensor AllGather(const at::Tensor& input) override {
    return Meet("all_gather", input, {}, /*same_shape=*/true, [&] {
      std::vector<at::Tensor> parts;
      for (std::size_t other = 0; other < meeting_.ranks().size(); ++other) {
        parts.push_back(meeting_.slot(other).tensor);
      }
      return at::cat(parts, 0);
    });
  }

  at::Tensor AllToAll(const at::Tensor& input, const std::vector<std::int64_t>& send_rows,
                      const std::vector<std::int64_t>& receive_rows) override {
    return Meet("all_to_all", input, send_rows, /*same_shape=*/false, [&] {
      std::vector<at::Tensor> parts;
      for (std::size_t other = 0; other < meeting_.ranks().size(); ++other) {
        const auto& slot = meeting_.slot(other);
        std::int64_t first = 0;
        for (std::size_t before = 0; before < rank_; ++before) {
          first += slot.send_rows[before];
        }
        if (slot.send_rows[rank_] != receive_rows[other]) {
          throw Error("",
                      fmt::format("all_to_all: rank {} sends {} rows to rank {}, which expects {}",
                                  meeting_.ranks()[other], slot.send_rows[rank_],
                                  meeting_.ranks()[rank_], receive_rows[other]));
        }
        parts.push_back(slot.tensor.narrow(0, first, receive_rows[other]));
      }
      return at::cat(parts, 0);
    });
  }

 private:
  // Lays down `input`, waits for all, checks that all came for the same thing, computes, and waits
  // until all have computed, since they read one another's tensors.
  template <typename Compute>
  at::Tensor Meet(const std::string& operation, const at::Tensor& input,
                  const std::vector<std::int64_t>& send_rows, bool same_shape,
                  const Compute& compute) {
    meeting_.slot(rank_) = {operation, input, send_rows};
    meeting_.Wait(operation);
    for (std::size_t other = 0; other < meeting_.ranks().size(); ++other) {
      const auto& slot = meeting_.slot(other);
      if (slot.operation != operation || slot.tensor.scalar_type() != input.scalar_type() ||
          (same_shape && slot.tensor.sizes() != input.sizes())) {
        throw Error("",
                    fmt::format("rank {} is in {} with {} elements while rank {} is in {} with {}",
                                meeting_.ranks()[rank_], operation, input.numel(),
                                meeting_.ranks()[other], slot.operation, slot.tensor.numel()));
      }
    }
    at::Tensor output = compute();
    meeting_.Wait(operation);
    return output;
  }

  // Sum over the ranks, in rank order, of the part of their tensors that is shaped like `part` and
  // begins at row `first`.
  at::Tensor SumOf(const at::Tensor& part, std::int64_t first) const {
    at::Tensor sum;
    for (std::size_t other = 0; other < meeting_.ranks().size(); ++other) {
      const at::Tensor& whole = meeting_.slot(other).tensor;
      const at::Tensor share =
          whole.sizes() == part.sizes() ? whole : whole.narrow(0, first, part.size(0));
      sum = other == 0 ? share.clone() : sum.add_(share);
    }
    return sum;
  }

  ThreadMeeting& meeting_;
  std::size_t rank_;
};

}  // namespace

ThreadWorld::ThreadWorld(std::chrono::milliseconds deadline) : deadline_(deadline) {}
ThreadWorld::~ThreadWorld() = default;

std::unique_ptr<Group> ThreadWorld::Join(const std::vector<std::int64_t>& ranks,
                                         std::int64_t rank) {
  const std::lock_guard lock(mutex_);
  auto& meeting = meetings_[ranks];
  if (!meeting) {
    meeting = std::make_unique<ThreadMeeting>(ranks, deadline_);
    if (!poison_.empty()) {
      meeting->Poison(poison_);
    }
  }
  const auto place = std::find(ranks.begin(), ranks.end(), rank) - ranks.begin();
  return std::make_unique<ThreadGroup>(*meeting, static_cast<std::size_t>(place));
}

void ThreadWorld::Poison(const std::string& why) {
  const std::lock_guard lock(mutex_);
  if (!poison_.empty()) {
    return;
  }
  poison_ = why;
  for (const auto& [ranks, meeting] : meetings_) {
    meeting->Poison(why);
  }
}

}  // namespace moe::parallel
