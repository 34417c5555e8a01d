// The collectives of one group of ranks, as one of its ranks sees them. Threads, Gloo and NCCL
// stand behind this one interface.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>
#include <vector>

namespace moe::parallel {

// Every call blocks until it is done; all tensors are contiguous and outside the autograd graph.
// Ranks of the group must make the same calls in the same order; a mismatch of operation, shape or
// dtype, a rank that failed, and a wait past the deadline throw Error on every rank of the group.
class Group {
 public:
  virtual ~Group() = default;

  virtual std::int64_t rank() const = 0;  // within the group
  virtual std::int64_t size() const = 0;

  virtual at::Tensor AllReduceSum(const at::Tensor& input) = 0;
  // [n, ...] on each rank -> [size * n, ...] in rank order.
  virtual at::Tensor AllGather(const at::Tensor& input) = 0;
  // [size * n, ...] -> the sum's rows [rank * n, (rank + 1) * n).
  virtual at::Tensor ReduceScatterSum(const at::Tensor& input) = 0;
  // Sends send_rows[r] rows to rank r, in order; receives receive_rows[r] rows from it.
  virtual at::Tensor AllToAll(const at::Tensor& input, const std::vector<std::int64_t>& send_rows,
                              const std::vector<std::int64_t>& receive_rows) = 0;
};

}  // namespace moe::parallel
