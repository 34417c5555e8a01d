#include "harness/base/dtype.h"

#include <array>
#include <cmath>

namespace moe {
namespace {

struct Entry {
  Dtype dtype;
  std::string_view text;
  std::int64_t bytes;
  int significand_bits;  // the hidden bit included; 0 for integers
};

constexpr std::array<Entry, 6> kEntries = {{{Dtype::kFloat64, "float64", 8, 53},
                                            {Dtype::kFloat32, "float32", 4, 24},
                                            {Dtype::kBfloat16, "bfloat16", 2, 8},
                                            {Dtype::kFloat16, "float16", 2, 11},
                                            {Dtype::kInt64, "int64", 8, 0},
                                            {Dtype::kInt32, "int32", 4, 0}}};

const Entry& EntryOf(Dtype dtype) {
  return kEntries.at(static_cast<std::size_t>(dtype));
}

}  // namespace

std::string_view ToText(Dtype dtype) {
  return EntryOf(dtype).text;
}

std::optional<Dtype> DtypeFromText(std::string_view text) {
  for (const Entry& entry : kEntries) {
    if (entry.text == text) {
      return entry.dtype;
    }
  }
  return std::nullopt;
}

std::int64_t SizeOf(Dtype dtype) {
  return EntryOf(dtype).bytes;
}

bool IsFloat(Dtype dtype) {
  return EntryOf(dtype).significand_bits > 0;
}

double UnitRoundoff(Dtype dtype) {
  return IsFloat(dtype) ? std::ldexp(1.0, -EntryOf(dtype).significand_bits) : 0.0;
}

}  // namespace moe
