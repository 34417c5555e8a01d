// A tensor that failed, laid out for the diagnosis: what its holders hold, what they should, and
// what rounding may do to it, in pieces that are small enough to look at one by one; and how badly
// a prediction misfits a piece.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "harness/explain/ledger.h"
#include "harness/measure/measured.h"

namespace moe {

// One expert of a holder's slice, or the whole of it where the tensor is no expert weight.
struct Piece {
  std::size_t index = 0;  // among the suspect's
  std::size_t holder = 0;
  std::int64_t local_expert = -1;  // place in the slice; -1: the whole slice
  Slice slice;
  std::vector<double> got;
  std::vector<double> want;
  std::size_t unit_size = 1;      // values per unit; units are judged one by one
  std::vector<double> deviation;  // per unit, L2: what rounding does to a right one
  std::vector<bool> unit_is_wrong;
  bool is_wrong = false;  // some unit is off by more
  double weight = 1.0;    // one over the number of holders of these places: copies say it once

  std::size_t Units() const { return deviation.size(); }
};

// What a hypothesis says of one piece.
struct Prediction {
  std::vector<double> values;
  std::vector<bool> free;     // elements of which it says nothing; empty: none
  std::vector<double> noise;  // standard deviations that it adds, by element; empty: none
};

// What a hypothesis leaves of the pieces that it was tested on.
struct Misfit {
  // Minus the logarithm of the likelihood, over that of values that are right: chi2 / 2 over the
  // derived deviations; and for every element of which nothing is predicted, the logarithm of how
  // far off it is.
  double nats = 0.0;
  double residual = 0.0;  // largest relative difference that it leaves in a unit
  bool is_quiet = true;   // no unit is off by more than the deviation of a right one
  bool is_exact = true;   // bit for bit
};

class Suspect {
 public:
  // All must outlive this.
  Suspect(const MeasuredTensor& tensor, const Manifest& manifest, Ledger& ledger);

  const std::string& name() const { return tensor_.name(); }
  const MeasuredTensor& measured() const { return tensor_; }
  const ObservedTensor& observed() const { return tensor_.observed; }
  const Manifest& manifest() const { return manifest_; }
  const Mesh& mesh() const { return tensor_.observed.mesh(); }
  Ledger& ledger() const { return ledger_; }

  // Wrong ones first, the worst of all at the front; pieces without elements are left out.
  std::size_t Pieces() const { return places_.size(); }
  // Good until many more were loaded.
  const Piece& Load(std::size_t index) const;
  // Without reading any value.
  std::size_t HolderOf(std::size_t index) const { return places_[index].holder; }
  std::int64_t LocalExpertOf(std::size_t index) const { return places_[index].local_expert; }
  bool IsWrong(std::size_t index) const { return places_[index].is_wrong; }
  bool HolderIsWrong(std::size_t holder) const { return wrong_holders_[holder]; }
  bool AllHoldersAreWrong() const;

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

  // Adds what the prediction leaves of the piece. False, and then of no further use, when a unit is
  // off by more than rounding could do: the judge's own tolerance, twice, since what a fault has
  // made was rounded in other places than what is right.
  bool Add(const Piece& piece, const Prediction& prediction, Misfit& misfit) const;

 private:
  struct Place {
    std::size_t holder = 0;
    std::int64_t local_expert = -1;
    double excess = 0.0;
    bool is_wrong = false;
  };

  Piece Read(std::size_t index) const;

  const MeasuredTensor& tensor_;
  const Manifest& manifest_;
  Ledger& ledger_;
  std::vector<Place> places_;
  std::vector<bool> wrong_holders_;
  std::vector<double> weights_;                       // by holder
  mutable std::vector<std::optional<Piece>> pieces_;  // as far as they fit in memory
  mutable std::size_t kept_ = 0;                      // numbers in them
  mutable std::array<Piece, 64> spare_;               // beyond that, the last ones that were read
  mutable std::size_t next_spare_ = 0;
};

// What the tensor is by `ledger`, all paths together.
std::vector<double> WholeOf(Ledger& ledger, const std::string& tensor, const Slice& slice);

}  // namespace moe
