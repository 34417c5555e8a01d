// What a correct implementation may be off by: unit round-offs of a step in some dtype, and from
// the reference's error estimates the allowed error of a slice.
#pragma once

#include <map>
#include <string>

#include "harness/base/dtype.h"
#include "harness/dump/manifest.h"
#include "reference/moe_reference.h"

namespace moe {

// The tolerance of a slice is this many times the L2 norm of its probabilistic bound (`deviation`,
// reference/arithmetic.h), so it is that bound with lambda = 4: exceeded with probability at most
// 2 exp(-lambda^2 / 2) = 7e-4 if all errors of the slice had one cause, and the less the more
// independent causes there are. Clean runs stay within the bound with lambda = 1, which regen
// checks of every slice; so 4 is also the distance from noise that kClearance asks for. The
// worst-case bound is 4 to 10,000 times as large as the probabilistic one (golden/), too wide to
// see anything.
inline constexpr double kSafety = 4.0;

// The factor that fits a tensor as a whole (scale.h) is one normal number, so clean runs must stay
// within 3 of its standard deviations (1 in 400 would not, were the deviation not an upper bound),
// and 4.5 are its tolerance (1 in 150,000: a campaign of 10,000 tensors should raise no alarm, and
// 2.8 was the most in 909 of them).
inline constexpr double kScaleBound = 3.0;
inline constexpr double kScaleSafety = 4.5;

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

// Unit round-offs of a step in `dtype` under `layout`. Dot products accumulate in float32 or
// better; scores are computed in float32 or better; sums over ranks round in `dtype`, a sum over
// hidden units once per rank of tp or etp, one over a token's experts once per rank of ep and etp
// (or tp, for what the tp ranks add to a token), one over tokens once per rank of the world.
// `casts` names the stages that the producer computes in a coarser dtype, as in manifest.h; other
// tensors among them are of no interest here.
reference::Rounding RoundingOf(Dtype dtype, const std::map<std::string, Dtype>& casts,
                               const Layout& layout);

// Of the step that made a dump. Without a cast that names them, logits may be kept in the dtype of
// the step. An input or a weight under casts, or a gradient of which ranks hold shares, coarsens
// all that the step stores and adds up over ranks.
reference::Rounding RoundingOf(const Manifest& manifest);

// The casts of the manifest to a dtype that is coarser than the step's.
std::map<std::string, Dtype> CoarserCasts(const Manifest& manifest);

// Those of them that take part in what a result may be off by. The shared experts see nothing of
// the stages, all of which are the router's or the routed experts'; a finished result is stored
// coarsely itself and widens no other.
std::map<std::string, Dtype> CastsReaching(const Manifest& manifest, const std::string& result);

// The unit round-off of a finished result (with no axis on which it is still owed) that is stored
// more coarsely than the step computes; 0 of other tensors.
double StoredUnit(const Manifest& manifest, const std::string& result);

// The smallest s for which (1 + s) (want + e) with |e| <= bound |want| is further from want than
// tolerance |want|, whatever e: it is off by at least s - (1 + s) bound, so
// s = (tolerance + bound) / (1 - bound). Infinite where the bound is 1 or more.
double DetectableScale(double tolerance, double bound);

// The same as a sentence for the `why` of a golden file.
std::string DescribeRounding(Dtype dtype);

}  // namespace moe
