#include "harness/explain/diagnose.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "harness/explain/call_log.h"
#include "harness/explain/explanation_text.h"
#include "harness/explain/factor_causes.h"
#include "harness/explain/order_causes.h"
#include "harness/explain/precision_causes.h"
#include "harness/explain/replica_sums.h"
#include "harness/explain/share_fit.h"
#include "harness/explain/sum_causes.h"
#include "harness/explain/value_causes.h"

namespace moe {
namespace {

bool SameCause(const Explanation& a, const Explanation& b) {
  return a.cause == b.cause && a.axes == b.axes && a.used == b.used && a.sources == b.sources;
}

// Removes what holds of `drop` unless nothing would be left.
template <typename Predicate>
void Prefer(std::vector<Fit>& fits, const Predicate& keep) {
  if (std::any_of(fits.begin(), fits.end(), keep)) {
    std::erase_if(fits, [&](const Fit& fit) { return !keep(fit); });
  }
}

class TensorDiagnosis {
 public:
  TensorDiagnosis(const Suspect& suspect, const Witnesses& witnesses, Finding& finding)
      : suspect_(suspect),
        log_(witnesses.contract, witnesses.calls),
        contract_(witnesses.contract),
        sums_(suspect, witnesses.contract),
        finding_(finding) {}

  void Run() {
    std::vector<Fit> fits = sums_.Find();
    for (Fit& fit : FindFactorCauses(suspect_, contract_)) {
      fits.push_back(std::move(fit));
    }
    if (fits.empty()) {
      fits = FindReplicaSums(suspect_);
    }
    fits = Narrow(Compete(std::move(fits)));
    if (!fits.empty() && RefuseIfTooSmall(fits)) {
      return;
    }
    if (fits.size() > 1) {
      Ambiguous(fits);
    } else if (fits.size() == 1) {
      Name(fits.front());
    } else if (!FindOther()) {
      Unexplained();
    }
  }

 private:
  std::vector<Fit> Compete(std::vector<Fit> fits) const;
  std::vector<Fit> Narrow(std::vector<Fit> fits) const;
  bool RefuseIfTooSmall(const std::vector<Fit>& fits);
  bool FindOther();
  void Name(const Fit& fit);
  void Ambiguous(const std::vector<Fit>& fits);
  void Unexplained();
  void Say(const std::string& what, const std::string& sentence) {
    if (!sentence.empty()) {
      finding_.evidence.push_back(fmt::format("{:<6} {}", what, sentence));
    }
  }
  const SumCauses::Plan* PlanOf(const Fit& fit) const;

  const Suspect& suspect_;
  CallLog log_;
  const StepContract* contract_;
  SumCauses sums_;
  Finding& finding_;
};

// Explanations compete: one that leaves several times what the best leaves is only near. Of the
// same cause, the one without limits wins.
std::vector<Fit> TensorDiagnosis::Compete(std::vector<Fit> fits) const {
  double best = INFINITY;
  for (const Fit& fit : fits) {
    best = std::min(best, fit.residual);
  }
  std::erase_if(fits, [&](const Fit& fit) { return fit.residual > 4.0 * best + 1e-15; });
  Prefer(fits, [](const Fit& fit) { return fit.everywhere; });
  std::vector<Fit> different;
  for (Fit& fit : fits) {
    const bool is_known = std::any_of(different.begin(), different.end(), [&](const Fit& known) {
      return SameCause(known.explanation, fit.explanation);
    });
    if (!is_known) {
      different.push_back(std::move(fit));
    }
  }
  // The axes of the other view explain what this one's cannot.
  const bool sums_over_etp = !PathSubsetsOfEtp(suspect_).empty();
  const auto is_own = [&](const Fit& fit) {
    const auto& axes = fit.explanation.axes;
    const bool is_of_etp = sums_over_etp && (!fit.spread || *fit.spread == Spread::kEtpSlices);
    return std::all_of(axes.begin(), axes.end(), [&](Axis axis) {
      return suspect_.mesh().Has(axis) || (is_of_etp && axis == Axis::kEtp);
    });
  };
  Prefer(different, is_own);
  // A sum over fewer axes is the simpler story where both give the same values.
  std::size_t fewest = SIZE_MAX;
  for (const Fit& fit : different) {
    if (fit.explanation.cause == Cause::kMissingSum) {
      fewest = std::min(fewest, fit.explanation.axes.size());
    }
  }
  std::erase_if(different, [&](const Fit& fit) {
    return fit.explanation.cause == Cause::kMissingSum && fit.explanation.axes.size() > fewest;
  });
  // A sum over other axes that gives the same as a plain fault of the right one is the longer
  // story.
  if (!log_.IsKnown()) {
    Prefer(different, [](const Fit& fit) { return fit.explanation.cause != Cause::kWrongGroup; });
  }
  return different;
}

// Where several causes give the same numbers, what is known of the program decides.
std::vector<Fit> TensorDiagnosis::Narrow(std::vector<Fit> fits) const {
  if (!log_.IsKnown()) {
    return fits;
  }
  const std::string& name = suspect_.name();
  const auto all = [](const std::vector<Axis>& axes, const auto& shows) {
    return std::all_of(axes.begin(), axes.end(), shows);
  };
  const auto is_witnessed = [&](const Fit& fit) {
    const Explanation& e = fit.explanation;
    switch (e.cause) {
      case Cause::kDoubleSum:
        return all(e.axes, [&](Axis axis) { return log_.ShowsRepeat(name, axis); });
      case Cause::kMeanForSum:
        return all(e.axes, [&](Axis axis) { return log_.ShowsMean(name, axis); });
      case Cause::kWrongGroup:
        return log_.ShowsStray(name, e.axes.front(), e.used.front());
      default:
        return false;
    }
  };
  Prefer(fits, is_witnessed);
  // A sum or a division that the log does not show did not happen: the factor is something else's.
  const auto is_refuted = [&](const Fit& fit) {
    const Cause cause = fit.explanation.cause;
    return (cause == Cause::kDoubleSum || cause == Cause::kMeanForSum ||
            cause == Cause::kWrongGroup) &&
           !is_witnessed(fit);
  };
  Prefer(fits, [&](const Fit& fit) { return !is_refuted(fit); });
  const auto refuted = std::find_if(fits.begin(), fits.end(), [&](const Fit& fit) {
    return fit.explanation.cause != Cause::kWrongGroup && is_refuted(fit);
  });
  if (refuted == fits.end()) {
    return fits;
  }
  double factor = 1.0;
  for (const Axis axis : refuted->explanation.axes) {
    factor *= static_cast<double>(suspect_.manifest().meshes.With(axis).SizeOf(axis));
  }
  if (refuted->explanation.cause == Cause::kMeanForSum) {
    factor = 1.0 / factor;
  }
  Fit fit = *refuted;
  fit.explanation = {.cause = Cause::kWrongScale, .factor = factor, .path = fit.explanation.path};
  return {fit};
}

const SumCauses::Plan* TensorDiagnosis::PlanOf(const Fit& fit) const {
  const auto plan =
      std::find_if(sums_.plans().begin(), sums_.plans().end(),
                   [&](const SumCauses::Plan& p) { return fit.spread && p.spread == *fit.spread; });
  return plan == sums_.plans().end() ? nullptr : &*plan;
}

// Fewer numbers than shares, or shares that are nearly the same: then a fit proves nothing.
bool TensorDiagnosis::RefuseIfTooSmall(const std::vector<Fit>& fits) {
  const Piece piece = suspect_.Load(0);
  std::string reason = TooFewElements(piece);
  const SumCauses::Plan* plan = PlanOf(fits.front());
  if (reason.empty() && plan != nullptr && !fits.front().explanation.axes.empty()) {
    reason = FitShares(sums_, suspect_, piece, *plan, fits.front().explanation.axes).obstacle;
  }
  if (reason.empty()) {
    return false;
  }
  finding_.explanation = {.cause = fits.size() > 1 ? Cause::kAmbiguous : Cause::kUnexplained};
  for (const Fit& fit : fits) {
    finding_.candidates.push_back(fit.explanation);
  }
  finding_.text = "wrong, but too small to tell why: " + reason;
  return true;
}

void TensorDiagnosis::Name(const Fit& fit) {
  finding_.explanation = fit.explanation;
  finding_.residual = fit.residual;
  finding_.text = fit.text.empty() ? ToText(fit.explanation) : fit.text;
  if (!fit.everywhere) {
    finding_.text += fmt::format(", on rank {} alone", fmt::join(finding_.ranks, ", "));
  }
  if (fit.explanation.factor) {
    const std::string meaning = DescribeFactor(*fit.explanation.factor, suspect_.manifest());
    finding_.text += meaning.empty() ? "" : ", which is " + meaning;
  }
  const SumCauses::Plan* plan = PlanOf(fit);
  if (plan != nullptr && !fit.explanation.axes.empty()) {
    const char* label = "why";
    for (const std::string& sentence : DescribeShares(sums_, suspect_, *plan, fit.explanation)) {
      Say(label, sentence);
      label = "";
    }
  } else {
    Say("why", fmt::format("this gives what every wrong rank holds to {:.1e}", fit.residual));
  }
  Say("where", log_.Sentence(suspect_.name(), fit.explanation));
}

void TensorDiagnosis::Ambiguous(const std::vector<Fit>& fits) {
  finding_.explanation = {.cause = Cause::kAmbiguous};
  finding_.residual = fits.front().residual;
  std::vector<std::string> texts;
  std::vector<Axis> axes;
  for (const Fit& fit : fits) {
    finding_.candidates.push_back(fit.explanation);
    texts.push_back(ToText(fit.explanation));
    for (const Axis axis : fit.explanation.axes) {
      if (std::find(axes.begin(), axes.end(), axis) == axes.end()) {
        axes.push_back(axis);
      }
    }
  }
  finding_.text = fmt::format("{}", fmt::join(texts, ", or "));
  std::vector<std::string> names;
  for (const Axis axis : axes) {
    names.emplace_back(ToText(axis));
  }
  Say("why",
      fmt::format("these give the same numbers here; a layout in which {} {} tells them apart",
                  fmt::join(names, " and "),
                  axes.size() > 1 ? "have different sizes" : "has a size over 2"));
}

// Causes that are looked for only when no sum and no factor fits.
bool TensorDiagnosis::FindOther() {
  const auto names = [this](const std::optional<Fit>& fit) {
    if (fit) {
      Name(*fit);
    }
    return fit.has_value();
  };
  return names(FindMisplacedShard(suspect_)) || names(FindPermutation(suspect_)) ||
         names(FindLocalNormaliser(suspect_, sums_)) || names(FindCoarseStorage(suspect_)) ||
         names(FindLeftovers(suspect_)) || names(FindCorruption(suspect_)) ||
         names(FindCoarseArithmetic(suspect_)) || names(FindStaleReplica(suspect_)) ||
         names(FindRanksOfShares(sums_, suspect_));
}

void TensorDiagnosis::Unexplained() {
  finding_.explanation = {.cause = Cause::kUnexplained};
  finding_.text = "wrong, and no fault of a sum, path, scale or order explains it";
  if (!sums_.plans().empty() && !sums_.plans().front().sums.empty()) {
    const Piece piece = suspect_.Load(0);
    const SumCauses::Plan& plan = sums_.plans().front();
    Say("why", FitShares(sums_, suspect_, piece, plan, plan.sums).text);
  }
}

}  // namespace

void Diagnose(const Suspect& suspect, const Witnesses& witnesses, Finding& finding) {
  TensorDiagnosis(suspect, witnesses, finding).Run();
}

void DoubtPrecision(std::vector<Finding>& findings) {
  std::vector<Finding*> by_arithmetic;
  for (Finding& finding : findings) {
    // What is stored coarsely shows in the values themselves: "24 bits".
    if (finding.explanation.cause == Cause::kPrecision &&
        DtypeFromText(finding.explanation.option)) {
      by_arithmetic.push_back(&finding);
    }
  }
  if (by_arithmetic.size() == 1) {
    Finding& finding = *by_arithmetic.front();
    finding.text = fmt::format(
        "wrong, by errors on all elements such as arithmetic in {} makes, but in this tensor alone",
        finding.explanation.option);
    finding.explanation = {.cause = Cause::kUnexplained};
  }
}

void ShareCauses(std::vector<Finding>& findings) {
  for (Finding& finding : findings) {
    if (finding.explanation.cause != Cause::kAmbiguous) {
      continue;
    }
    for (const Finding& other : findings) {
      const auto same = std::find_if(
          finding.candidates.begin(), finding.candidates.end(), [&](const Explanation& candidate) {
            return other.verdict == Verdict::kFail && SameCause(candidate, other.explanation);
          });
      if (same != finding.candidates.end()) {
        finding.explanation = *same;
        finding.text = ToText(finding.explanation);
        finding.evidence.push_back("       of the causes that fit, the one of " + other.tensor);
        finding.candidates.clear();
        break;
      }
    }
  }
}

}  // namespace moe
