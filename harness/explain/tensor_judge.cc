#include "harness/explain/tensor_judge.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "harness/explain/diagnose.h"
#include "harness/explain/explanation_text.h"
#include "harness/measure/norms.h"
#include "harness/measure/tolerance.h"

namespace moe {
namespace {

using reference::Matrix;

// As far as the casts are concerned that take part in one result.
Manifest WithCastsReaching(const Manifest& manifest, const std::string& result) {
  Manifest reached = manifest;
  std::erase_if(reached.casts, [coarser = CoarserCasts(manifest),
                                reaching = CastsReaching(manifest, result)](const auto& cast) {
    return coarser.contains(cast.first) && !reaching.contains(cast.first);
  });
  return reached;
}

double CoarsestUnit(const Manifest& manifest, const std::string& result) {
  double coarsest = UnitRoundoff(manifest.dtype);
  for (const auto& [cast, dtype] : CastsReaching(manifest, result)) {
    coarsest = std::max(coarsest, UnitRoundoff(dtype));
  }
  return coarsest;
}

}  // namespace

bool AllowsNothing(const Manifest& manifest, const JudgeOptions& options) {
  return options.exact && manifest.dtype != Dtype::kFloat16 &&
         std::none_of(manifest.casts.begin(), manifest.casts.end(),
                      [](const auto& cast) { return cast.second == Dtype::kFloat16; });
}

TensorJudge::TensorJudge(const Dump& dump, const std::string& name, const JudgeOptions& options)
    : options_(options),
      observed_(dump, name),
      scale_(RoundingOf(WithCastsReaching(dump.manifest, name))),
      dtype_(dump.manifest.dtype),
      coarsest_unit_(CoarsestUnit(dump.manifest, name)),
      exact_(AllowsNothing(dump.manifest, options)) {
  finding_.tensor = name;
  tolerance_ = GoldenTolerance();
  for (const ObservedTensor::Holder& holder : observed_.holders()) {
    const auto units = static_cast<std::size_t>(observed_.UnitsOf(holder));
    measurement_.allowed.emplace_back(units, 0.0);
    measurement_.error.emplace_back(units, 0.0);
    measurement_.is_wrong.emplace_back(units, false);
  }
}

std::optional<double> TensorJudge::GoldenTolerance() const {
  // It speaks of a step without coarser casts.
  if (options_.golden == nullptr || coarsest_unit_ > UnitRoundoff(dtype_)) {
    return std::nullopt;
  }
  const auto of_dtype = options_.golden->tolerances.find(dtype_);
  if (of_dtype == options_.golden->tolerances.end()) {
    return std::nullopt;
  }
  const auto entry = of_dtype->second.find(observed_.name());
  return entry == of_dtype->second.end() ? std::nullopt : std::optional(entry->second.tolerance);
}

double TensorJudge::AllowedError(double want_norm, double deviation_norm) const {
  const double own = kSafety * deviation_norm;
  const bool useful = own < kLargestUsefulTolerance * want_norm;
  // The golden tolerance is that of the least accurate slice; another must do better.
  return tolerance_ && useful ? std::min(own, *tolerance_ * want_norm) : own;
}

std::string TensorJudge::UnitName(std::int64_t global_unit) const {
  if (!observed_.HasUnits()) {
    return "whole slice";
  }
  const std::string& name = observed_.name();
  return fmt::format("{} {}", name[name.rfind('_') + 1] == 'T' ? "token" : "expert", global_unit);
}

void TensorJudge::Fail(const ObservedTensor::Holder& holder) {
  finding_.verdict = Verdict::kFail;
  for (const std::int64_t rank : holder.ranks) {
    if (std::find(finding_.ranks.begin(), finding_.ranks.end(), rank) == finding_.ranks.end()) {
      finding_.ranks.push_back(rank);
    }
  }
}

// No gradient is that large, and squares of such numbers overflow.
constexpr double kAbsurd = 1e150;

void TensorJudge::NoteCorruption(const ObservedTensor::Holder& holder, std::int64_t global_unit,
                                 const std::vector<double>& got) {
  const auto place =
      std::find_if(got.begin(), got.end(), [](double v) { return !(std::abs(v) < kAbsurd); });
  if (place == got.end()) {
    return;
  }
  Fail(holder);
  if (!corruption_.empty()) {
    return;
  }
  // The element's global indices: the unit's, then those of its place within the unit.
  std::vector<std::int64_t> index;
  std::int64_t offset = place - got.begin();
  for (std::size_t dim = holder.slice.index.size(); dim-- > (observed_.HasUnits() ? 1U : 0U);) {
    const auto& held = holder.slice.index[dim];
    index.insert(index.begin(), held[static_cast<std::size_t>(offset) % held.size()]);
    offset /= static_cast<std::int64_t>(held.size());
  }
  if (observed_.HasUnits()) {
    index.insert(index.begin(), global_unit);
  }
  corruption_ = fmt::format("{} at [{}] on rank {}",
                            std::isnan(*place)   ? "NaN"
                            : std::isinf(*place) ? "Inf"
                                                 : fmt::format("{:.1e}", *place),
                            fmt::join(index, ", "), fmt::join(holder.ranks, " + "));
}

void TensorJudge::CompareReplicas(const Unit& unit, std::int64_t global_unit) {
  std::vector<Axis> replicating;
  for (const Axis axis : observed_.mesh().axes) {
    if (PlacementOn(observed_.claim().placements, axis).kind == Placement::Kind::kReplicate) {
      replicating.push_back(axis);
    }
  }
  for (std::size_t i = 0; i < unit.holders.size(); ++i) {
    for (const std::size_t replica :
         observed_.Replicas(unit.holders[i], observed_.mesh(), replicating)) {
      const auto place = std::find(unit.holders.begin(), unit.holders.end(), replica);
      if (replica <= unit.holders[i] || place == unit.holders.end()) {
        continue;
      }
      const auto& other = unit.got[static_cast<std::size_t>(place - unit.holders.begin())];
      if (const double norm = Distance(other, unit.got[i]);
          norm > std::max(replica_difference_, 2.0 * unit.allowed[i])) {
        replica_difference_ = norm;
        replicas_that_differ_ = fmt::format(
            "ranks {} and {} at {}", fmt::join(observed_.holders()[unit.holders[i]].ranks, " + "),
            fmt::join(observed_.holders()[replica].ranks, " + "), UnitName(global_unit));
      }
    }
  }
}

void TensorJudge::Measure(double error, double want_norm, double deviation_norm,
                          double worst_case_norm) {
  const auto over = [error](double bound) {
    return error == 0.0 ? 0.0 : bound > 0.0 ? error / bound : INFINITY;
  };
  measured_.ratio = std::max(measured_.ratio, over(deviation_norm));
  if (options_.worst_case) {
    measured_.worst_case_ratio = std::max(measured_.worst_case_ratio, over(worst_case_norm));
  }
  if (want_norm > 0.0) {
    measured_.detectable_scale =
        std::min(measured_.detectable_scale,
                 DetectableScale(AllowedError(want_norm, deviation_norm) / want_norm,
                                 deviation_norm / want_norm));
  }
  if (kSafety * deviation_norm < kLargestUsefulTolerance * want_norm) {
    measured_.bound = std::max(measured_.bound, deviation_norm / want_norm);
    measured_.worst_case = std::max(measured_.worst_case, worst_case_norm / want_norm);
    measured_.error =
        std::isfinite(error) ? std::max(measured_.error, error / want_norm) : INFINITY;
    measured_.useful_ratio = std::max(measured_.useful_ratio, over(deviation_norm));
  }
}

void TensorJudge::JudgeUnit(std::int64_t global_unit, const Matrix& value, const Matrix& deviation,
                            const Matrix& worst_case) {
  Unit unit;
  bool finite = true;
  for (std::size_t h = 0; h < observed_.holders().size(); ++h) {
    const ObservedTensor::Holder& holder = observed_.holders()[h];
    const std::int64_t local = observed_.LocalUnit(holder, global_unit);
    if (local < 0) {
      continue;
    }
    std::vector<double> got = observed_.ReadUnit(holder, local);
    if (got.empty()) {
      continue;
    }
    // The unit's own dimensions are the last one or two of the slice.
    const auto& index = holder.slice.index;
    const std::size_t dims = index.size() - (observed_.HasUnits() ? 1 : 0);
    const auto& columns = index.back();
    const std::size_t rows = dims == 2 ? index[index.size() - 2].size() : 1;
    std::vector<double> want;
    std::vector<double> sd;
    std::vector<double> worst;
    want.reserve(got.size());
    for (std::size_t row = 0; row < rows; ++row) {
      const Eigen::Index r = dims == 2 ? index[index.size() - 2][row] : 0;
      for (const std::int64_t column : columns) {
        want.push_back(value(r, column));
        sd.push_back(deviation(r, column));
        worst.push_back(worst_case.size() > 0 ? worst_case(r, column) : 0.0);
      }
    }
    NoteCorruption(holder, global_unit, got);
    const double error = Distance(got, want);
    const double want_norm = Norm(want);
    const double deviation_norm = exact_ ? 0.0 : Norm(sd);
    const double allowed = AllowedError(want_norm, deviation_norm);
    want_squares_ += want_norm * want_norm;
    error_squares_ += error * error;
    deviation_squares_ += deviation_norm * deviation_norm;
    if (want_norm > 0.0 && deviation_norm > 0.0) {
      const double factor = Dot(got, want) / (want_norm * want_norm) - 1.0;
      const double weight = want_norm * want_norm * static_cast<double>(got.size()) /
                            (deviation_norm * deviation_norm);
      unit_factors_.count += 1.0;
      unit_factors_.weights += weight;
      unit_factors_.sum += weight * factor;
      unit_factors_.squares += weight * factor * factor;
    }
    telling_units_ += kSafety * deviation_norm < kLargestTellingTolerance * want_norm ? 1 : 0;
    Measure(error, want_norm, deviation_norm, Norm(worst));
    scale_.Add(got, want);
    const double relative = want_norm > 0.0 ? error / want_norm : (error > 0.0 ? INFINITY : 0.0);
    for (const std::int64_t rank : holder.ranks) {
      error_of_rank_[rank] = std::max(error_of_rank_[rank], relative);
    }
    // Where nothing may be off elements are compared, since squares of tiny ones are zero.
    const bool wrong = exact_ ? got != want : !(error <= allowed);  // NaN is wrong
    if (wrong) {
      Fail(holder);
    }
    const double excess = allowed > 0.0 ? error / allowed : (error > 0.0 ? INFINITY : 0.0);
    if (worst_.empty() || !(excess <= worst_excess_)) {
      worst_excess_ = excess;
      worst_ = fmt::format("{} on rank {}", UnitName(global_unit), fmt::join(holder.ranks, " + "));
      finding_.error = relative;
      finding_.tolerance = want_norm > 0.0 ? allowed / want_norm : allowed;
    }
    finite = finite && corruption_.empty();
    unit.holders.push_back(h);
    unit.got.push_back(std::move(got));
    // A fault may round where a correct step does not: a mean over 3 ranks. Causes allow for that.
    const double slack = exact_ ? kSafety * UnitRoundoff(dtype_) * want_norm : allowed;
    unit.allowed.push_back(slack);
    measurement_.allowed[h][static_cast<std::size_t>(local)] = slack;
    measurement_.error[h][static_cast<std::size_t>(local)] = error;
    measurement_.is_wrong[h][static_cast<std::size_t>(local)] = wrong;
  }
  if (finite && finding_.verdict == Verdict::kFail) {
    CompareReplicas(unit, global_unit);
  }
}

// Judges the tensor as a whole, once every unit of it was within its own tolerance.
void TensorJudge::JudgeScale() {
  const double error = scale_.error();
  // A foreign step may round in one direction, by up to a unit in each of the four tensors that are
  // stored on the way to a gradient; of the built-in one it is known that it does not.
  const double truncation = options_.contract == nullptr ? 4.0 * coarsest_unit_ : 0.0;
  const double allowed = kScaleSafety * scale_.deviation() + truncation;
  measured_.scale_bound = kScaleBound * scale_.deviation();
  measured_.scale_ratio = error == 0.0 ? 0.0 : std::abs(error) / measured_.scale_bound;
  measured_.detectable_scale =
      std::min(measured_.detectable_scale, DetectableScale(allowed, measured_.scale_bound));
  if (finding_.verdict == Verdict::kFail || std::abs(error) <= allowed) {
    return;
  }
  for (const ObservedTensor::Holder& holder : observed_.holders()) {
    Fail(holder);
  }
  finding_.error = std::abs(error);
  finding_.tolerance = allowed;
  // What the factor leaves is rounding of a right step, or else the factor is that of a coarser
  // one.
  if (error_squares_ - error * error * want_squares_ > deviation_squares_) {
    finding_.explanation.cause = Cause::kUnexplained;
    finding_.text =
        "off as a whole, though every slice is within its own tolerance, by errors like those of "
        "coarser arithmetic";
    finding_.evidence = {fmt::format(
        "what   {} is off by {:.2e} as a whole, allowed {:.1e}, and by {:.2e} element by element",
        finding_.tensor, std::abs(error), allowed, std::sqrt(error_squares_ / want_squares_))};
    return;
  }
  constexpr double kLargestSpread = 2.0;
  if (unit_factors_.count > 0.0 && unit_factors_.Spread(error) > kLargestSpread) {
    finding_.explanation.cause = Cause::kUnexplained;
    finding_.text =
        "off as a whole, though every slice is within its own tolerance; they share no factor";
    finding_.evidence = {fmt::format("what   {} is off by {:.2e} as a whole, allowed {:.1e}",
                                     finding_.tensor, std::abs(error), allowed)};
    return;
  }
  finding_.explanation.cause = Cause::kWrongScale;
  finding_.explanation.factor = 1.0 + error;
  finding_.text = ToText(finding_.explanation);
  finding_.evidence = {
      fmt::format("what   {} is off by {:.2e} as a whole; allowed {:.1e}", finding_.tensor,
                  std::abs(error), allowed),
      "why    all slices together are off by that factor; each alone is within its tolerance"};
}

Finding TensorJudge::Finish(const Manifest& manifest, Ledger& ledger) {
  JudgeScale();
  if (finding_.explanation.cause != Cause::kNone) {
    return finding_;  // named already: no slice alone is wrong
  }
  std::sort(finding_.ranks.begin(), finding_.ranks.end());
  if (finding_.verdict != Verdict::kFail) {
    return finding_;
  }
  if (!corruption_.empty()) {
    finding_.explanation.cause = Cause::kCorruption;
    finding_.error = NAN;
    finding_.text = corruption_;
    finding_.evidence.push_back(
        fmt::format("what   {} holds {}, the first of its kind", finding_.tensor, corruption_));
    return finding_;
  }
  std::vector<std::string> errors;
  for (const std::int64_t rank : finding_.ranks) {
    if (errors.size() == 4) {
      errors.push_back(fmt::format("and {} more ranks", finding_.ranks.size() - 4));
      break;
    }
    errors.push_back(fmt::format("{:.2e} (rank {})", error_of_rank_[rank], rank));
  }
  finding_.evidence.push_back(fmt::format("what   {} is off by {}; allowed {:.1e}; worst: {}",
                                          finding_.tensor, fmt::join(errors, ", "),
                                          finding_.tolerance, worst_));
  if (options_.golden != nullptr && tolerance_) {
    const auto& entry = options_.golden->tolerances.at(dtype_).at(finding_.tensor);
    finding_.evidence.push_back(fmt::format(
        "       clean runs reach {:.1e}{}", entry.noise_floor,
        entry.fault_floor
            ? fmt::format("; the smallest planted fault gives {:.1e}", *entry.fault_floor)
            : ""));
  }
  if (!ledger.IsAffordable()) {
    finding_.explanation.cause = Cause::kUnexplained;
    finding_.text =
        "wrong, and too large for its contributions to be told apart in memory; a dump of fewer "
        "tokens or ranks would do";
    return finding_;
  }
  const Suspect suspect(observed_, measurement_, manifest, ledger);
  Diagnose(suspect, {.contract = options_.contract, .calls = options_.calls}, finding_);
  if (finding_.explanation.cause == Cause::kUnexplained && !replicas_that_differ_.empty()) {
    finding_.evidence.push_back(
        fmt::format("why    replicas must agree, and those of {} differ by {:.2e} (L2)",
                    replicas_that_differ_, replica_difference_));
  }
  return finding_;
}

bool TensorJudge::IsExplainedBy(const Manifest& manifest, Ledger& ledger) const {
  const auto has_wrong = [](const std::vector<bool>& units) {
    return std::find(units.begin(), units.end(), true) != units.end();
  };
  if (std::none_of(measurement_.is_wrong.begin(), measurement_.is_wrong.end(), has_wrong)) {
    return false;  // off as a whole only: too little to tell by
  }
  const Suspect suspect(observed_, measurement_, manifest, ledger);
  FitQuality quality;
  for (std::size_t index = 0; index < suspect.Pieces(); ++index) {
    const Piece piece = suspect.Load(index);
    if (!suspect.Explains(piece, piece.want, quality)) {
      return false;
    }
  }
  quality.before = 0.0;  // against the step that the manifest of the dump speaks of
  for (const std::vector<double>& errors : measurement_.error) {
    quality.before += Dot(errors, errors);
  }
  return corruption_.empty() && quality.Helps();
}

}  // namespace moe
