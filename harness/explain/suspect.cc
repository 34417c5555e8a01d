#include "harness/explain/suspect.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "harness/base/dtype.h"
#include "harness/measure/tolerance.h"

namespace moe {
namespace {

constexpr double kLevel = 2.0 * kSafety;

double Excess(double error, double allowed) {
  if (error == 0.0) {
    return 0.0;
  }
  return allowed > 0.0 && std::isfinite(error) ? error / allowed : INFINITY;
}

}  // namespace

Suspect::Suspect(const MeasuredTensor& tensor, const Manifest& manifest, Ledger& ledger)
    : tensor_(tensor), manifest_(manifest), ledger_(ledger) {
  const auto& holders = observed().holders();
  wrong_holders_.assign(holders.size(), false);
  std::map<std::vector<std::vector<std::int64_t>>, double> copies;
  for (std::size_t holder = 0; holder < holders.size(); ++holder) {
    copies[holders[holder].slice.index] += 1.0;
    if (NumElements(holders[holder].slice.LocalShape()) == 0) {
      continue;
    }
    Place whole{.holder = holder};
    for (std::size_t unit = 0; unit < tensor.units[holder].size(); ++unit) {
      const MeasuredTensor::Unit& measured = tensor.units[holder][unit];
      const double excess = Excess(measured.error, measured.allowed);
      wrong_holders_[holder] = wrong_holders_[holder] || measured.is_wrong;
      whole.excess = std::max(whole.excess, excess);
      whole.is_wrong = whole.is_wrong || measured.is_wrong;
      if (IsExpertWeight(name())) {
        places_.push_back({holder, static_cast<std::int64_t>(unit), excess, measured.is_wrong});
      }
    }
    if (!IsExpertWeight(name())) {
      places_.push_back(whole);
    }
  }
  // What is wrong on its own comes before what is wrong somewhere else only.
  std::stable_sort(places_.begin(), places_.end(), [&](const Place& a, const Place& b) {
    const bool a_wrong = wrong_holders_[a.holder];
    const bool b_wrong = wrong_holders_[b.holder];
    return a_wrong != b_wrong ? a_wrong : a.excess > b.excess;
  });
  pieces_.resize(places_.size());
  for (const ObservedTensor::Holder& holder : holders) {
    weights_.push_back(1.0 / copies.at(holder.slice.index));
  }
}

bool Suspect::AllHoldersAreWrong() const {
  return std::all_of(places_.begin(), places_.end(),
                     [&](const Place& place) { return wrong_holders_[place.holder]; });
}

const Piece& Suspect::Load(std::size_t index) const {
  constexpr std::size_t kMostKept = std::size_t{1} << 24;  // numbers, 256 MiB with the reference
  std::optional<Piece>& kept = pieces_[index];
  if (kept) {
    return *kept;
  }
  Piece piece = Read(index);
  if (kept_ > kMostKept) {
    Piece& spare = spare_[next_spare_++ % spare_.size()];
    spare = std::move(piece);
    return spare;
  }
  kept_ += piece.got.size();
  return kept.emplace(std::move(piece));
}

Piece Suspect::Read(std::size_t index) const {
  const Place& place = places_[index];
  const ObservedTensor::Holder& holder = observed().holders()[place.holder];
  Piece piece{.index = index,
              .holder = place.holder,
              .local_expert = place.local_expert,
              .slice = holder.slice,
              .is_wrong = place.is_wrong,
              .weight = weights_[place.holder]};
  const auto& units = tensor_.units[place.holder];
  const auto add_unit = [&](const MeasuredTensor::Unit& unit) {
    piece.deviation.push_back(unit.deviation);
    piece.unit_is_wrong.push_back(unit.is_wrong);
  };
  if (place.local_expert >= 0) {
    piece.slice.index[0] = {holder.slice.index[0][static_cast<std::size_t>(place.local_expert)]};
    piece.got = observed().ReadUnit(holder, place.local_expert);
    add_unit(units[static_cast<std::size_t>(place.local_expert)]);
  } else {
    for (std::int64_t unit = 0; unit < observed().UnitsOf(holder); ++unit) {
      const std::vector<double> values = observed().ReadUnit(holder, unit);
      piece.got.insert(piece.got.end(), values.begin(), values.end());
    }
    std::for_each(units.begin(), units.end(), add_unit);
  }
  piece.unit_size = piece.got.size() / piece.Units();
  piece.want = WholeAt(piece.slice);
  return piece;
}

std::vector<double> WholeOf(Ledger& ledger, const std::string& tensor, const Slice& slice) {
  std::vector<double> whole(static_cast<std::size_t>(NumElements(slice.LocalShape())), 0.0);
  for (const std::string& path : ledger.PathsOf(tensor)) {
    const std::vector<double> part = ledger.Whole(tensor, path, slice);
    std::transform(whole.begin(), whole.end(), part.begin(), whole.begin(), std::plus<>());
  }
  return whole;
}

std::vector<double> Suspect::WholeAt(const Slice& slice) const {
  return WholeOf(ledger_, name(), slice);
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

bool Suspect::Add(const Piece& piece, const Prediction& prediction, Misfit& misfit) const {
  const double unit_roundoff = UnitRoundoff(manifest_.dtype);
  const auto elements = static_cast<double>(piece.unit_size);
  for (std::size_t unit = 0; unit < piece.Units(); ++unit) {
    const std::size_t begin = unit * piece.unit_size;
    const std::size_t end = begin + piece.unit_size;
    double want = 0.0;
    double size = 0.0;
    for (std::size_t i = begin; i < end; ++i) {
      want += piece.want[i] * piece.want[i];
      size += prediction.values[i] * prediction.values[i];
    }
    want = std::sqrt(want);
    size = std::sqrt(size);
    // Larger values round by more; where zeros are wanted, only what is predicted rounds.
    const double of_right = piece.deviation[unit];
    const double grown = want > 0.0 ? std::max(1.0, size / want) : 1.0;
    const double deviation = of_right > 0.0 ? of_right * grown : unit_roundoff * size;
    const double of_element = deviation / std::sqrt(elements);
    double left = 0.0;  // squares, of what is predicted
    double chi2 = 0.0;
    double nats = of_right > 0.0 ? elements * std::log(grown) : 0.0;
    double predicted = 0.0;
    double freed = 0.0;
    double free_squares = 0.0;
    for (std::size_t i = begin; i < end; ++i) {
      const double d = piece.got[i] - prediction.values[i];
      if (!prediction.free.empty() && prediction.free[i]) {
        freed += 1.0;
        free_squares += d * d;
        misfit.is_exact = false;
        continue;
      }
      predicted += 1.0;
      misfit.is_exact = misfit.is_exact && d == 0.0;
      left += d * d;
      if (!prediction.noise.empty()) {
        const double own = of_element > 0.0 ? of_element : unit_roundoff * std::abs(piece.want[i]);
        const double sd = std::hypot(own, prediction.noise[i]);
        if (sd > 0.0) {
          chi2 += d * d / (sd * sd);
          nats += own > 0.0 ? std::log(sd / own) : 0.0;
        } else if (d != 0.0) {
          return false;
        }
      }
    }
    const double difference = std::sqrt(left);
    if (prediction.noise.empty()) {
      if (!(difference <= kLevel * deviation)) {
        return false;
      }
      chi2 = deviation > 0.0 ? left / (of_element * of_element) : 0.0;
      misfit.is_quiet = misfit.is_quiet && freed == 0.0 && difference <= deviation;
    } else {
      if (!(chi2 <= kLevel * std::max(1.0, predicted))) {
        return false;
      }
      misfit.is_quiet = false;
    }
    nats += 0.5 * chi2;
    if (freed > 0.0) {
      const double rms = std::sqrt(free_squares / freed);
      const double finest = of_element > 0.0 ? of_element : unit_roundoff * rms;
      nats += rms > 0.0 ? freed * (std::log(std::max(1.0, rms / finest)) + 0.5) : 0.0;
    }
    misfit.nats += piece.weight * nats;
    if (want > 0.0 && predicted > 0.0) {
      misfit.residual = std::max(misfit.residual, difference / std::max(want, size));
    }
  }
  return std::isfinite(misfit.nats);
}

}  // namespace moe
