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
  kMissingSum,  // each rank holds a share; the shares of an axis add up to the reference
  kDoubleSum,   // every rank holds the reference times the size of an axis
  kMeanForSum,  // every rank holds the reference divided by the size of an axis
  kWrongScale,  // the reference times a factor that is no axis of the contract
  kCorruption,  // NaN or Inf
  kAmbiguous,   // several of the above give the same numbers
  kUnexplained,
};
std::string_view ToText(Cause cause);  // "missing_sum", ...

struct CauseCandidate {
  Cause cause = Cause::kNone;
  std::vector<Axis> axes;
};

struct Finding {
  std::string tensor;
  Verdict verdict = Verdict::kPass;
  Cause cause = Cause::kNone;
  std::vector<Axis> axes;                  // what was owed
  std::optional<double> factor;            // kWrongScale
  std::vector<CauseCandidate> candidates;  // kAmbiguous
  double error = 0.0;                      // largest relative L2 error of a slice
  double tolerance = 0.0;                  // allowed there
  double residual = 0.0;                   // what the cause leaves unexplained, relative
  std::vector<std::int64_t> ranks;         // that hold a wrong slice
  std::string text;                        // "missing sum over tp"
  std::vector<std::string> evidence;       // sentences for people: what, why, where
};

}  // namespace moe
