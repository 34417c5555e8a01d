// The collectives of the step on one rank, each sum by its name in the contract. Faults are planted
// by a decorator around this interface (faulty_communicator.h), so the step itself knows of none.
#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "harness/layout/step_contract.h"
#include "harness/parallel/group.h"

namespace moe::parallel {

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual std::int64_t rank() const = 0;  // of the world
  virtual const StepContract& contract() const = 0;

  // Sum over reduction.axis, divided by `divisor`.
  virtual at::Tensor AllReduceSum(const Reduction& reduction, const at::Tensor& input,
                                  double divisor = 1.0) = 0;
  // The same sum, of which this rank keeps its own chunk of rows.
  virtual at::Tensor ReduceScatterSum(const Reduction& reduction, const at::Tensor& input) = 0;
  // The value is whole on every rank of the axis already, or the rank is alone on it: nothing to
  // do. Said at the places where another program would have to sum.
  virtual at::Tensor Settled(const Reduction& reduction, const at::Tensor& input) = 0;

  // The rows of `tensor` ("x_TD") on all ranks of the axis, in rank order.
  virtual at::Tensor AllGather(std::string_view tensor, Axis axis, const at::Tensor& input) = 0;
  virtual at::Tensor AllToAll(Axis axis, const at::Tensor& input,
                              const std::vector<std::int64_t>& send_rows,
                              const std::vector<std::int64_t>& receive_rows) = 0;

  // Places of the step that are no collective and can go wrong all the same. Each returns what it
  // is given; a decorator acts there.
  //
  // The head of a path of the backward pass: "gate", "routed", "shared", "scores".
  virtual at::Tensor OnPath(std::string_view path, const at::Tensor& input);
  // The combine weights, and the scores by which their experts were selected (the same, but for a
  // bias of the selection). Returns the weights.
  virtual at::Tensor Weights(const at::Tensor& weights_TK, const at::Tensor& selection_TK);
  // The slots [first, first + count) of all, the tokens that this rank computes; backward pads with
  // zeros.
  virtual at::Tensor OwnSlots(const at::Tensor& all_TK, std::int64_t first, std::int64_t count);
  // Rows that reached the owner of their experts, ordered by expert, and how many each expert has.
  virtual at::Tensor Arrived(const at::Tensor& rows_nD);
  virtual std::vector<std::int64_t> Split(const std::vector<std::int64_t>& rows_per_expert);
  // A parameter's gradient before its sums.
  virtual at::Tensor Share(std::string_view tensor, const at::Tensor& gradient);
  // What this rank holds of a result when the step is over.
  virtual at::Tensor Finished(std::string_view tensor, const at::Tensor& local);

  std::int64_t Size(Axis axis) const;
  std::int64_t Coordinate(Axis axis) const;

  // AllReduceSum where the contract owes the reduction, else Settled.
  at::Tensor SumWhereOwed(const Reduction& reduction, const at::Tensor& input);
  // This rank's chunk of rows of a value that is whole on the axis.
  at::Tensor OwnRows(Axis axis, const at::Tensor& input) const;
};

// Opens the group of the world ranks `ranks`, of which this rank is one.
using GroupFactory = std::function<std::unique_ptr<Group>(const std::vector<std::int64_t>& ranks,
                                                          const std::string& name)>;

// The communicator of a mesh: one group per axis of size over 1, opened in the same order on all
// ranks.
class MeshCommunicator : public Communicator {
 public:
  MeshCommunicator(const StepContract& contract, std::int64_t rank, const GroupFactory& open);

  std::int64_t rank() const override { return rank_; }
  const StepContract& contract() const override { return contract_; }
  at::Tensor AllReduceSum(const Reduction& reduction, const at::Tensor& input,
                          double divisor) override;
  at::Tensor ReduceScatterSum(const Reduction& reduction, const at::Tensor& input) override;
  at::Tensor Settled(const Reduction& reduction, const at::Tensor& input) override;
  at::Tensor AllGather(std::string_view tensor, Axis axis, const at::Tensor& input) override;
  at::Tensor AllToAll(Axis axis, const at::Tensor& input,
                      const std::vector<std::int64_t>& send_rows,
                      const std::vector<std::int64_t>& receive_rows) override;

  // The sums this rank took part in, in order: "y_TD@tp"; one divided by 2 is "d_gate_ED@tp/2".
  const std::vector<std::string>& calls() const { return calls_; }

 private:
  Group& GroupOn(Axis axis) { return *groups_.at(axis); }

  StepContract contract_;
  std::int64_t rank_;
  std::map<Axis, std::unique_ptr<Group>> groups_;
  std::vector<std::string> calls_;
};

}  // namespace moe::parallel
