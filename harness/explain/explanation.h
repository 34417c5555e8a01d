// What can be wrong with a tensor, as far as numbers and witnesses say.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "harness/layout/layout.h"

namespace moe {

enum class Cause {
  kNone,
  kMissingSum,           // each rank holds a share; the shares of an axis add up to the reference
  kDoubleSum,            // the reference times the size of an axis
  kMeanForSum,           // the reference divided by the size of an axis
  kWrongGroup,           // the sum went over other axes (`used`) than those it was owed over
  kWrongScale,           // the reference times a factor that is no axis of the contract
  kDroppedContribution,  // the contribution of `sources` is not in it
  kDoubledContribution,  // ... is in it twice
  kLostPath,             // what comes along one path of the backward pass is not in it
  kDoubledPath,          // ... is in it twice
  kLocalNormaliser,      // each rank's contribution divided by its own count, not the global one
  kPermuted,             // experts, tokens or hidden units in another order
  kMisplacedShard,       // a rank holds the slice of another one
  kStaleReplica,         // a rank holds something else than its replicas, which are right
  kLeakedSlots,          // slots that other ranks compute get a gradient here too
  kPrecision,            // right, but rounded more coarsely than its dtype allows
  kWrongFormula,         // as if one option of the model were another
  kCorruption,           // few elements wrong; NaN or Inf
  kUnexplained,
  kAmbiguous,  // several of the above give the same numbers
};
std::string_view ToText(Cause cause);  // "missing_sum", ...

// Members that a cause does not speak of stay empty.
struct Explanation {
  Cause cause = Cause::kNone;
  std::vector<Axis> axes;        // what was owed; kMisplacedShard: where the slice is another's
  std::vector<Axis> used;        // kWrongGroup: the axes that were summed over instead
  std::optional<double> factor;  // kWrongScale
  std::string path;              // kLostPath, kDoubledPath, or that a sum's cause is limited to
  std::string permuted;          // kPermuted: "experts", "tokens", "hidden units", "elements"
  std::string option;            // kWrongFormula: "score_placement"; kPrecision: "bfloat16"
  std::vector<std::int64_t> sources;  // whose contribution was dropped or doubled: ranks

  bool operator==(const Explanation&) const = default;
};

}  // namespace moe
