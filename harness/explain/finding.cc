#include "harness/explain/finding.h"

#include <array>

namespace moe {
namespace {

// In the order of the enumeration.
constexpr std::array<std::string_view, 19> kCauseNames = {"",
                                                          "missing_sum",
                                                          "double_sum",
                                                          "mean_for_sum",
                                                          "wrong_group",
                                                          "wrong_scale",
                                                          "dropped_contribution",
                                                          "doubled_contribution",
                                                          "lost_path",
                                                          "doubled_path",
                                                          "local_normaliser",
                                                          "permuted",
                                                          "misplaced_shard",
                                                          "stale_replica",
                                                          "precision",
                                                          "wrong_formula",
                                                          "corruption",
                                                          "unexplained",
                                                          "ambiguous"};

}  // namespace

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
  return kCauseNames.at(static_cast<std::size_t>(cause));
}

}  // namespace moe
