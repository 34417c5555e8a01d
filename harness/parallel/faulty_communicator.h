// Plants one fault at one named reduction and passes everything else on.
#pragma once

#include "harness/layout/fault.h"
#include "harness/parallel/communicator.h"

namespace moe::parallel {

class FaultyCommunicator : public Communicator {
 public:
  // `right` does the work and outlives this.
  FaultyCommunicator(Communicator& right, Fault fault) : right_(right), fault_(std::move(fault)) {}

  std::int64_t rank() const override { return right_.rank(); }
  const StepContract& contract() const override { return right_.contract(); }
  at::Tensor AllReduceSum(const Reduction& reduction, const at::Tensor& input,
                          double divisor) override;
  at::Tensor ReduceScatterSum(const Reduction& reduction, const at::Tensor& input) override;
  at::Tensor Settled(const Reduction& reduction, const at::Tensor& input) override;
  at::Tensor AllGather(Axis axis, const at::Tensor& input) override {
    return right_.AllGather(axis, input);
  }
  at::Tensor AllToAll(Axis axis, const at::Tensor& input,
                      const std::vector<std::int64_t>& send_rows,
                      const std::vector<std::int64_t>& receive_rows) override {
    return right_.AllToAll(axis, input, send_rows, receive_rows);
  }

 private:
  // What the faulty sum leaves on this rank, before anybody takes a chunk of it.
  at::Tensor FaultySum(const Reduction& reduction, const at::Tensor& input, double divisor);

  Communicator& right_;
  Fault fault_;
};

}  // namespace moe::parallel
