#include "harness/parallel/faulty_communicator.h"

#include <limits>

#include "harness/parallel/collective_function.h"

namespace moe::parallel {
namespace {

using Kind = Fault::Kind;

// Values of about the size of `like` that have nothing to do with it.
at::Tensor Other(const at::Tensor& like) {
  const at::Tensor values = like.to(at::kDouble);
  const double size = values.numel() == 0 ? 0.0 : values.square().mean().sqrt().item<double>();
  return at::arange(values.numel(), at::kDouble)
      .mul(2.399963)
      .add(1.0)
      .cos()
      .mul(size > 0.0 ? size : 1.0)
      .view(values.sizes())
      .to(like.scalar_type());
}

// The values that a program reads that takes the memory of a transposed view for one in order.
at::Tensor Misread(const at::Tensor& input) {
  return input.dim() < 2 ? input : input.transpose(-1, -2).contiguous().view(input.sizes());
}

// Rounded to `bits` significant bits after the first one.
at::Tensor RoundToBits(const at::Tensor& input, int bits) {
  const auto [mantissa, exponent] = at::frexp(input.to(at::kFloat));
  const double grid = static_cast<double>(std::int64_t{2} << bits);
  return at::ldexp(mantissa.mul(grid).round().div(grid), exponent).to(input.scalar_type());
}

at::Tensor RoundCoarsely(const at::Tensor& input) {
  switch (input.scalar_type()) {
    case at::kDouble:
      return input.to(at::kFloat).to(at::kDouble);
    case at::kFloat:
      return input.to(at::kBFloat16).to(at::kFloat);
    default:
      return RoundToBits(input, /*bits=*/2);
  }
}

at::Tensor Scaled(const at::Tensor& input, double factor) {
  return at::isFloatingType(input.scalar_type())
             ? input.mul(factor)
             : input.to(at::kDouble).mul(factor).round().to(input.scalar_type());
}

// `values` with some elements, evenly spread, larger than any.
at::Tensor WithWrongElements(const at::Tensor& values, std::int64_t count, double value) {
  at::Tensor wrong = values.clone();
  const at::Tensor flat = wrong.view({-1});
  for (std::int64_t i = 0; i < count && flat.numel() > 0; ++i) {
    flat[i * flat.numel() / count].fill_(value);
  }
  return wrong;
}

at::Tensor WithGarbageWhereZero(const at::Tensor& gradient_EFD) {
  at::Tensor filled = gradient_EFD.clone();
  for (std::int64_t expert = 0; expert < filled.size(0); ++expert) {
    const at::Tensor slice = filled.select(0, expert);
    if (slice.count_nonzero().item<std::int64_t>() == 0) {
      slice.copy_(Other(slice));
    }
  }
  return filled;
}

}  // namespace

bool FaultyCommunicator::IsAt(const Reduction& reduction) const {
  return fault_.kind == Kind::kDropAll ? IsOfParameter(reduction) : reduction == fault_.reduction;
}

at::Tensor FaultyCommunicator::AllReduceSum(const Reduction& reduction, const at::Tensor& input,
                                            double divisor) {
  return IsAt(reduction) ? FaultySum(reduction, input, divisor)
                         : right_.AllReduceSum(reduction, input, divisor);
}

at::Tensor FaultyCommunicator::ReduceScatterSum(const Reduction& reduction,
                                                const at::Tensor& input) {
  return IsAt(reduction) ? OwnRows(reduction.axis, FaultySum(reduction, input, /*divisor=*/1.0))
                         : right_.ReduceScatterSum(reduction, input);
}

at::Tensor FaultyCommunicator::Settled(const Reduction& reduction, const at::Tensor& input) {
  // One sum more than owed, where none is owed, is a sum; so is one over other ranks.
  if (IsAt(reduction) && fault_.kind == Kind::kRepeat) {
    return right_.AllReduceSum(reduction, input);
  }
  if (IsAt(reduction) && fault_.kind == Kind::kWrongGroup) {
    return right_.AllReduceSum({reduction.tensor, fault_.axis}, input);
  }
  return right_.Settled(reduction, input);
}

at::Tensor FaultyCommunicator::FaultySum(const Reduction& reduction, const at::Tensor& input,
                                         double divisor) {
  const auto sum_of = [&](const at::Tensor& share) {
    return right_.AllReduceSum(reduction, share, divisor);
  };
  const bool at_rank = rank() == fault_.rank;
  switch (fault_.kind) {
    case Kind::kDrop:
    case Kind::kDropAll:
      // What goes missing is the sum; the division that belongs to it happens all the same.
      return divisor == 1.0 ? input : input.div(divisor);
    case Kind::kRepeat:
      return right_.AllReduceSum(reduction, sum_of(input));
    case Kind::kMean:
      return right_.AllReduceSum(reduction, input, static_cast<double>(Size(reduction.axis)));
    case Kind::kWrongGroup:
      return right_.AllReduceSum({reduction.tensor, fault_.axis}, input, divisor);
    case Kind::kSkipRank:
      return sum_of(at_rank ? at::zeros_like(input) : input);
    case Kind::kDoubleRank:
      return sum_of(at_rank ? input.mul(2.0) : input);
    case Kind::kMisread:
      return sum_of(Misread(input));
    default:
      return sum_of(input);
  }
}

at::Tensor FaultyCommunicator::AllGather(std::string_view tensor, Axis axis,
                                         const at::Tensor& input) {
  if (fault_.kind != Kind::kDropGather ||
      fault_.reduction != Reduction{std::string(tensor), axis}) {
    return right_.AllGather(tensor, axis, input);
  }
  std::vector<std::int64_t> sizes = input.sizes().vec();
  const std::int64_t rows = sizes[0];
  sizes[0] *= Size(axis);
  at::Tensor all = at::zeros(sizes, input.options());
  all.narrow(0, Coordinate(axis) * rows, rows).copy_(input);
  return all;
}

at::Tensor FaultyCommunicator::OnPath(std::string_view path, const at::Tensor& input) {
  const bool loses = fault_.kind == Kind::kLosePath;
  if (path != fault_.name || (!loses && fault_.kind != Kind::kDoublePath)) {
    return input;
  }
  return WithBackward(input, Identity,
                      [times = loses ? 0.0 : 2.0](const at::Tensor& d) { return d.mul(times); });
}

at::Tensor FaultyCommunicator::Weights(const at::Tensor& weights_TK,
                                       const at::Tensor& selection_TK) {
  if (fault_.kind != Kind::kModel || fault_.name != "expert_bias") {
    return weights_TK;
  }
  return weights_TK + (selection_TK - weights_TK).detach();
}

at::Tensor FaultyCommunicator::OwnSlots(const at::Tensor& all_TK, std::int64_t first,
                                        std::int64_t count) {
  if (fault_.kind != Kind::kLeakSlots) {
    return right_.OwnSlots(all_TK, first, count);
  }
  const std::int64_t ranks = all_TK.size(0) / count;
  return WithBackward(
      all_TK, [=](const at::Tensor& all) { return all.narrow(0, first, count); },
      [=](const at::Tensor& d_own) {
        return d_own.repeat({ranks, 1});
      });
}

at::Tensor FaultyCommunicator::Arrived(const at::Tensor& rows_nD) {
  rows_ = rows_nD.size(0);
  return fault_.kind == Kind::kShuffleRows ? rows_nD.roll(/*shifts=*/1, /*dims=*/0) : rows_nD;
}

std::vector<std::int64_t> FaultyCommunicator::Split(
    const std::vector<std::int64_t>& rows_per_expert) {
  std::vector<std::int64_t> split = rows_per_expert;
  for (std::size_t e = 0; fault_.kind == Kind::kSplitRows && e + 1 < split.size(); ++e) {
    if (split[e] > 0) {
      --split[e];
      ++split[e + 1];
      break;
    }
  }
  return split;
}

at::Tensor FaultyCommunicator::DividedByOwnRows(const at::Tensor& gradient) {
  const at::Tensor own = at::full({1}, static_cast<double>(rows_), at::kDouble);
  const double mean = right_.AllGather("rows", Axis::kEdp, own).mean().item<double>();
  return rows_ == 0 ? gradient : gradient.mul(mean / static_cast<double>(rows_));
}

at::Tensor FaultyCommunicator::Share(std::string_view tensor, const at::Tensor& gradient) {
  if (tensor != fault_.tensor) {
    return gradient;
  }
  switch (fault_.kind) {
    case Kind::kLocalNorm:
      return DividedByOwnRows(gradient);
    case Kind::kIdleGarbage:
      return WithGarbageWhereZero(gradient);
    default:
      return gradient;
  }
}

at::Tensor FaultyCommunicator::NeighboursShard(const at::Tensor& local) {
  const at::Tensor all = right_.AllGather(fault_.tensor, fault_.axis, local.contiguous());
  const std::int64_t neighbour = (Coordinate(fault_.axis) + 1) % Size(fault_.axis);
  return all.narrow(0, neighbour * local.size(0), local.size(0));
}

at::Tensor FaultyCommunicator::Finished(std::string_view tensor, const at::Tensor& local) {
  if (tensor != fault_.tensor) {
    return local;
  }
  const bool at_rank = rank() == fault_.rank;
  switch (fault_.kind) {
    case Kind::kSkipRank:
      return at_rank ? at::zeros_like(local) : local;
    case Kind::kDoubleRank:
      return at_rank ? local.mul(2) : local;
    case Kind::kScale:
      return Scaled(local, fault_.factor);
    case Kind::kPermute:
      return local.roll(/*shifts=*/1, static_cast<std::int64_t>(*DimOf(tensor, fault_.name)));
    case Kind::kMisplace:
      return NeighboursShard(local);
    case Kind::kStaleRank:
      return at_rank ? Other(local) : local;
    case Kind::kRound:
      return RoundCoarsely(local);
    case Kind::kCorrupt:
      return rank() == 0 ? WithWrongElements(local.contiguous(), /*count=*/3,
                                             3.0 * local.abs().max().item<double>() + 1.0)
                         : local;
    case Kind::kNan:
      return rank() == 0 ? WithWrongElements(local.contiguous(), /*count=*/1,
                                             std::numeric_limits<double>::quiet_NaN())
                         : local;
    default:
      return local;
  }
}

}  // namespace moe::parallel
