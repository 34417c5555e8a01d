#include "harness/report/finding_text.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "harness/explain/share_fit.h"
#include "harness/report/explanation_text.h"

namespace moe {
namespace {

std::string RanksOf(const std::vector<std::int64_t>& ranks) {
  return fmt::format("{}", fmt::join(ranks, " + "));
}

std::string TimesText(double times) {
  if (std::abs(times) < 5e-3) {
    return "not at all";
  }
  if (std::abs(times - 1.0) < 5e-3) {
    return "once";
  }
  if (std::abs(times - 2.0) < 5e-3) {
    return "twice";
  }
  return fmt::format("{:.3g} times", times);
}

std::string PlaceText(const std::vector<Coordinate>& place) {
  std::vector<std::string> parts;
  for (const Coordinate& coordinate : place) {
    parts.push_back(fmt::format("{}={}", ToText(coordinate.axis), coordinate.at));
  }
  return fmt::format("{}", fmt::join(parts, " "));
}

std::string UnitText(const UnitPlace& unit) {
  return unit.kind.empty() ? "whole slice" : fmt::format("{} {}", unit.kind, unit.index);
}

std::string MarginText(const RoutingMargin& margin) {
  return fmt::format("token {}: margin {:.2e}, rounding may take {:.2e}", margin.token,
                     margin.margin, margin.bound);
}

// "of tp=1 once, of tp=0, tp=2 not at all": parts that are held equally often stand together.
std::string HeldText(const HeldShares& held) {
  constexpr std::size_t kMostNamed = 6;
  std::vector<std::pair<std::string, std::vector<std::string>>> groups;
  for (const HeldShares::Share& share : held.shares) {
    const std::string often = TimesText(share.times);
    auto same = std::find_if(groups.begin(), groups.end(),
                             [&](const auto& entry) { return entry.first == often; });
    if (same == groups.end()) {
      same = groups.insert(often == "once" ? groups.begin() : groups.end(), {often, {}});
    }
    same->second.push_back(PlaceText(share.of));
  }
  std::vector<std::string> parts;
  for (auto& [often, places] : groups) {
    const std::size_t more = places.size() > kMostNamed ? places.size() - kMostNamed : 0;
    places.resize(places.size() - more);
    parts.push_back(fmt::format("of {}{} {}", fmt::join(places, ", "),
                                more > 0 ? fmt::format(" and {} more", more) : "", often));
  }
  return fmt::format("rank {} ({}) holds the share {} (fit residual {:.1e}, condition {:.1f})",
                     RanksOf(held.ranks), PlaceText(held.at), fmt::join(parts, ", "), held.residual,
                     held.condition);
}

std::string KindText(ShareKind kind) {
  switch (kind) {
    case ShareKind::kTokens:
      return "a share is what a rank's tokens give";
    case ShareKind::kHiddenUnits:
      return "a share is what a slice of the hidden units gives";
    case ShareKind::kExperts:
      return "a share is what an ep rank's experts give";
  }
  return "";
}

std::string TooSmallText(const TooSmall& too_small) {
  switch (too_small.kind) {
    case TooSmall::Kind::kOneNumber:
      return fmt::format(
          "{} of its {} numbers are other than zero, and one number fits every factor; a slice "
          "with "
          "two or more would do",
          too_small.numbers, too_small.of);
    case TooSmall::Kind::kFewNumbers:
      return fmt::format(
          "{} numbers for the {} shares of {}; a slice of at least {} numbers would do, or a "
          "layout "
          "with fewer ranks",
          too_small.numbers, too_small.of, AxesText(too_small.axes), too_small.of);
    case TooSmall::Kind::kAlikeShares:
      return fmt::format(
          "the {} shares of {} are too nearly the same to be told apart (condition {:.1e}, at most "
          "{:.0e}); more tokens, or other ones, would do",
          too_small.of, AxesText(too_small.axes), too_small.condition, kLargestCondition);
  }
  return "";
}

std::string CallText(const CallFact& fact) {
  switch (fact.kind) {
    case CallFact::Kind::kAbsent:
      return fmt::format("{} is in the contract and not in the call log ({} sums)",
                         ToText(fact.sum), fact.logged);
    case CallFact::Kind::kStray:
      return fmt::format("{} is in the call log and not in the contract", ToText(fact.sum));
    case CallFact::Kind::kCounted:
      return fmt::format("{} is {} in the contract and {} times in the call log ({} sums)",
                         ToText(fact.sum), fact.owed ? "once" : "not", fact.times, fact.logged);
  }
  return "";
}

std::string DoubtText(const Finding& finding) {
  const std::string axes = AxesText(finding.explanation.axes);
  switch (finding.evidence.doubt) {
    case DoubtedClaim::kNone:
      return "";
    case DoubtedClaim::kReplicated:
      return fmt::format(
          "or the claim is wrong: if something after the step sums it over {}, it is P there, not "
          "R",
          axes);
    case DoubtedClaim::kPartial:
      return fmt::format("or the claim is wrong: summed over {} already, it is R there, not P",
                         axes);
    case DoubtedClaim::kUnscaled:
      return fmt::format("or the claim is wrong: averaged over {} on purpose, it lacks a scale",
                         axes);
  }
  return "";
}

std::string ElementText(const ElementPlace& element) {
  return fmt::format("{} at [{}] on rank {}",
                     std::isnan(element.got)   ? "NaN"
                     : std::isinf(element.got) ? "Inf"
                                               : fmt::format("{:.1e}", element.got),
                     fmt::join(element.index, ", "), RanksOf(element.ranks));
}

bool IsAbsurd(const ElementPlace& element) {
  return !(std::abs(element.got) < kAbsurd);
}

// Of a verdict that no cause says.
std::string ReasonText(const Finding& finding) {
  const Evidence& evidence = finding.evidence;
  switch (finding.reason) {
    case Reason::kNone:
      return "wrong, and no fault of a sum, path, scale or order explains it";
    case Reason::kMissing:
      return fmt::format("{} is missing: {}", finding.tensor, finding.reason_given);
    case Reason::kNotNamed:
      return fmt::format("{} is owed by the model and neither dumped nor named in not_dumped",
                         finding.tensor);
    case Reason::kNoGradients:
      return "no gradient was dumped, so nothing was judged";
    case Reason::kZero:
      return fmt::format("{} is zero in the reference and proves nothing", finding.tensor);
    case Reason::kBelowRounding:
      return fmt::format("{} is no larger than its rounding error in this dtype and proves nothing",
                         finding.tensor);
    case Reason::kIdleExpert:
      return fmt::format(
          "expert {} got no tokens, so its gradients are zero and prove nothing; change the seed, "
          "raise tokens, or list it in idle_experts",
          finding.expert);
    case Reason::kOtherChoice:
      return fmt::format("token {} goes to experts {}, not {}", evidence.flip->margin.token,
                         fmt::join(evidence.flip->chosen, ", "),
                         fmt::join(evidence.flip->wanted, ", "));
    case Reason::kTooLarge:
      return "wrong, and too large for its contributions to be told apart in memory; a dump of "
             "fewer tokens or ranks would do";
    case Reason::kTooSmall:
      return "wrong, but too small to tell why: " + TooSmallText(*evidence.too_small);
    case Reason::kCoarserAsAWhole:
      return "off as a whole, though every slice is within its own tolerance, by errors like those "
             "of coarser arithmetic";
    case Reason::kNoFactorAsAWhole:
      return "off as a whole, though every slice is within its own tolerance; they share no factor";
    case Reason::kAloneInPrecision:
      return fmt::format(
          "wrong, by errors on all elements such as arithmetic in {} makes, but in this tensor "
          "alone",
          evidence.coarse);
  }
  return "";
}

std::string CauseText(const Finding& finding) {
  const Explanation& e = finding.explanation;
  const Evidence& evidence = finding.evidence;
  if (e.cause == Cause::kAmbiguous) {
    std::vector<std::string> texts;
    std::transform(finding.candidates.begin(), finding.candidates.end(), std::back_inserter(texts),
                   [](const Explanation& candidate) { return ToText(candidate); });
    return fmt::format("{}", fmt::join(texts, ", or "));
  }
  if (e.cause == Cause::kCorruption && evidence.element) {
    return IsAbsurd(*evidence.element)
               ? ElementText(*evidence.element)
               : fmt::format("a few elements are wrong: [{}] is {:.6e}, not {:.6e}, on rank {}",
                             fmt::join(evidence.element->index, ", "), evidence.element->got,
                             evidence.element->want, RanksOf(evidence.element->ranks));
  }
  if (e.cause == Cause::kCorruption && evidence.not_zero) {
    const UnitPlace& place = *evidence.not_zero;
    return "not zero where it should be: " +
           (place.kind.empty()
                ? "the slice"
                : fmt::format("{} {} on rank {}", place.kind, place.index, RanksOf(place.ranks)));
  }
  if (e.cause == Cause::kWrongFormula) {
    return fmt::format("wrong formula: as if {} were {}", e.option, evidence.option_value);
  }
  std::string text = ToText(e);
  if (evidence.on_some_ranks) {
    text += fmt::format(", on rank {} alone", fmt::join(finding.ranks, ", "));
  }
  if (e.factor && !evidence.factor_is.empty() && !evidence.scale) {
    text += fmt::format(", which is {}", fmt::join(evidence.factor_is, ", or "));
  }
  return text;
}

class Sentences {
 public:
  void Add(const char* label, const std::string& sentence) {
    if (!sentence.empty()) {
      all_.push_back(fmt::format("{:<6} {}", label == last_ ? "" : label, sentence));
      last_ = label;
    }
  }
  void AddMore(const std::string& sentence) {
    if (!sentence.empty()) {
      all_.push_back(fmt::format("       {}", sentence));
    }
  }
  std::vector<std::string> Take() { return std::move(all_); }

 private:
  std::vector<std::string> all_;
  std::string last_;
};

void AddWhat(const Finding& finding, Sentences& sentences) {
  const Evidence& evidence = finding.evidence;
  if (evidence.flip) {
    sentences.Add("what",
                  fmt::format("no tie within rounding ({})", MarginText(evidence.flip->margin)));
  }
  if (evidence.element && IsAbsurd(*evidence.element)) {
    sentences.Add("what", fmt::format("{} holds {}, the first of its kind", finding.tensor,
                                      ElementText(*evidence.element)));
  }
  if (evidence.scale) {
    const bool is_coarse = finding.reason == Reason::kCoarserAsAWhole;
    sentences.Add("what",
                  fmt::format("{} is off by {:.2e} as a whole, allowed {:.1e}{}", finding.tensor,
                              std::abs(evidence.scale->error), evidence.scale->allowed,
                              is_coarse ? fmt::format(", and by {:.2e} element by element",
                                                      evidence.scale->elementwise)
                                        : ""));
  }
  if (!evidence.errors.empty()) {
    constexpr std::size_t kMostNamed = 4;
    std::vector<std::string> errors;
    for (const auto& [rank, error] : evidence.errors) {
      if (errors.size() == kMostNamed) {
        errors.push_back(fmt::format("and {} more ranks", evidence.errors.size() - kMostNamed));
        break;
      }
      errors.push_back(fmt::format("{:.2e} (rank {})", error, rank));
    }
    sentences.Add("what", fmt::format("{} is off by {}; allowed {:.1e}; worst: {} on rank {}",
                                      finding.tensor, fmt::join(errors, ", "), finding.tolerance,
                                      UnitText(evidence.worst), RanksOf(evidence.worst.ranks)));
  }
  if (evidence.floors) {
    sentences.AddMore(fmt::format(
        "clean runs reach {:.1e}{}", evidence.floors->noise,
        evidence.floors->fault
            ? fmt::format("; the smallest planted fault gives {:.1e}", *evidence.floors->fault)
            : ""));
  }
}

void AddWhy(const Finding& finding, Sentences& sentences) {
  const Evidence& evidence = finding.evidence;
  const Explanation& e = finding.explanation;
  if (e.cause == Cause::kAmbiguous && finding.reason == Reason::kNone) {
    std::vector<std::string> names;
    for (const Explanation& candidate : finding.candidates) {
      for (const Axis axis : candidate.axes) {
        if (std::find(names.begin(), names.end(), ToText(axis)) == names.end()) {
          names.emplace_back(ToText(axis));
        }
      }
    }
    sentences.Add(
        "why", names.empty()
                   ? "these give the same numbers here"
                   : fmt::format("these give the same numbers here; a layout in which {} "
                                 "{} tells them apart",
                                 fmt::join(names, " and "),
                                 names.size() > 1 ? "have different sizes" : "has a size over 2"));
  }
  if (evidence.scale && e.cause == Cause::kWrongScale) {
    sentences.Add("why",
                  "all slices together are off by that factor; each alone is within its tolerance");
  }
  if (e.cause == Cause::kWrongFormula) {
    sentences.Add("why",
                  fmt::format("a step with {} {} gives what every rank holds, in every tensor that "
                              "fails",
                              e.option, evidence.option_value));
  } else if (evidence.fits_every_rank) {
    sentences.Add(
        "why", fmt::format("this gives what every wrong rank holds to {:.1e}", finding.residual));
  }
  for (std::size_t i = 0; i < evidence.held.size(); ++i) {
    const bool is_last = i + 1 == evidence.held.size() && e.cause != Cause::kUnexplained;
    sentences.Add("why", HeldText(evidence.held[i]) +
                             (is_last ? "; " + KindText(evidence.held[i].kind) : ""));
  }
  if (e.cause != Cause::kAmbiguous && finding.reason != Reason::kTooSmall) {
    for (const Explanation& candidate : finding.candidates) {
      const bool is_factor = candidate.factor && !evidence.factor_is.empty();
      sentences.AddMore(fmt::format(
          "or {}{}: the same numbers", ToText(candidate),
          is_factor ? fmt::format(", which is {}", fmt::join(evidence.factor_is, ", or ")) : ""));
    }
  }
  if (evidence.replicas) {
    const MeasuredTensor::ReplicaGap& gap = *evidence.replicas;
    sentences.Add("why", fmt::format("replicas must agree, and those of ranks {} and {} at {} "
                                     "differ by {:.2e} (L2)",
                                     RanksOf(gap.ranks), RanksOf(gap.others), UnitText(gap.place),
                                     gap.difference));
  }
}

}  // namespace

std::string TextOf(const Finding& finding) {
  if (finding.verdict == Verdict::kPass) {
    return "";
  }
  const bool says_no_cause = finding.explanation.cause == Cause::kUnexplained ||
                             finding.explanation.cause == Cause::kNone ||
                             finding.reason == Reason::kTooSmall;
  const std::string text = says_no_cause ? ReasonText(finding) : CauseText(finding);
  if (!finding.evidence.miscount) {
    return text;
  }
  const CountComparison::Miscount& miscount = *finding.evidence.miscount;
  const std::string symptom = fmt::format("expert {} counts {} tokens, not {}", miscount.expert,
                                          miscount.got, miscount.want);
  return says_no_cause ? symptom : fmt::format("{} ({})", text, symptom);
}

std::vector<std::string> EvidenceOf(const Finding& finding) {
  Sentences sentences;
  AddWhat(finding, sentences);
  AddWhy(finding, sentences);
  std::vector<std::string> calls;
  for (const CallFact& fact : finding.evidence.calls) {
    calls.push_back(CallText(fact));
  }
  sentences.Add("where", fmt::format("{}", fmt::join(calls, "; ")));
  if (const Evidence& evidence = finding.evidence; !evidence.same_ranks.empty()) {
    sentences.AddMore(fmt::format("the ranks of {} are those of your {}",
                                  AxesText(finding.explanation.axes),
                                  AxesText(evidence.same_ranks)));
  }
  sentences.AddMore(DoubtText(finding));
  return sentences.Take();
}

std::vector<std::string> NotesOf(const Judgement& judgement) {
  std::vector<std::string> notes;
  const RoutingComparison& routing = judgement.routing;
  if (routing.in_doubt) {
    notes.push_back(fmt::format(
        "a tie may have fallen otherwise than in the reference, and then gradients differ through "
        "no fault of a reduction ({})",
        MarginText(*routing.in_doubt)));
  }
  if (routing.first_tie) {
    notes.push_back(
        fmt::format("tie: {} tokens are routed otherwise than in the reference, within rounding "
                    "({}); the rest is judged with the observed routing",
                    routing.tied, MarginText(*routing.first_tie)));
  }
  if (routing.flipped > 0) {
    notes.push_back(fmt::format(
        "{} tokens are routed otherwise than in the reference; the gradients are judged "
        "with the observed routing",
        routing.flipped));
  }
  for (const std::int64_t expert : judgement.idle_experts) {
    notes.push_back(fmt::format(
        "expert {} got no tokens, so its gradients are zero and prove nothing", expert));
  }
  return notes;
}

}  // namespace moe
