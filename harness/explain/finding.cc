#include "harness/explain/finding.h"

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
    case Cause::kWrongGroup:
      return "wrong_group";
    case Cause::kWrongScale:
      return "wrong_scale";
    case Cause::kDroppedContribution:
      return "dropped_contribution";
    case Cause::kDoubledContribution:
      return "doubled_contribution";
    case Cause::kLostPath:
      return "lost_path";
    case Cause::kDoubledPath:
      return "doubled_path";
    case Cause::kLocalNormaliser:
      return "local_normaliser";
    case Cause::kPermuted:
      return "permuted";
    case Cause::kMisplacedShard:
      return "misplaced_shard";
    case Cause::kStaleReplica:
      return "stale_replica";
    case Cause::kLeakedSlots:
      return "leaked_slots";
    case Cause::kPrecision:
      return "precision";
    case Cause::kWrongFormula:
      return "wrong_formula";
    case Cause::kCorruption:
      return "corruption";
    case Cause::kUnexplained:
      return "unexplained";
    case Cause::kAmbiguous:
      return "ambiguous";
  }
  return "";
}

std::string_view ToText(Reason reason) {
  switch (reason) {
    case Reason::kNone:
      return "";
    case Reason::kMissing:
      return "missing";
    case Reason::kNotNamed:
      return "not_named";
    case Reason::kNoGradients:
      return "no_gradients";
    case Reason::kZero:
      return "zero";
    case Reason::kBelowRounding:
      return "below_rounding";
    case Reason::kIdleExpert:
      return "idle_expert";
    case Reason::kOtherChoice:
      return "other_choice";
    case Reason::kTooLarge:
      return "too_large";
    case Reason::kTooSmall:
      return "too_small";
    case Reason::kCoarserAsAWhole:
      return "coarser_as_a_whole";
    case Reason::kNoFactorAsAWhole:
      return "no_factor_as_a_whole";
    case Reason::kAloneInPrecision:
      return "alone_in_precision";
  }
  return "";
}

std::string_view ToText(ShareKind kind) {
  switch (kind) {
    case ShareKind::kTokens:
      return "tokens";
    case ShareKind::kHiddenUnits:
      return "hidden_units";
    case ShareKind::kExperts:
      return "experts";
  }
  return "";
}

std::string_view ToText(CallFact::Kind kind) {
  switch (kind) {
    case CallFact::Kind::kAbsent:
      return "absent";
    case CallFact::Kind::kStray:
      return "stray";
    case CallFact::Kind::kCounted:
      return "counted";
  }
  return "";
}

std::string_view ToText(DoubtedClaim claim) {
  switch (claim) {
    case DoubtedClaim::kNone:
      return "";
    case DoubtedClaim::kReplicated:
      return "replicated";
    case DoubtedClaim::kPartial:
      return "partial";
    case DoubtedClaim::kUnscaled:
      return "unscaled";
  }
  return "";
}

}  // namespace moe
