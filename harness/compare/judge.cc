#include "harness/compare/judge.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <memory>
#include <utility>

#include "harness/base/error.h"
#include "harness/compare/diagnose.h"
#include "harness/compare/explanation_text.h"
#include "harness/compare/model_variants.h"
#include "harness/compare/norms.h"
#include "harness/compare/observed.h"
#include "harness/compare/problem.h"
#include "harness/compare/routing.h"
#include "harness/compare/scale.h"
#include "harness/compare/tolerance.h"

namespace moe {
namespace {

using reference::Estimate;
using reference::Matrix;

// Whether the producer computes something in a coarser dtype than the golden tolerances assume.
bool CoarsensAnything(const Manifest& manifest) {
  return std::any_of(manifest.casts.begin(), manifest.casts.end(), [&](const auto& cast) {
    return UnitRoundoff(cast.second) > UnitRoundoff(manifest.dtype);
  });
}

// Whether nothing may be off. An exact problem is so in bfloat16 and finer; float16 ends at 65504.
bool AllowsNothing(const Manifest& manifest, const JudgeOptions& options) {
  return options.exact && manifest.dtype != Dtype::kFloat16 &&
         std::none_of(manifest.casts.begin(), manifest.casts.end(),
                      [](const auto& cast) { return cast.second == Dtype::kFloat16; });
}

// One tensor on its way through the judge.
class TensorJudge {
 public:
  TensorJudge(const Dump& dump, const std::string& name, const JudgeOptions& options)
      : options_(options),
        observed_(dump, name),
        scale_(RoundingOf(dump.manifest)),
        dtype_(dump.manifest.dtype),
        golden_counts_(!CoarsensAnything(dump.manifest)),
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

  // Judges unit `global_unit` of every holder that has it. The rows and columns of `want` are the
  // last two dimensions of the unit (or its only one); `worst_case` may be empty.
  void JudgeUnit(std::int64_t global_unit, const Matrix& value, const Matrix& deviation,
                 const Matrix& worst_case);
  void BoundScale(const Estimate& whole) { scale_.AddBound(whole); }
  // The finding; of a tensor that fails with its cause, which `ledger` helps to find.
  Finding Finish(const Manifest& manifest, Ledger& ledger);
  const Judgement::Measured& measured() const { return measured_; }
  double want_norm() const { return std::sqrt(want_squares_); }
  const ObservedTensor& observed() const { return observed_; }
  bool proves_something() const { return telling_units_ > 0; }
  // Whether the tensor is what a step of `manifest`'s model and `ledger` gives.
  bool IsExplainedBy(const Manifest& manifest, Ledger& ledger) const;

 private:
  // What the holders of one unit hold, and by how much (L2) each may be off.
  struct Unit {
    std::vector<std::size_t> holders;
    std::vector<std::vector<double>> got;
    std::vector<double> allowed;
  };

  std::optional<double> GoldenTolerance() const;
  double AllowedError(double want_norm, double deviation_norm) const;
  void NoteCorruption(const ObservedTensor::Holder& holder, std::int64_t global_unit,
                      const std::vector<double>& got);
  void CompareReplicas(const Unit& unit, std::int64_t global_unit);
  std::string UnitName(std::int64_t global_unit) const;
  void Fail(const ObservedTensor::Holder& holder);
  void Measure(double error, double want_norm, double deviation_norm, double worst_case_norm);
  void JudgeScale();

  const JudgeOptions& options_;
  ObservedTensor observed_;
  Measurement measurement_;
  ScaleFit scale_;
  Dtype dtype_;
  bool golden_counts_;
  bool exact_;
  std::optional<double> tolerance_;
  Finding finding_;
  Judgement::Measured measured_;
  double want_squares_ = 0.0;
  double error_squares_ = 0.0;
  double deviation_squares_ = 0.0;
  // Of the factors that units have on their own, minus 1: weights (one over the variance that
  // rounding gives such a factor), and weighted sums and squares.
  struct UnitFactors {
    double count = 0.0;
    double weights = 0.0;
    double sum = 0.0;
    double squares = 0.0;

    // How far they are from the common factor 1 + error, per unit; about 1 for rounding alone.
    double Spread(double error) const {
      return (squares - 2.0 * error * sum + error * error * weights) / count;
    }
  };
  UnitFactors unit_factors_;
  std::int64_t telling_units_ = 0;  // large enough against their rounding error to prove something
  std::string worst_;
  double worst_excess_ = 0.0;  // error over what is allowed, of the worst slice
  std::map<std::int64_t, double> error_of_rank_;
  double replica_difference_ = 0.0;  // L2, the largest, where it is more than rounding
  std::string replicas_that_differ_;
  std::string corruption_;
};

std::optional<double> TensorJudge::GoldenTolerance() const {
  if (options_.golden == nullptr || !golden_counts_) {
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

void TensorJudge::NoteCorruption(const ObservedTensor::Holder& holder, std::int64_t global_unit,
                                 const std::vector<double>& got) {
  const auto place =
      std::find_if(got.begin(), got.end(), [](double v) { return !std::isfinite(v); });
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
  corruption_ = fmt::format("{} at [{}] on rank {}", std::isnan(*place) ? "NaN" : "Inf",
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
    const bool wrong = !(error <= allowed);  // NaN is wrong
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
    finite = finite && std::isfinite(error);
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
  const double truncation = options_.contract == nullptr ? 4.0 * UnitRoundoff(dtype_) : 0.0;
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
    finding_.explanation.cause = Cause::kPrecision;
    finding_.text = ToText(finding_.explanation);
    finding_.evidence = {fmt::format(
        "what   {} is off by {:.2e} as a whole, allowed {:.1e}, and by {:.2e} element by element",
        finding_.tensor, std::abs(error), allowed, std::sqrt(error_squares_ / want_squares_))};
    return;
  }
  constexpr double kLargestSpread = 2.0;
  if (unit_factors_.count > 0.0 && unit_factors_.Spread(error) > kLargestSpread) {
    finding_.explanation.cause = Cause::kUnexplained;
    finding_.text = "off as a whole, by other factors in other slices";
    finding_.evidence = {fmt::format("what   {} is off by {:.2e} as a whole, allowed {:.1e}",
                                     finding_.tensor, std::abs(error), allowed)};
    return;
  }
  finding_.explanation.cause = Cause::kWrongScale;
  finding_.explanation.factor = 1.0 + error;
  finding_.text = fmt::format("wrong scale: {:.6g} times the reference", 1.0 + error);
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

// Runs the steps of Judge in order; holds what they share.
class DumpJudge {
 public:
  DumpJudge(const Dump& dump, const TensorSource& problem, const JudgeOptions& options)
      : dump_(dump),
        manifest_(dump.manifest),
        options_(options),
        problem_(MakeProblem(dump.manifest.model, problem)) {}

  Judgement Run();

 private:
  void CompareRouting();
  void JudgeWhole(const std::string& name, const Estimate& want);
  void CheckAgainstGolden() const;
  void CheckThatSomethingWasTested(const reference::StepResult& want);
  TensorJudge* JudgeOf(const std::string& name);
  void Vacuous(const std::string& tensor, const std::string& text);
  void ExplainCounts(Finding& finding, const std::vector<std::int64_t>& tokens_per_expert_E,
                     Ledger& ledger) const;
  void TryModelVariants(const reference::Routing& routing);
  void CheckStoredDtype(const std::string& name) const;

  const Dump& dump_;
  const Manifest& manifest_;
  const JudgeOptions& options_;
  reference::Problem problem_;
  std::optional<reference::Routing> observed_routing_;
  std::map<std::string, std::unique_ptr<TensorJudge>> judges_;
  std::map<std::string, double> reference_squares_;
  Judgement judgement_;
};

TensorJudge* DumpJudge::JudgeOf(const std::string& name) {
  const auto found = judges_.find(name);
  return found == judges_.end() ? nullptr : found->second.get();
}

void DumpJudge::Vacuous(const std::string& tensor, const std::string& text) {
  judgement_.findings.push_back({.tensor = tensor, .verdict = Verdict::kVacuous, .text = text});
}

void DumpJudge::CompareRouting() {
  RoutingComparison comparison =
      moe::CompareRouting(dump_, problem_,
                          {.must_be_decided = options_.contract != nullptr,
                           .is_exact = AllowsNothing(manifest_, options_)});
  judgement_.slots = manifest_.model.tokens * manifest_.model.top_k;
  judgement_.smallest_margin = comparison.smallest_margin;
  judgement_.routing_compared = comparison.finding.has_value();
  if (comparison.finding) {
    judgement_.findings.push_back(std::move(*comparison.finding));
  }
  std::move(comparison.notes.begin(), comparison.notes.end(), std::back_inserter(judgement_.notes));
  observed_routing_ = std::move(comparison.observed_routing);
}

// A golden file speaks of one problem: the reference must still give what it gave when the file was
// made.
void DumpJudge::CheckAgainstGolden() const {
  if (options_.golden == nullptr || observed_routing_) {
    return;
  }
  for (const auto& [name, reference] : options_.golden->reference) {
    const auto squares = reference_squares_.find(name);
    const double norm = squares == reference_squares_.end() ? 0.0 : std::sqrt(squares->second);
    if (std::abs(norm - reference.norm) > 1e-5 * reference.norm) {
      throw Error(dump_.name,
                  fmt::format("is not the problem of its golden file: the reference's {} has norm "
                              "{:.6e} here and {:.6e} there; other inputs, or a golden file to "
                              "regenerate",
                              name, norm, reference.norm));
    }
  }
}

void DumpJudge::JudgeWhole(const std::string& name, const Estimate& want) {
  reference_squares_[name] += want.value.squaredNorm();
  TensorJudge* judge = JudgeOf(name);
  if (judge == nullptr) {
    return;
  }
  const bool has_units = judge->observed().HasUnits();
  if (!has_units || want.projection_variance > 0.0) {
    judge->BoundScale(want);
  }
  if (!has_units) {
    judge->JudgeUnit(0, want.value, want.deviation, want.worst_case);
    return;
  }
  for (Eigen::Index unit = 0; unit < want.value.rows(); ++unit) {
    const Estimate row{want.value.row(unit), want.deviation.row(unit),
                       want.worst_case.size() > 0 ? Matrix(want.worst_case.row(unit)) : Matrix()};
    judge->JudgeUnit(unit, row.value, row.deviation, row.worst_case);
    if (want.projection_variance == 0.0) {
      judge->BoundScale(row);
    }
  }
}

void DumpJudge::CheckThatSomethingWasTested(const reference::StepResult& want) {
  const auto& missing = manifest_.not_dumped;
  for (const TensorInfo& result : ResultsOf(manifest_.model)) {
    if (manifest_.tensors.contains(result.name)) {
      continue;
    }
    if (std::find(missing.begin(), missing.end(), result.name) == missing.end()) {
      Vacuous(result.name,
              fmt::format("{} is owed by the model and neither dumped nor named in not_dumped",
                          result.name));
    } else {
      judgement_.notes.push_back(fmt::format("{} was not dumped and so not judged", result.name));
    }
  }
  for (const auto& [name, judge] : judges_) {
    const auto finding = std::find_if(judgement_.findings.begin(), judgement_.findings.end(),
                                      [&](const Finding& f) { return f.tensor == name; });
    if (finding->verdict != Verdict::kPass || judge->proves_something()) {
      continue;
    }
    finding->verdict = Verdict::kVacuous;
    finding->text = judge->want_norm() == 0.0
                        ? fmt::format("{} is zero in the reference and proves nothing", name)
                        : fmt::format(
                              "{} is no larger than its rounding error in this dtype and proves "
                              "nothing",
                              name);
  }
  for (std::size_t e = 0; e < want.tokens_per_expert_E.size(); ++e) {
    const auto expert = static_cast<std::int64_t>(e);
    const auto& idle = options_.idle_experts;
    if (want.tokens_per_expert_E[e] > 0 ||
        std::find(idle.begin(), idle.end(), expert) != idle.end()) {
      continue;
    }
    const std::string text =
        fmt::format("expert {} got no tokens, so its gradients are zero and prove nothing", expert);
    if (options_.contract == nullptr) {
      judgement_.notes.push_back(text);
    } else {
      Vacuous("tokens_per_expert_E",
              text + "; change the seed, raise tokens, or list it in idle_experts");
    }
  }
}

// What is stored more coarsely than the step claims to compute has an error that no bound here
// knows of.
void DumpJudge::CheckStoredDtype(const std::string& name) const {
  const auto cast = manifest_.casts.find(name);
  const double declared =
      std::max(UnitRoundoff(manifest_.dtype),
               cast == manifest_.casts.end() ? 0.0 : UnitRoundoff(cast->second));
  for (std::int64_t rank = 0; rank < manifest_.WorldSize(); ++rank) {
    const Dtype stored = dump_.Local(rank, name).dtype;
    if (UnitRoundoff(stored) > declared) {
      throw Error(dump_.name,
                  fmt::format("{} of rank {} is stored in {}, which is coarser than the dtype of "
                              "the step, {}; store it in {} or declare it under casts",
                              name, rank, ToText(stored), ToText(manifest_.dtype),
                              ToText(manifest_.dtype)));
    }
  }
}

// Counts have contributions too: each rank's own tokens.
void DumpJudge::ExplainCounts(Finding& finding,
                              const std::vector<std::int64_t>& tokens_per_expert_E,
                              Ledger& ledger) const {
  const ObservedTensor observed(dump_, finding.tensor);
  Measurement measurement;
  for (const ObservedTensor::Holder& holder : observed.holders()) {
    const std::vector<double> got = observed.ReadUnit(holder, 0);
    double squares = 0.0;
    for (std::size_t i = 0; i < got.size(); ++i) {
      const auto expert = static_cast<std::size_t>(holder.slice.index[0][i]);
      const double error = got[i] - static_cast<double>(tokens_per_expert_E[expert]);
      squares += error * error;
    }
    measurement.error.push_back({std::sqrt(squares)});
    measurement.allowed.push_back({0.25});  // of whole numbers
    measurement.is_wrong.push_back({squares > 0.0});
  }
  const std::string symptom = finding.text;
  const Suspect suspect(observed, measurement, manifest_, ledger);
  // The log is of sums of gradients; counts are not in it.
  Diagnose(suspect, {.calls = {}}, finding);
  const bool is_named = finding.explanation.cause != Cause::kUnexplained;
  finding.text = is_named ? fmt::format("{} ({})", finding.text, symptom) : symptom;
}

// Where something is left unexplained: one option that is another in the step explains all or
// nothing.
void DumpJudge::TryModelVariants(const reference::Routing& routing) {
  std::vector<Finding*> failing;
  bool is_open = false;  // something is unexplained, or y_TD is wrong with others for other reasons
  for (Finding& finding : judgement_.findings) {
    if (finding.verdict == Verdict::kFail && JudgeOf(finding.tensor) != nullptr) {
      failing.push_back(&finding);
      is_open = is_open || finding.explanation.cause == Cause::kUnexplained ||
                (failing.front()->tensor == "y_TD" && failing.size() > 1);
    }
  }
  if (!is_open) {
    return;
  }
  for (const ModelVariant& variant : VariantsOf(manifest_.model)) {
    Manifest manifest = manifest_;
    manifest.model = variant.model;
    Ledger ledger(manifest, problem_, routing);
    if (!ledger.IsAffordable()) {
      return;
    }
    const bool explains = std::all_of(failing.begin(), failing.end(), [&](const Finding* finding) {
      return ledger.Knows(finding->tensor) &&
             JudgeOf(finding->tensor)->IsExplainedBy(manifest, ledger);
    });
    if (!explains) {
      continue;
    }
    for (Finding* finding : failing) {
      finding->explanation = {.cause = Cause::kWrongFormula, .option = variant.option};
      finding->candidates.clear();
      finding->text = fmt::format("wrong formula: as if {} were {}", variant.option, variant.value);
      finding->evidence.push_back(
          fmt::format("why    a step with {} {} gives what every rank holds, in every tensor that "
                      "fails",
                      variant.option, variant.value));
    }
    return;
  }
}

Judgement DumpJudge::Run() {
  CompareRouting();
  std::vector<std::string> order;
  for (const TensorInfo& result : ResultsOf(manifest_.model)) {
    if (manifest_.tensors.contains(result.name)) {
      CheckStoredDtype(result.name);
      order.push_back(result.name);
      judges_[result.name] = std::make_unique<TensorJudge>(dump_, result.name, options_);
    }
  }
  const reference::StepOptions step{
      .rounding = RoundingOf(manifest_),
      .worst_case = options_.worst_case,
      .forced_routing = observed_routing_ ? &*observed_routing_ : nullptr};
  const auto on_expert = [&](const reference::ExpertGradients& gradients) {
    const auto judge = [&](const std::string& name, const Estimate& want) {
      reference_squares_[name] += want.value.squaredNorm();
      if (TensorJudge* tensor = JudgeOf(name)) {
        tensor->JudgeUnit(gradients.expert, want.value, want.deviation, want.worst_case);
        tensor->BoundScale(want);
      }
    };
    judge("d_w1_EFD", gradients.d_w1_FD);
    judge("d_w3_EFD", gradients.d_w3_FD);
    judge("d_w2_EDF", gradients.d_w2_DF);
  };
  const reference::StepResult want = reference::RunStep(manifest_.model, problem_, step, on_expert);
  JudgeWhole("y_TD", want.y_TD);
  JudgeWhole("d_x_TD", want.d_x_TD);
  JudgeWhole("d_gate_ED", want.d_gate_ED);
  JudgeWhole("d_gate_bias_E", want.d_gate_bias_E);
  JudgeWhole("d_shared_w1_FD", want.d_shared_w1_FD);
  JudgeWhole("d_shared_w3_FD", want.d_shared_w3_FD);
  JudgeWhole("d_shared_w2_DF", want.d_shared_w2_DF);
  JudgeWhole("d_shared_gate_D", want.d_shared_gate_D);
  CheckAgainstGolden();
  Ledger ledger(manifest_, problem_, want.routing);
  if (auto counts = CompareCounts(dump_, want.tokens_per_expert_E)) {
    if (counts->verdict == Verdict::kFail && ledger.IsAffordable()) {
      ExplainCounts(*counts, want.tokens_per_expert_E, ledger);
    }
    judgement_.findings.push_back(std::move(*counts));
  }
  for (const std::string& name : order) {
    judgement_.findings.push_back(judges_.at(name)->Finish(manifest_, ledger));
    judgement_.measured[name] = judges_.at(name)->measured();
  }
  ShareCauses(judgement_.findings);
  TryModelVariants(want.routing);
  CheckThatSomethingWasTested(want);
  const auto has = [&](Verdict verdict) {
    return std::any_of(judgement_.findings.begin(), judgement_.findings.end(),
                       [&](const Finding& f) { return f.verdict == verdict; });
  };
  judgement_.verdict = has(Verdict::kFail)      ? Verdict::kFail
                       : has(Verdict::kVacuous) ? Verdict::kVacuous
                                                : Verdict::kPass;
  return judgement_;
}

}  // namespace

Judgement Judge(const Dump& dump, const TensorSource& problem, const JudgeOptions& options) {
  return DumpJudge(dump, problem, options).Run();
}

}  // namespace moe
