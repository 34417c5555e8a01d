#include "harness/explain/suspect.h"

#include <algorithm>
#include <cmath>

namespace moe {
namespace {

double Excess(double error, double allowed) {
  if (error == 0.0) {
    return 0.0;
  }
  return allowed > 0.0 ? error / allowed : INFINITY;
}

}  // namespace

Suspect::Suspect(const ObservedTensor& observed, const Measurement& measurement,
                 const Manifest& manifest, Ledger& ledger)
    : observed_(observed), measurement_(measurement), manifest_(manifest), ledger_(ledger) {
  const auto& holders = observed.holders();
  wrong_holders_.assign(holders.size(), false);
  for (std::size_t holder = 0; holder < holders.size(); ++holder) {
    if (NumElements(holders[holder].slice.LocalShape()) == 0) {
      continue;
    }
    const auto& errors = measurement.error[holder];
    Place whole{.holder = holder};
    for (std::size_t unit = 0; unit < errors.size(); ++unit) {
      const double excess = Excess(errors[unit], measurement.allowed[holder][unit]);
      const bool is_wrong = measurement.is_wrong[holder][unit];
      wrong_holders_[holder] = wrong_holders_[holder] || is_wrong;
      whole.excess = std::max(whole.excess, excess);
      whole.is_wrong = whole.is_wrong || is_wrong;
      if (IsExpertWeight(name())) {
        places_.push_back({holder, static_cast<std::int64_t>(unit), excess, is_wrong});
      }
    }
    if (!IsExpertWeight(name())) {
      places_.push_back(whole);
    }
  }
  std::stable_sort(places_.begin(), places_.end(),
                   [](const Place& a, const Place& b) { return a.excess > b.excess; });
}

Piece Suspect::Load(std::size_t index) const {
  const Place& place = places_[index];
  const ObservedTensor::Holder& holder = observed_.holders()[place.holder];
  Piece piece{.holder = place.holder,
              .local_expert = place.local_expert,
              .slice = holder.slice,
              .is_wrong = place.is_wrong};
  if (place.local_expert >= 0) {
    piece.slice.index[0] = {holder.slice.index[0][static_cast<std::size_t>(place.local_expert)]};
    piece.got = observed_.ReadUnit(holder, place.local_expert);
    piece.allowed = {
        measurement_.allowed[place.holder][static_cast<std::size_t>(place.local_expert)]};
  } else {
    for (std::int64_t unit = 0; unit < observed_.UnitsOf(holder); ++unit) {
      const std::vector<double> values = observed_.ReadUnit(holder, unit);
      piece.got.insert(piece.got.end(), values.begin(), values.end());
    }
    piece.allowed = measurement_.allowed[place.holder];
  }
  piece.unit_size = piece.got.size() / piece.allowed.size();
  piece.want = WholeAt(piece.slice);
  return piece;
}

std::vector<double> Suspect::WholeAt(const Slice& slice) const {
  std::vector<double> whole(static_cast<std::size_t>(NumElements(slice.LocalShape())), 0.0);
  for (const std::string& path : ledger_.PathsOf(name())) {
    const std::vector<double> part = ledger_.Whole(name(), path, slice);
    std::transform(whole.begin(), whole.end(), part.begin(), whole.begin(), std::plus<>());
  }
  return whole;
}

std::optional<Slice> Suspect::PlacesOn(const Piece& piece, std::int64_t rank) const {
  Slice slice = SliceOf(manifest_, name(), rank);
  if (piece.local_expert >= 0) {
    const auto local = static_cast<std::size_t>(piece.local_expert);
    if (local >= slice.index[0].size()) {
      return std::nullopt;
    }
    slice.index[0] = {slice.index[0][local]};
  }
  if (slice.LocalShape() != piece.slice.LocalShape()) {
    return std::nullopt;
  }
  return slice;
}

bool Suspect::Explains(const Piece& piece, const std::vector<double>& values,
                       FitQuality& quality) const {
  const double floor = 4.0 * UnitRoundoff(manifest_.dtype);  // of a unit that should be zero
  for (std::size_t unit = 0; unit < piece.Units(); ++unit) {
    double left = 0.0;
    double before = 0.0;
    double want = 0.0;
    double size = 0.0;
    for (std::size_t i = unit * piece.unit_size; i < (unit + 1) * piece.unit_size; ++i) {
      const double d = piece.got[i] - values[i];
      const double e = piece.got[i] - piece.want[i];
      left += d * d;
      before += e * e;
      want += piece.want[i] * piece.want[i];
      size += values[i] * values[i];
    }
    if (piece.is_wrong) {
      quality.left += left;
      quality.before += before;
    }
    const double difference = std::sqrt(left);
    want = std::sqrt(want);
    size = std::sqrt(size);
    const double allowed = piece.allowed[unit];
    const double limit = allowed > 0.0
                             ? 2.0 * allowed * (want > 0.0 ? std::max(1.0, size / want) : 1.0)
                             : floor * size;
    if (!(difference <= limit)) {
      return false;
    }
    if (want > 0.0) {
      quality.residual = std::max(quality.residual, difference / std::max(want, size));
    }
  }
  return true;
}

}  // namespace moe
