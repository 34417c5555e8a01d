#include "harness/campaign/classify.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace moe {
namespace {

// What a factor may be off by, relatively; it is read off rounded values.
double FactorTolerance(Dtype dtype) {
  return std::max(1e-3, UnitRoundoff(dtype));
}

template <typename T>
bool IsSameSet(std::vector<T> a, std::vector<T> b) {
  std::sort(a.begin(), a.end());
  std::sort(b.begin(), b.end());
  return a == b;
}

bool Says(const Explanation& said, const Explanation& wanted, Dtype dtype) {
  const bool right_factor =
      !wanted.factor || (said.factor && std::abs(*said.factor - *wanted.factor) <=
                                            FactorTolerance(dtype) * std::abs(*wanted.factor));
  return said.cause == wanted.cause && right_factor &&
         (wanted.axes.empty() || IsSameSet(said.axes, wanted.axes)) &&
         (wanted.used.empty() || IsSameSet(said.used, wanted.used)) &&
         (wanted.path.empty() || said.path == wanted.path) &&
         (wanted.permuted.empty() || said.permuted == wanted.permuted) &&
         (wanted.option.empty() || said.option == wanted.option) &&
         (wanted.sources.empty() || IsSameSet(said.sources, wanted.sources));
}

enum class Match { kNone, kSameNumbers, kRight };

Match MatchOf(const PlantedFault& planted, Dtype dtype, const std::string& tensor,
              const Explanation& said) {
  Match best = Match::kNone;
  for (const Answer& answer : planted.answers) {
    if (answer.tensor == tensor && Says(said, answer.explanation, dtype)) {
      best = std::max(best, answer.same_numbers ? Match::kSameNumbers : Match::kRight);
    }
  }
  return best;
}

// How near the fault came to being seen: the tensor whose error is the largest part of what is
// allowed.
std::string LargestEffect(const Judgement& judgement) {
  const Finding* largest = nullptr;
  double part = 0.0;
  for (const Finding& finding : judgement.findings) {
    const double of_finding = finding.tolerance > 0.0 ? finding.error / finding.tolerance : 0.0;
    if (of_finding > part) {
      part = of_finding;
      largest = &finding;
    }
  }
  return largest == nullptr ? "no tensor changed"
                            : fmt::format("{} is off by {:.2e} at most, and {:.1e} is allowed",
                                          largest->tensor, largest->error, largest->tolerance);
}

Classified ClassifyPassed(const PlantedFault& planted, const PlantedRun& run,
                          const Judgement& judgement) {
  if (!planted.equivalent.empty()) {
    return {Outcome::kEquivalent, planted.equivalent};
  }
  if (run.is_clean) {
    return {Outcome::kEquivalent, "every rank holds bit for bit what it holds without it"};
  }
  if (run.exact) {
    return {Outcome::kEquivalent, "every value is that of the reference, to the last bit"};
  }
  return {run.dtype == Dtype::kBfloat16 ? Outcome::kUnseen : Outcome::kSurvived,
          LargestEffect(judgement)};
}

}  // namespace

std::string_view ToText(Outcome outcome) {
  switch (outcome) {
    case Outcome::kNamedRight:
      return "named_right";
    case Outcome::kAmbiguous:
      return "ambiguous";
    case Outcome::kNamedWrong:
      return "named_wrong";
    case Outcome::kUnexplained:
      return "unexplained";
    case Outcome::kUnnamed:
      return "unnamed";
    case Outcome::kCrashed:
      return "crashed";
    case Outcome::kEquivalent:
      return "equivalent";
    case Outcome::kUnseen:
      return "unseen";
    case Outcome::kSurvived:
      return "survived";
  }
  return "";
}

bool IsKilled(Outcome outcome) {
  return outcome != Outcome::kEquivalent && outcome != Outcome::kUnseen &&
         outcome != Outcome::kSurvived;
}

Classified Classify(const PlantedFault& planted, const PlantedRun& run,
                    const Judgement& judgement) {
  if (judgement.verdict != Verdict::kFail) {
    return ClassifyPassed(planted, run, judgement);
  }
  Classified classified;
  Match best = Match::kNone;
  bool wrong = false;
  bool among_candidates = false;
  for (const Finding& finding : judgement.findings) {
    if (finding.verdict != Verdict::kFail) {
      continue;
    }
    const Cause cause = finding.explanation.cause;
    if (cause == Cause::kUnexplained || cause == Cause::kNone) {
      ++classified.unexplained;
    } else if (cause == Cause::kAmbiguous) {
      const bool includes =
          std::any_of(finding.candidates.begin(), finding.candidates.end(), [&](const auto& said) {
            return MatchOf(planted, run.dtype, finding.tensor, said) != Match::kNone;
          });
      among_candidates = among_candidates || includes;
      wrong = wrong || !includes;
    } else {
      const Match match = MatchOf(planted, run.dtype, finding.tensor, finding.explanation);
      best = std::max(best, match);
      wrong = wrong || match == Match::kNone;
    }
  }
  if (!planted.equivalent.empty()) {
    // The proof is wrong, or the judge.
    classified.outcome = Outcome::kNamedWrong;
    classified.why = "should change nothing: " + planted.equivalent;
  } else if (planted.answers.empty()) {
    classified.outcome = Outcome::kUnnamed;
  } else if (wrong) {
    classified.outcome = Outcome::kNamedWrong;
  } else if (best == Match::kRight) {
    classified.outcome = Outcome::kNamedRight;
  } else if (best == Match::kSameNumbers || among_candidates) {
    classified.outcome = Outcome::kAmbiguous;
  } else {
    classified.outcome = Outcome::kUnexplained;
  }
  return classified;
}

std::string Describe(const Explanation& explanation) {
  const auto names = [](const std::vector<Axis>& axes) {
    std::vector<std::string_view> texts;
    for (const Axis axis : axes) {
      texts.push_back(ToText(axis));
    }
    return fmt::format(" [{}]", fmt::join(texts, ", "));
  };
  std::string text(ToText(explanation.cause));
  if (!explanation.axes.empty()) {
    text += names(explanation.axes);
  }
  if (!explanation.used.empty()) {
    text += " used" + names(explanation.used);
  }
  if (explanation.factor) {
    text += fmt::format(" {:.6g}", *explanation.factor);
  }
  for (const std::string& word : {explanation.path, explanation.permuted, explanation.option}) {
    text += word.empty() ? "" : " " + word;
  }
  if (!explanation.sources.empty()) {
    text += fmt::format(" of ranks {}", fmt::join(explanation.sources, ", "));
  }
  return text;
}

}  // namespace moe
