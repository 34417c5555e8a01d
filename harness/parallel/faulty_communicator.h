// Plants one fault at one named place and passes everything else on.
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
  at::Tensor AllGather(std::string_view tensor, Axis axis, const at::Tensor& input) override;
  at::Tensor AllToAll(Axis axis, const at::Tensor& input,
                      const std::vector<std::int64_t>& send_rows,
                      const std::vector<std::int64_t>& receive_rows) override {
    return right_.AllToAll(axis, input, send_rows, receive_rows);
  }
  at::Tensor OnPath(std::string_view path, const at::Tensor& input) override;
  at::Tensor Weights(const at::Tensor& weights_TK, const at::Tensor& selection_TK) override;
  at::Tensor OwnSlots(const at::Tensor& all_TK, std::int64_t first, std::int64_t count) override;
  at::Tensor Arrived(const at::Tensor& rows_nD) override;
  std::vector<std::int64_t> Split(const std::vector<std::int64_t>& rows_per_expert) override;
  at::Tensor Share(std::string_view tensor, const at::Tensor& gradient) override;
  at::Tensor Finished(std::string_view tensor, const at::Tensor& local) override;

 private:
  bool IsAt(const Reduction& reduction) const;
  // What the faulty sum leaves on this rank, before anybody takes a chunk of it.
  at::Tensor FaultySum(const Reduction& reduction, const at::Tensor& input, double divisor);
  at::Tensor NeighboursShard(const at::Tensor& local);
  at::Tensor DividedByOwnRows(const at::Tensor& gradient);

  Communicator& right_;
  Fault fault_;
  std::int64_t rows_ = 0;  // that this rank's experts got
};

}  // namespace moe::parallel
