#include "harness/measure/tensor_meter.h"

#include <algorithm>
#include <map>
#include <utility>

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

bool AllowsNothing(const Manifest& manifest, const MeasureOptions& options) {
  return options.exact && manifest.dtype != Dtype::kFloat16 &&
         std::none_of(manifest.casts.begin(), manifest.casts.end(),
                      [](const auto& cast) { return cast.second == Dtype::kFloat16; });
}

TensorMeter::TensorMeter(const Dump& dump, const std::string& name, const MeasureOptions& options)
    : options_(options),
      tensor_(ObservedTensor(dump, name)),
      scale_(RoundingOf(WithCastsReaching(dump.manifest, name))),
      dtype_(dump.manifest.dtype),
      coarsest_unit_(CoarsestUnit(dump.manifest, name)) {
  tensor_.is_exact = AllowsNothing(dump.manifest, options);
  if (const GoldenTolerance* entry = GoldenEntry()) {
    tolerance_ = entry->tolerance;
    tensor_.floors = {entry->noise_floor, entry->fault_floor};
  }
  for (const ObservedTensor::Holder& holder : observed().holders()) {
    tensor_.units.emplace_back(static_cast<std::size_t>(observed().UnitsOf(holder)));
  }
}

const GoldenTolerance* TensorMeter::GoldenEntry() const {
  // It speaks of a step without coarser casts.
  if (options_.golden == nullptr || coarsest_unit_ > UnitRoundoff(dtype_)) {
    return nullptr;
  }
  const auto of_dtype = options_.golden->tolerances.find(dtype_);
  if (of_dtype == options_.golden->tolerances.end()) {
    return nullptr;
  }
  const auto entry = of_dtype->second.find(observed().name());
  return entry == of_dtype->second.end() ? nullptr : &entry->second;
}

double TensorMeter::AllowedError(double want_norm, double deviation_norm) const {
  const double own = kSafety * deviation_norm;
  const bool useful = own < kLargestUsefulTolerance * want_norm;
  // The golden tolerance is that of the least accurate slice; another must do better.
  return tolerance_ && useful ? std::min(own, *tolerance_ * want_norm) : own;
}

UnitPlace TensorMeter::PlaceOf(std::int64_t global_unit,
                               const ObservedTensor::Holder& holder) const {
  if (!observed().HasUnits()) {
    return {.ranks = holder.ranks};
  }
  return {observed().UnitsAreTokens() ? "token" : "expert", global_unit, holder.ranks};
}

void TensorMeter::Fail(const ObservedTensor::Holder& holder) {
  tensor_.is_wrong = true;
  for (const std::int64_t rank : holder.ranks) {
    if (std::find(tensor_.ranks.begin(), tensor_.ranks.end(), rank) == tensor_.ranks.end()) {
      tensor_.ranks.push_back(rank);
    }
  }
}

void TensorMeter::NoteAbsurdity(const ObservedTensor::Holder& holder, std::int64_t global_unit,
                                const std::vector<double>& got) {
  const auto place =
      std::find_if(got.begin(), got.end(), [](double v) { return !(std::abs(v) < kAbsurd); });
  if (place == got.end()) {
    return;
  }
  Fail(holder);
  if (tensor_.absurd) {
    return;
  }
  // The element's global indices: the unit's, then those of its place within the unit.
  std::vector<std::int64_t> index;
  std::int64_t offset = place - got.begin();
  for (std::size_t dim = holder.slice.index.size(); dim-- > (observed().HasUnits() ? 1U : 0U);) {
    const auto& held = holder.slice.index[dim];
    index.insert(index.begin(), held[static_cast<std::size_t>(offset) % held.size()]);
    offset /= static_cast<std::int64_t>(held.size());
  }
  if (observed().HasUnits()) {
    index.insert(index.begin(), global_unit);
  }
  tensor_.absurd = {.index = std::move(index), .ranks = holder.ranks, .got = *place};
}

void TensorMeter::CompareReplicas(const Held& held, std::int64_t global_unit) {
  std::vector<Axis> replicating;
  for (const Axis axis : observed().mesh().axes) {
    if (PlacementOn(observed().claim().placements, axis).kind == Placement::Kind::kReplicate) {
      replicating.push_back(axis);
    }
  }
  const auto& holders = observed().holders();
  std::map<std::size_t, std::size_t> place_of;  // of a holder, among those that have the unit
  for (std::size_t i = 0; i < held.holders.size(); ++i) {
    place_of[held.holders[i]] = i;
  }
  for (const auto& [first, i] : place_of) {
    const auto replicas = observed().Replicas(first, observed().mesh(), replicating);
    if (replicas.empty() || replicas.front() != first) {
      continue;  // compared with the first of its group already
    }
    for (const std::size_t replica : replicas) {
      const auto place = place_of.find(replica);
      if (replica == first || place == place_of.end()) {
        continue;
      }
      const double known = tensor_.replicas ? tensor_.replicas->difference : 0.0;
      if (const double norm = Distance(held.got[place->second], held.got[i]);
          norm > std::max(known, 2.0 * held.allowed[i])) {
        tensor_.replicas = {norm, holders[first].ranks, holders[replica].ranks,
                            PlaceOf(global_unit, holders[replica])};
      }
    }
  }
}

void TensorMeter::AddFigures(double error, double want_norm, double deviation_norm,
                             double worst_case_norm) {
  const auto over = [error](double bound) {
    return error == 0.0 ? 0.0 : bound > 0.0 ? error / bound : INFINITY;
  };
  TensorFigures& figures = tensor_.figures;
  figures.ratio = std::max(figures.ratio, over(deviation_norm));
  if (options_.worst_case) {
    figures.worst_case_ratio = std::max(figures.worst_case_ratio, over(worst_case_norm));
  }
  if (want_norm > 0.0) {
    figures.detectable_scale =
        std::min(figures.detectable_scale,
                 DetectableScale(AllowedError(want_norm, deviation_norm) / want_norm,
                                 deviation_norm / want_norm));
  }
  if (kSafety * deviation_norm < kLargestUsefulTolerance * want_norm) {
    figures.bound = std::max(figures.bound, deviation_norm / want_norm);
    figures.worst_case = std::max(figures.worst_case, worst_case_norm / want_norm);
    figures.error = std::isfinite(error) ? std::max(figures.error, error / want_norm) : INFINITY;
    figures.useful_ratio = std::max(figures.useful_ratio, over(deviation_norm));
  }
}

void TensorMeter::AddUnit(std::int64_t global_unit, const Matrix& value, const Matrix& deviation,
                          const Matrix& worst_case) {
  Held held;
  for (std::size_t h = 0; h < observed().holders().size(); ++h) {
    const ObservedTensor::Holder& holder = observed().holders()[h];
    const std::int64_t local = observed().LocalUnit(holder, global_unit);
    if (local < 0) {
      continue;
    }
    std::vector<double> got = observed().ReadUnit(holder, local);
    if (got.empty()) {
      continue;
    }
    // The unit's own dimensions are the last one or two of the slice.
    const auto& index = holder.slice.index;
    const std::size_t dims = index.size() - (observed().HasUnits() ? 1 : 0);
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
    NoteAbsurdity(holder, global_unit, got);
    // Not a number is as wrong as can be, and decides no comparison by itself.
    const double distance = Distance(got, want);
    const double error = std::isnan(distance) ? INFINITY : distance;
    const double want_norm = Norm(want);
    const double deviation_norm = tensor_.is_exact ? 0.0 : Norm(sd);
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
    tensor_.telling_units +=
        kSafety * deviation_norm < kLargestTellingTolerance * want_norm ? 1 : 0;
    AddFigures(error, want_norm, deviation_norm, Norm(worst));
    scale_.Add(got, want);
    const double relative = want_norm > 0.0 ? error / want_norm : (error > 0.0 ? INFINITY : 0.0);
    for (const std::int64_t rank : holder.ranks) {
      tensor_.error_of_rank[rank] = std::max(tensor_.error_of_rank[rank], relative);
    }
    // Where nothing may be off elements are compared, since squares of tiny ones are zero.
    const bool wrong = tensor_.is_exact ? got != want : !(error <= allowed);
    if (wrong) {
      Fail(holder);
    }
    const double excess = allowed > 0.0 ? error / allowed : (error > 0.0 ? INFINITY : 0.0);
    if (!has_worst_ || excess > worst_excess_) {
      has_worst_ = true;
      worst_excess_ = excess;
      tensor_.worst = PlaceOf(global_unit, holder);
      tensor_.error = relative;
      tensor_.tolerance = want_norm > 0.0 ? allowed / want_norm : allowed;
    }
    held.holders.push_back(h);
    held.got.push_back(std::move(got));
    // A fault may round where a correct step does not: a mean over 3 ranks. Causes allow for that.
    const double slack = tensor_.is_exact ? kSafety * UnitRoundoff(dtype_) * want_norm : allowed;
    held.allowed.push_back(slack);
    tensor_.units[h][static_cast<std::size_t>(local)] = {
        error, want_norm, tensor_.is_exact ? UnitRoundoff(dtype_) * want_norm : deviation_norm,
        slack, wrong};
  }
  if (!tensor_.absurd && tensor_.is_wrong) {
    CompareReplicas(held, global_unit);
  }
}

// The tensor as a whole, once every unit of it was within its own tolerance.
void TensorMeter::MeasureScale() {
  const double error = scale_.error();
  // A foreign step may round in one direction, by up to a unit in each of the four tensors that are
  // stored on the way to a gradient; of the built-in one it is known that it does not.
  const double truncation = options_.is_foreign ? 4.0 * coarsest_unit_ : 0.0;
  const double allowed = kScaleSafety * scale_.deviation() + truncation;
  TensorFigures& figures = tensor_.figures;
  figures.scale_bound = kScaleBound * scale_.deviation();
  figures.scale_ratio = error == 0.0 ? 0.0 : std::abs(error) / figures.scale_bound;
  figures.detectable_scale =
      std::min(figures.detectable_scale, DetectableScale(allowed, figures.scale_bound));
  if (tensor_.is_wrong || std::abs(error) <= allowed) {
    return;
  }
  for (const ObservedTensor::Holder& holder : observed().holders()) {
    Fail(holder);
  }
  tensor_.error = std::abs(error);
  tensor_.tolerance = allowed;
  tensor_.scale = {
      .error = error,
      .allowed = allowed,
      .is_wrong = true,
      .elementwise = std::sqrt(error_squares_ / want_squares_),
      .leaves_rounding = error_squares_ - error * error * want_squares_ <= deviation_squares_,
      .spread = unit_factors_.count > 0.0 ? unit_factors_.Spread(error) : 0.0};
}

MeasuredTensor TensorMeter::Finish() && {
  MeasureScale();
  std::sort(tensor_.ranks.begin(), tensor_.ranks.end());
  tensor_.want_norm = std::sqrt(want_squares_);
  return std::move(tensor_);
}

}  // namespace moe
