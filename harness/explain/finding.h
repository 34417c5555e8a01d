// What the judge says: verdicts, causes, and one finding per judged tensor (DESIGN: formats,
// Result).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "harness/layout/layout.h"

namespace moe {

enum class Verdict { kPass, kFail, kVacuous, kSkipped, kError };
std::string_view ToText(Verdict verdict);  // "pass", "fail", "vacuous", "skipped", "error"

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
  kPrecision,            // right, but rounded more coarsely than its dtype allows
  kWrongFormula,         // as if one option of the model were another
  kCorruption,           // few elements wrong; NaN or Inf
  kUnexplained,
  kAmbiguous,  // several of the above give the same numbers
};
std::string_view ToText(Cause cause);  // "missing_sum", ...

// What is wrong, as far as the numbers and the witnesses say. Members that a cause does not speak
// of stay empty.
struct Explanation {
  Cause cause = Cause::kNone;
  std::vector<Axis> axes;        // what was owed; kMisplacedShard: where the slice is another's
  std::vector<Axis> used;        // kWrongGroup: the axes that were summed over instead
  std::optional<double> factor;  // kWrongScale
  std::string path;              // kLostPath, kDoubledPath, or that a sum's cause is limited to
  std::string permuted;          // kPermuted: "experts", "tokens", "hidden units", "elements"
  std::string option;            // kWrongFormula: "score_placement"; kPrecision: "bfloat16"
  std::vector<std::int64_t> sources;  // whose contribution was dropped or doubled: ranks
};

struct Finding {
  std::string tensor;
  Verdict verdict = Verdict::kPass;
  Explanation explanation;
  std::vector<Explanation> candidates;  // kAmbiguous: causes that give the same numbers
  double error = 0.0;                   // largest relative L2 error of a slice
  double tolerance = 0.0;               // allowed there
  double residual = 0.0;                // what the cause leaves unexplained, relative
  std::vector<std::int64_t> ranks;      // that hold a wrong slice
  std::string text;                     // "missing sum over tp"
  std::vector<std::string> evidence;    // sentences for people: what, why, where
};

}  // namespace moe
