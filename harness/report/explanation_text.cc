#include "harness/report/explanation_text.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace moe {
namespace {

std::string RanksText(const std::vector<std::int64_t>& ranks) {
  return fmt::format("{} {}", ranks.size() == 1 ? "rank" : "ranks", fmt::join(ranks, ", "));
}

std::string FactorText(double factor) {
  const double off = factor - 1.0;
  return std::abs(off) < 1e-4 ? fmt::format("(1 {} {:.2e})", off < 0.0 ? "-" : "+", std::abs(off))
                              : fmt::format("{:.6g}", factor);
}

std::string CauseText(const Explanation& e) {
  switch (e.cause) {
    case Cause::kMissingSum:
      return "missing sum over " + AxesText(e.axes);
    case Cause::kDoubleSum:
      return "sum over " + AxesText(e.axes) + " counted twice";
    case Cause::kMeanForSum:
      return "mean over " + AxesText(e.axes) + " instead of the sum";
    case Cause::kWrongGroup:
      return fmt::format("wrong group: sum over {} instead of {}", AxesText(e.used),
                         AxesText(e.axes));
    case Cause::kWrongScale:
      return fmt::format("wrong scale: {} times the reference", FactorText(e.factor.value_or(0.0)));
    case Cause::kDroppedContribution:
      return fmt::format("the contribution of {} is missing", RanksText(e.sources));
    case Cause::kDoubledContribution:
      return fmt::format("the contribution of {} is counted twice", RanksText(e.sources));
    case Cause::kLostPath:
      return fmt::format("nothing comes along the {} path", e.path);
    case Cause::kDoubledPath:
      return fmt::format("the {} path is counted twice", e.path);
    case Cause::kLocalNormaliser:
      return "each rank's part is divided by its own number of tokens";
    case Cause::kPermuted:
      return fmt::format("{} are in another order", e.permuted);
    case Cause::kMisplacedShard:
      return fmt::format("ranks hold one another's shard along {}", AxesText(e.axes));
    case Cause::kStaleReplica:
      return "a replica differs from the others, which are right";
    case Cause::kWrongFormula:
      return fmt::format("wrong formula: as if {} were another", e.option);
    case Cause::kPrecision:
      return "right, but rounded more coarsely than its dtype" +
             (e.option.empty() ? "" : ", as if to " + e.option);
    case Cause::kLeakedSlots:
      return "slots that other ranks compute have a gradient here too";
    case Cause::kNone:
    case Cause::kCorruption:
    case Cause::kUnexplained:
    case Cause::kAmbiguous:
      return std::string(ToText(e.cause));
  }
  return "";
}

}  // namespace

std::string AxesText(const std::vector<Axis>& axes) {
  std::vector<std::string> names;
  for (const Axis axis : axes) {
    names.emplace_back(ToText(axis));
  }
  return fmt::format("{}", fmt::join(names, " * "));
}

std::string ToText(const Explanation& explanation) {
  const bool names_path =
      explanation.cause == Cause::kLostPath || explanation.cause == Cause::kDoubledPath;
  return CauseText(explanation) + (explanation.path.empty() || names_path
                                       ? ""
                                       : fmt::format(" in the {} path", explanation.path));
}

}  // namespace moe
