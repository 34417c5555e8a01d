#include "harness/parallel/communicator.h"

#include <fmt/format.h>

namespace moe::parallel {

std::int64_t Communicator::Size(Axis axis) const {
  return contract().meshes.With(axis).SizeOf(axis);
}

std::int64_t Communicator::Coordinate(Axis axis) const {
  return contract().meshes.With(axis).Coordinate(rank(), axis);
}

at::Tensor Communicator::SumWhereOwed(const Reduction& reduction, const at::Tensor& input) {
  if (Size(reduction.axis) == 1) {
    return input;
  }
  return contract().Owes(reduction) ? AllReduceSum(reduction, input) : Settled(reduction, input);
}

at::Tensor Communicator::OnPath(std::string_view /*path*/, const at::Tensor& input) {
  return input;
}

at::Tensor Communicator::Weights(const at::Tensor& weights_TK, const at::Tensor& /*selection_TK*/) {
  return weights_TK;
}

at::Tensor Communicator::OwnSlots(const at::Tensor& all_TK, std::int64_t first,
                                  std::int64_t count) {
  return all_TK.narrow(0, first, count);
}

at::Tensor Communicator::Arrived(const at::Tensor& rows_nD) {
  return rows_nD;
}

std::vector<std::int64_t> Communicator::Split(const std::vector<std::int64_t>& rows_per_expert) {
  return rows_per_expert;
}

at::Tensor Communicator::Share(std::string_view /*tensor*/, const at::Tensor& gradient) {
  return gradient;
}

at::Tensor Communicator::Finished(std::string_view /*tensor*/, const at::Tensor& local) {
  return local;
}

at::Tensor Communicator::OwnRows(Axis axis, const at::Tensor& input) const {
  const std::int64_t rows = input.size(0) / Size(axis);
  return input.narrow(0, Coordinate(axis) * rows, rows).contiguous();
}

MeshCommunicator::MeshCommunicator(const StepContract& contract, std::int64_t rank,
                                   const GroupFactory& open)
    : contract_(contract), rank_(rank) {
  for (const MeshKind kind : {MeshKind::kDense, MeshKind::kExpert}) {
    const Mesh& mesh = contract_.meshes.Of(kind);
    for (const Axis axis : mesh.axes) {
      if (mesh.SizeOf(axis) > 1) {
        const std::vector<std::int64_t> ranks = mesh.GroupOf(rank, {axis});
        groups_[axis] = open(ranks, std::string(ToText(axis)));
      }
    }
  }
}

at::Tensor MeshCommunicator::AllReduceSum(const Reduction& reduction, const at::Tensor& input,
                                          double divisor) {
  // A mean is another call than a sum: "d_gate_ED@tp/2".
  calls_.push_back(divisor == 1.0 ? ToText(reduction)
                                  : fmt::format("{}/{:.0f}", ToText(reduction), divisor));
  const at::Tensor sum = GroupOn(reduction.axis).AllReduceSum(input.contiguous());
  return divisor == 1.0 ? sum : sum.div(divisor);
}

at::Tensor MeshCommunicator::ReduceScatterSum(const Reduction& reduction, const at::Tensor& input) {
  calls_.push_back(ToText(reduction));
  return GroupOn(reduction.axis).ReduceScatterSum(input.contiguous());
}

at::Tensor MeshCommunicator::Settled(const Reduction& /*reduction*/, const at::Tensor& input) {
  return input;
}

at::Tensor MeshCommunicator::AllGather(std::string_view /*tensor*/, Axis axis,
                                       const at::Tensor& input) {
  return GroupOn(axis).AllGather(input.contiguous());
}

at::Tensor MeshCommunicator::AllToAll(Axis axis, const at::Tensor& input,
                                      const std::vector<std::int64_t>& send_rows,
                                      const std::vector<std::int64_t>& receive_rows) {
  return GroupOn(axis).AllToAll(input.contiguous(), send_rows, receive_rows);
}

}  // namespace moe::parallel
