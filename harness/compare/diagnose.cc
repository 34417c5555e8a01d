#include "harness/compare/diagnose.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "harness/compare/norms.h"

namespace moe {
namespace {

std::string AxesText(const std::vector<Axis>& axes) {
  std::vector<std::string> names;
  for (const Axis axis : axes) {
    names.emplace_back(ToText(axis));
  }
  return fmt::format("{}", fmt::join(names, " * "));
}

std::string CauseText(Cause cause, const std::vector<Axis>& axes) {
  switch (cause) {
    case Cause::kMissingSum:
      return "missing sum over " + AxesText(axes);
    case Cause::kDoubleSum:
      return "sum over " + AxesText(axes) + " counted twice";
    case Cause::kMeanForSum:
      return "mean over " + AxesText(axes) + " instead of the sum";
    default:
      return std::string(ToText(cause));
  }
}

}  // namespace

Diagnosis::Diagnosis(const ObservedTensor& tensor, const Meshes& meshes,
                     const StepContract* contract,
                     const std::vector<std::vector<std::string>>& calls)
    : tensor_(tensor), meshes_(meshes), contract_(contract), calls_(calls) {
  const Mesh& own = tensor.mesh();
  const Mesh& other = &own == &meshes.dense ? meshes.expert : meshes.dense;
  for (const Mesh* mesh : {&own, &other}) {
    std::vector<Axis> axes;
    for (const Axis axis : mesh->axes) {
      if (mesh->SizeOf(axis) > 1) {
        axes.push_back(axis);
      }
    }
    // Every product of axes; there are at most four.
    for (std::uint32_t chosen = 1; chosen < (1U << axes.size()); ++chosen) {
      std::vector<Axis> product;
      for (std::size_t i = 0; i < axes.size(); ++i) {
        if ((chosen >> i & 1U) != 0) {
          product.push_back(axes[i]);
        }
      }
      AddHypotheses(*mesh, product, mesh == &own);
    }
  }
}

void Diagnosis::AddHypotheses(const Mesh& mesh, const std::vector<Axis>& axes, bool own_mesh) {
  double size = 1.0;
  bool replicates = true;
  for (const Axis axis : axes) {
    size *= static_cast<double>(mesh.SizeOf(axis));
    replicates = replicates && (!own_mesh || PlacementOn(tensor_.claim().placements, axis).kind ==
                                                 Placement::Kind::kReplicate);
  }
  // A missing sum leaves shares on ranks that should hold the same; the axes of the other view
  // count where they cut this one's (an expert's edp holds dp_replicate), unless the same ranks are
  // an axis of this one.
  std::vector<std::size_t> group;
  if (replicates) {
    group = tensor_.Replicas(0, mesh, axes);
  }
  const bool seen = std::any_of(hypotheses_.begin(), hypotheses_.end(), [&](const Hypothesis& h) {
    return h.cause == Cause::kMissingSum && tensor_.Replicas(0, *h.mesh, h.axes) == group;
  });
  if (group.size() > 1 && !seen) {
    hypotheses_.push_back({.cause = Cause::kMissingSum, .axes = axes, .size = size, .mesh = &mesh});
  }
  // A doubled sum or a mean changes all ranks alike, also where the tensor ends up sharded over the
  // axis (a reduce-scatter); it can only be of a sum that somebody carries out.
  bool summed = own_mesh;
  for (const Axis axis : axes) {
    const ContractTensor* known = contract_ == nullptr ? nullptr : contract_->Find(tensor_.name());
    if (known != nullptr) {
      summed = summed && (std::count(known->owed.begin(), known->owed.end(), axis) > 0 ||
                          std::count(known->settled.begin(), known->settled.end(), axis) > 0);
    } else if (PlacementOn(tensor_.claim().placements, axis).kind == Placement::Kind::kShard) {
      // Of a foreign program only the row tensors may be reduce-scattered over the axis they lie
      // on.
      summed = summed && tensor_.claim().mesh == MeshKind::kDense && axis == Axis::kTp;
    }
  }
  if (summed) {
    hypotheses_.push_back({.cause = Cause::kDoubleSum, .axes = axes, .size = size, .mesh = &mesh});
    hypotheses_.push_back({.cause = Cause::kMeanForSum, .axes = axes, .size = size, .mesh = &mesh});
  }
}

void Diagnosis::Add(const Unit& unit) {
  for (std::size_t i = 0; i < unit.holders.size(); ++i) {
    all_zero_ = all_zero_ && Norm(unit.got[i]) == 0.0;
    const double want_want = Dot(unit.want[i], unit.want[i]);
    if (std::sqrt(want_want) <= 4.0 * unit.allowed[i]) {
      continue;  // Too small against rounding to say anything about a factor.
    }
    const double got_want = Dot(unit.got[i], unit.want[i]);
    const double factor = got_want / want_want;
    smallest_factor_ = want_want_ == 0.0 ? factor : std::min(smallest_factor_, factor);
    largest_factor_ = want_want_ == 0.0 ? factor : std::max(largest_factor_, factor);
    got_want_ += got_want;
    want_want_ += want_want;
    const double residual = Distance(unit.got[i], unit.want[i], factor);
    const double allowed = 2.0 * unit.allowed[i] * std::max(1.0, std::abs(factor));
    one_factor_ = one_factor_ && residual <= allowed;
    largest_scale_residual_ = std::max(largest_scale_residual_, residual / std::sqrt(want_want));
  }
  for (Hypothesis& hypothesis : hypotheses_) {
    if (hypothesis.holds) {
      Try(hypothesis, unit);
    }
  }
}

void Diagnosis::Try(Hypothesis& hypothesis, const Unit& unit) const {
  const auto judge = [&](double residual, double allowed, double want_norm) {
    hypothesis.tried = true;
    hypothesis.holds = hypothesis.holds && residual <= allowed;
    if (want_norm > 0.0) {
      hypothesis.residual = std::max(hypothesis.residual, residual / want_norm);
    }
  };
  for (std::size_t i = 0; i < unit.holders.size(); ++i) {
    const double want_norm = Norm(unit.want[i]);
    if (hypothesis.cause == Cause::kDoubleSum) {
      judge(Distance(unit.got[i], unit.want[i], hypothesis.size),
            2.0 * hypothesis.size * unit.allowed[i], want_norm);
    } else if (hypothesis.cause == Cause::kMeanForSum) {
      judge(Distance(unit.got[i], unit.want[i], 1.0 / hypothesis.size),
            2.0 * unit.allowed[i] / hypothesis.size, want_norm);
    } else {
      std::vector<double> sum(unit.got[i].size(), 0.0);
      for (const std::size_t replica :
           tensor_.Replicas(unit.holders[i], *hypothesis.mesh, hypothesis.axes)) {
        const auto place = std::find(unit.holders.begin(), unit.holders.end(), replica);
        if (place == unit.holders.end()) {
          hypothesis.holds = false;
          return;
        }
        const auto& share = unit.got[static_cast<std::size_t>(place - unit.holders.begin())];
        std::transform(sum.begin(), sum.end(), share.begin(), sum.begin(), std::plus<>());
        if (Distance(share, unit.got[i]) > 2.0 * unit.allowed[i]) {
          hypothesis.replicas_differ = true;
        }
      }
      judge(Distance(sum, unit.want[i]), 2.0 * std::sqrt(hypothesis.size) * unit.allowed[i],
            want_norm);
    }
  }
}

std::vector<const Diagnosis::Hypothesis*> Diagnosis::Fitting() const {
  std::vector<const Hypothesis*> fitting;
  for (const Hypothesis& hypothesis : hypotheses_) {
    // Equal shares that add up are what a mean leaves behind, not a missing sum.
    const bool informative = hypothesis.cause != Cause::kMissingSum || hypothesis.replicas_differ;
    if (hypothesis.tried && hypothesis.holds && informative) {
      fitting.push_back(&hypothesis);
    }
  }
  // The axes of the other view explain what this one's cannot.
  const auto is_own = [&](const Hypothesis* h) { return h->mesh == &tensor_.mesh(); };
  if (std::any_of(fitting.begin(), fitting.end(), is_own)) {
    std::erase_if(fitting, [&](const Hypothesis* h) { return !is_own(h); });
  }
  // Explanations compete: one that leaves several times what the best leaves is only near.
  double best = INFINITY;
  for (const Hypothesis* hypothesis : fitting) {
    best = std::min(best, hypothesis->residual);
  }
  std::erase_if(fitting, [&](const Hypothesis* h) { return h->residual > 4.0 * best + 1e-15; });
  return fitting;
}

bool Diagnosis::CalledMoreThanOwed(Axis axis) const {
  if (contract_ == nullptr || calls_.empty()) {
    return false;
  }
  const Reduction reduction{tensor_.name(), axis};
  const std::ptrdiff_t owed = contract_->Owes(reduction) ? 1 : 0;
  return std::any_of(calls_.begin(), calls_.end(), [&](const auto& calls) {
    return std::count(calls.begin(), calls.end(), ToText(reduction)) > owed;
  });
}

// Where several causes give the same numbers, what is known of the program decides: the call log
// says which sum was carried out too often.
std::vector<const Diagnosis::Hypothesis*> Diagnosis::Narrow(
    std::vector<const Hypothesis*> fitting) const {
  if (fitting.size() < 2) {
    return fitting;
  }
  std::vector<const Hypothesis*> witnessed;
  for (const Hypothesis* hypothesis : fitting) {
    if (hypothesis->cause == Cause::kDoubleSum &&
        std::all_of(hypothesis->axes.begin(), hypothesis->axes.end(),
                    [&](Axis axis) { return CalledMoreThanOwed(axis); })) {
      witnessed.push_back(hypothesis);
    }
  }
  return witnessed.size() == 1 ? witnessed : fitting;
}

// What the contract and the call log say of the sums in question: where a share is left over, the
// owed sums that never happened, be they this tensor's own or one that it is made from.
std::string Diagnosis::WhereSentence(const Hypothesis& hypothesis) const {
  if (contract_ == nullptr || calls_.empty()) {
    return "";
  }
  std::size_t logged = 0;
  for (const auto& calls : calls_) {
    logged = std::max(logged, calls.size());
  }
  const auto times = [&](const Reduction& reduction) {
    std::ptrdiff_t most = 0;
    for (const auto& calls : calls_) {
      most = std::max(most, std::count(calls.begin(), calls.end(), ToText(reduction)));
    }
    return most;
  };
  const auto concerns = [&](const Reduction& reduction) {
    return std::find(hypothesis.axes.begin(), hypothesis.axes.end(), reduction.axis) !=
           hypothesis.axes.end();
  };
  std::vector<std::string> texts;
  for (const Reduction& reduction : contract_->Owed()) {
    if (hypothesis.cause == Cause::kMissingSum && concerns(reduction) && times(reduction) == 0) {
      texts.push_back(fmt::format("{} is in the contract and not in the call log ({} sums)",
                                  ToText(reduction), logged));
    }
  }
  for (const Axis axis : hypothesis.axes) {
    const Reduction own{tensor_.name(), axis};
    if (texts.empty() && times(own) > 0) {
      texts.push_back(fmt::format("{} is {} in the contract and {} times in the call log ({} sums)",
                                  ToText(own), contract_->Owes(own) ? "once" : "not", times(own),
                                  logged));
    }
  }
  return fmt::format("{}", fmt::join(texts, "; "));
}

void Diagnosis::Explain(Finding& finding) const {
  const std::vector<const Hypothesis*> fitting = Narrow(Fitting());
  if (fitting.size() == 1) {
    const Hypothesis& found = *fitting.front();
    finding.explanation.cause = found.cause;
    finding.explanation.axes = found.axes;
    finding.residual = found.residual;
    finding.text = CauseText(found.cause, found.axes);
    if (found.cause == Cause::kMissingSum) {
      finding.evidence.push_back(
          fmt::format("why    adding up the {:.0f} ranks of {} gives the reference to {:.1e}, so "
                      "each holds a share; "
                      "replicas on {} must agree and do not",
                      found.size, AxesText(found.axes), found.residual, AxesText(found.axes)));
    } else {
      finding.evidence.push_back(
          fmt::format("why    every rank holds the reference {} {:.0f}, the size of {}, to {:.1e}",
                      found.cause == Cause::kDoubleSum ? "times" : "divided by", found.size,
                      AxesText(found.axes), found.residual));
    }
    if (const std::string where = WhereSentence(found); !where.empty()) {
      finding.evidence.push_back("where  " + where);
    }
    return;
  }
  if (!fitting.empty()) {
    finding.explanation.cause = Cause::kAmbiguous;
    finding.residual = fitting.front()->residual;
    std::vector<std::string> texts;
    for (const Hypothesis* hypothesis : fitting) {
      finding.candidates.push_back({.cause = hypothesis->cause, .axes = hypothesis->axes});
      texts.push_back(CauseText(hypothesis->cause, hypothesis->axes));
    }
    finding.text = fmt::format("{}", fmt::join(texts, ", or "));
    finding.evidence.push_back(
        "why    these give the same numbers here; a layout in which the sizes of those "
        "axes differ tells them apart");
    return;
  }
  const double factor = want_want_ > 0.0 ? got_want_ / want_want_ : 0.0;
  const bool same =
      largest_factor_ - smallest_factor_ <=
      4.0 * std::max(largest_scale_residual_, 1e-12) * std::max(1.0, std::abs(factor));
  // A factor that is nearer to 1 than what it leaves unexplained explains nothing.
  const bool telling = std::abs(factor - 1.0) > 2.0 * largest_scale_residual_;
  if (want_want_ > 0.0 && one_factor_ && same && telling && std::abs(factor) > 1e-9) {
    finding.explanation.cause = Cause::kWrongScale;
    finding.explanation.factor = factor;
    finding.residual = largest_scale_residual_;
    std::vector<std::string> axes;
    for (const Mesh* mesh : {&meshes_.dense, &meshes_.expert}) {
      for (const Axis axis : mesh->axes) {
        const auto size = static_cast<double>(mesh->SizeOf(axis));
        const double of_size = factor > 1.0 ? factor / size : factor * size;
        if (size > 1.0 && std::abs(of_size - 1.0) < 1e-2) {
          axes.emplace_back(ToText(axis));
        }
      }
    }
    finding.text = fmt::format("wrong scale: {:.6g} times the reference", factor);
    if (!axes.empty()) {
      finding.text += fmt::format(", which is {}the size of {}", factor > 1.0 ? "" : "1 over ",
                                  fmt::join(axes, " and of "));
    }
    finding.evidence.push_back(
        fmt::format("why    every slice of every rank is the reference times {:.6g}, to "
                    "{:.1e}; no sum of the contract explains it",
                    factor, finding.residual));
    return;
  }
  finding.explanation.cause = Cause::kUnexplained;
  finding.text = all_zero_ ? "zero on every rank, which the reference is not"
                           : "wrong, and no missing, doubled or averaged sum explains it";
}

}  // namespace moe
