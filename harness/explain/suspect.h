// A tensor that failed, laid out for the diagnosis: what its holders hold, what they should, and by
// how much they may be off, in pieces that are small enough to look at one by one.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "harness/base/dtype.h"
#include "harness/explain/ledger.h"
#include "harness/measure/observed.h"

namespace moe {

// What the judge measured of one tensor, by holder and local unit; L2 norms.
struct Measurement {
  std::vector<std::vector<double>> allowed;  // by rounding, of whatever gives such values
  std::vector<std::vector<double>> error;
  std::vector<std::vector<bool>> is_wrong;
};

// One expert of a holder's slice, or the whole of it where the tensor is no expert weight.
struct Piece {
  std::size_t holder = 0;
  std::int64_t local_expert = -1;  // place in the slice; -1: the whole slice
  Slice slice;
  std::vector<double> got;
  std::vector<double> want;
  std::size_t unit_size = 1;    // values per unit; units are judged one by one
  std::vector<double> allowed;  // per unit, L2
  bool is_wrong = false;        // some unit is off by more

  std::size_t Units() const { return allowed.size(); }
};

// How well an explanation fits the pieces that it was asked about.
struct FitQuality {
  double residual = 0.0;  // largest relative difference that it leaves in a unit
  // Squared differences in wrong pieces: what it leaves, and what there is without it.
  double left = 0.0;
  double before = 0.0;

  // Near the tolerance nearly right values are within rounding of many things: an explanation must
  // take away most of the error too.
  bool Helps() const { return before > 0.0 && left <= 0.25 * before; }
};

class Suspect {
 public:
  // All must outlive this.
  Suspect(const ObservedTensor& observed, const Measurement& measurement, const Manifest& manifest,
          Ledger& ledger);

  const std::string& name() const { return observed_.name(); }
  const ObservedTensor& observed() const { return observed_; }
  const Manifest& manifest() const { return manifest_; }
  const Mesh& mesh() const { return observed_.mesh(); }
  Ledger& ledger() const { return ledger_; }

  // Wrong ones first, the worst of all at the front; pieces without elements are left out.
  std::size_t Pieces() const { return places_.size(); }
  Piece Load(std::size_t index) const;
  // Without reading any value.
  std::size_t HolderOf(std::size_t index) const { return places_[index].holder; }
  bool IsWrong(std::size_t index) const { return places_[index].is_wrong; }
  bool HolderIsWrong(std::size_t holder) const { return wrong_holders_[holder]; }

  // The pieces of holders that are wrong, one after the other, until `visit` says false, which it
  // then returns; true when all were visited.
  template <typename Visit>
  bool ForEachWrong(const Visit& visit) const {
    for (std::size_t index = 0; index < Pieces(); ++index) {
      if (HolderIsWrong(HolderOf(index)) && !visit(Load(index))) {
        return false;
      }
    }
    return true;
  }

  // Where rank `rank`'s slice has the places of `piece`; nothing when it has no such places.
  std::optional<Slice> PlacesOn(const Piece& piece, std::int64_t rank) const;
  std::vector<double> WholeAt(const Slice& slice) const;

  // Whether `values` are what the piece holds, unit by unit, up to rounding; adds to `quality`.
  bool Explains(const Piece& piece, const std::vector<double>& values, FitQuality& quality) const;

 private:
  struct Place {
    std::size_t holder = 0;
    std::int64_t local_expert = -1;
    double excess = 0.0;
    bool is_wrong = false;
  };

  const ObservedTensor& observed_;
  const Measurement& measurement_;
  const Manifest& manifest_;
  Ledger& ledger_;
  std::vector<Place> places_;
  std::vector<bool> wrong_holders_;
};

}  // namespace moe
