// What a correct implementation may be off by: unit round-offs of a step in some dtype, and from
// the reference's error estimates the allowed error of a slice.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "harness/base/dtype.h"
#include "reference/moe_reference.h"

namespace moe {

// The allowed error of a slice is this many times the L2 norm of its standard deviations: of many
// independent errors the norm stays near that value, and measured clean runs reach 0.1 to 0.8 of it
// (the noise floors in golden/). It is kClearance, so that a clean run within the bound is clear of
// the tolerance.
inline constexpr double kSafety = 4.0;

// A slice whose allowed error is more than this part of its norm says little by its relative error:
// much of its true value is lost in cancellation. It is judged by its own allowed error, and does
// not widen the tolerance of its tensor. A mean over two ranks is off by 1/2, kClearance times as
// much.
inline constexpr double kLargestUsefulTolerance = 0.125;

// A tensor none of whose slices is larger than its allowed error by this much was not tested at
// all.
inline constexpr double kLargestTellingTolerance = 0.5;

// A tolerance must be this far from both measured floors (DESIGN: formats, Golden).
inline constexpr double kClearance = 4.0;

// Unit round-offs of a step in `dtype` on `world_size` ranks. Dot products accumulate in float32 or
// better; scores are computed in float32 or better; sums over ranks round once per rank in `dtype`.
// `casts` names what the producer computes in a coarser dtype: scores_TE (with the logits that
// enter the score function) and logits_TE coarsen those stages, any other tensor coarsens what is
// stored.
reference::Rounding RoundingOf(Dtype dtype, const std::map<std::string, Dtype>& casts,
                               std::int64_t world_size);

// The same as a sentence for the `why` of a golden file.
std::string DescribeRounding(Dtype dtype);

}  // namespace moe
