#include "harness/parallel/faulty_communicator.h"

namespace moe::parallel {

at::Tensor FaultyCommunicator::AllReduceSum(const Reduction& reduction, const at::Tensor& input,
                                            double divisor) {
  return reduction == fault_.reduction ? FaultySum(reduction, input, divisor)
                                       : right_.AllReduceSum(reduction, input, divisor);
}

at::Tensor FaultyCommunicator::ReduceScatterSum(const Reduction& reduction,
                                                const at::Tensor& input) {
  return reduction == fault_.reduction
             ? OwnRows(reduction.axis, FaultySum(reduction, input, /*divisor=*/1.0))
             : right_.ReduceScatterSum(reduction, input);
}

at::Tensor FaultyCommunicator::Settled(const Reduction& reduction, const at::Tensor& input) {
  // One sum more than owed, where none is owed, is a sum.
  const bool planted = reduction == fault_.reduction && fault_.kind == Fault::Kind::kRepeat;
  return planted ? right_.AllReduceSum(reduction, input) : right_.Settled(reduction, input);
}

at::Tensor FaultyCommunicator::FaultySum(const Reduction& reduction, const at::Tensor& input,
                                         double divisor) {
  switch (fault_.kind) {
    case Fault::Kind::kDrop:
      // What goes missing is the sum; the division that belongs to it happens all the same.
      return divisor == 1.0 ? input : input.div(divisor);
    case Fault::Kind::kRepeat:
      return right_.AllReduceSum(reduction, right_.AllReduceSum(reduction, input, divisor));
    case Fault::Kind::kMean:
      return right_.AllReduceSum(reduction, input, static_cast<double>(Size(reduction.axis)));
    case Fault::Kind::kWrongGroup:
      return right_.AllReduceSum({reduction.tensor, fault_.wrong_axis}, input, divisor);
    case Fault::Kind::kSkipRank:
      return right_.AllReduceSum(reduction, rank() == fault_.rank ? at::zeros_like(input) : input,
                                 divisor);
  }
  return input;
}

}  // namespace moe::parallel
