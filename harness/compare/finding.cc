#include "harness/compare/finding.h"

namespace moe {

std::string_view ToText(Verdict verdict) {
  switch (verdict) {
    case Verdict::kPass:
      return "pass";
    case Verdict::kFail:
      return "fail";
    case Verdict::kVacuous:
      return "vacuous";
    case Verdict::kSkipped:
      return "skipped";
    case Verdict::kError:
      return "error";
  }
  return "";
}

std::string_view ToText(Cause cause) {
  switch (cause) {
    case Cause::kNone:
      return "";
    case Cause::kMissingSum:
      return "missing_sum";
    case Cause::kDoubleSum:
      return "double_sum";
    case Cause::kMeanForSum:
      return "mean_for_sum";
    case Cause::kWrongScale:
      return "wrong_scale";
    case Cause::kCorruption:
      return "corruption";
    case Cause::kAmbiguous:
      return "ambiguous";
    case Cause::kUnexplained:
      return "unexplained";
  }
  return "";
}

}  // namespace moe
