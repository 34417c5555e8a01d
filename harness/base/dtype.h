// Number formats that moegate computes in or reads, and their unit round-off.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace moe {

enum class Dtype { kFloat64, kFloat32, kBfloat16, kFloat16, kInt64, kInt32 };

// "float64", "float32", "bfloat16", "float16", "int64", "int32".
std::string_view ToText(Dtype dtype);
std::optional<Dtype> DtypeFromText(std::string_view text);

std::int64_t SizeOf(Dtype dtype);  // bytes

bool IsFloat(Dtype dtype);

// Unit round-off u of rounding to nearest: 2^-53, 2^-24, 2^-8 (bfloat16), 2^-11 (float16).
// 0 for integers. Higham 2002, sec. 2.1.
double UnitRoundoff(Dtype dtype);

}  // namespace moe
