#include "harness/dump/tensor_view.h"

#include <fmt/format.h>

#include <bit>
#include <cstring>

#include "harness/base/error.h"

namespace moe {
namespace {

// The format is little-endian; elements are copied as they lie.
static_assert(std::endian::native == std::endian::little);

// A bfloat16 is the upper half of a float.
double FromBfloat16(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16U);
}

// IEEE 754 binary16: 1 sign bit, 5 exponent bits with bias 15, 10 fraction bits.
double FromFloat16(std::uint16_t bits) {
  const std::uint64_t sign = static_cast<std::uint64_t>(bits >> 15U) << 63U;
  const std::uint64_t exponent = (bits >> 10U) & 0x1fU;
  const std::uint64_t fraction = bits & 0x3ffU;
  if (exponent == 0) {  // subnormal: fraction * 2^-24
    const double magnitude = static_cast<double>(fraction) * 0x1p-24;
    return sign == 0 ? magnitude : -magnitude;
  }
  const std::uint64_t wide_exponent = exponent == 0x1f ? 0x7ff : exponent - 15 + 1023;
  return std::bit_cast<double>(sign | wide_exponent << 52U | fraction << 42U);
}

template <typename Stored>
Stored Load(const std::byte* from) {
  Stored value;
  std::memcpy(&value, from, sizeof value);  // any alignment
  return value;
}

// One loop per dtype, so that the compiler can vectorise it.
template <typename Stored, typename Convert>
void ReadAs(const std::byte* from, std::span<double> out, Convert convert) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] = convert(Load<Stored>(from + i * sizeof(Stored)));
  }
}

}  // namespace

double TensorView::At(std::int64_t index) const {
  double value = 0.0;
  Read(index, {&value, 1});
  return value;
}

std::int64_t TensorView::IntegerAt(std::int64_t index) const {
  const std::byte* from = bytes.data() + index * SizeOf(dtype);
  switch (dtype) {
    case Dtype::kInt64:
      return Load<std::int64_t>(from);
    case Dtype::kInt32:
      return Load<std::int32_t>(from);
    default:
      throw Error("",
                  fmt::format("a {} tensor has no integers; use int64 or int32", ToText(dtype)));
  }
}

void TensorView::Read(std::int64_t first, std::span<double> out) const {
  const std::byte* from = bytes.data() + first * SizeOf(dtype);
  const auto widen = [](auto value) { return static_cast<double>(value); };
  switch (dtype) {
    case Dtype::kFloat64:
      return ReadAs<double>(from, out, widen);
    case Dtype::kFloat32:
      return ReadAs<float>(from, out, widen);
    case Dtype::kBfloat16:
      return ReadAs<std::uint16_t>(from, out, FromBfloat16);
    case Dtype::kFloat16:
      return ReadAs<std::uint16_t>(from, out, FromFloat16);
    case Dtype::kInt64:
      return ReadAs<std::int64_t>(from, out, widen);
    case Dtype::kInt32:
      return ReadAs<std::int32_t>(from, out, widen);
  }
}

}  // namespace moe
