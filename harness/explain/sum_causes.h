// Which fault of which sum over ranks would leave exactly the values that a tensor holds.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "harness/explain/hypothesis.h"
#include "harness/explain/sum_table.h"
#include "harness/explain/suspect.h"
#include "harness/layout/step_contract.h"

namespace moe {

// Paths of a tensor that a fault of one sum can reach, all of them first: where the contract is
// known, those along which it makes sums of their own. A mark per path of the ledger.
std::vector<std::vector<bool>> PathSubsetsOf(const Suspect& suspect, const StepContract* contract);

// The same of the sums over etp inside the step that folding owes (d_routed_ND@etp,
// y_routed_ND@etp), which are behind the routed experts; empty where they have no part in the
// tensor.
std::vector<std::vector<bool>> PathSubsetsOfEtp(const Suspect& suspect);

// "routed and gate"; empty for all of them.
std::string PathText(const std::vector<std::string>& paths, const std::vector<bool>& affected);

class SumCauses {
 public:
  // `contract` may be null: which sums the producer owes, and in which order, is then not known.
  SumCauses(const Suspect& suspect, const StepContract* contract);

  // All that the values do not refute.
  std::vector<Fit> Find();

  // Axes over which shares of the tensor are summed in a right step, under a spread that adds up;
  // nothing where the shares cannot be known.
  struct Plan {
    Spread spread = Spread::kTokens;
    std::vector<Axis> sums;
  };
  const std::vector<Plan>& plans() const { return plans_; }

  // Shares of a piece along `path` (empty: all), summed over the ranks that agree on `axes`: by
  // coordinate. Along an axis that cuts the tensor it is what those ranks have at the same places
  // of their own slices. `axes` must not be empty. Coordinates whose share cannot be known are left
  // out: then there are fewer than ranks in the group.
  std::vector<std::vector<double>> SharesAlong(const Piece& piece, const Plan& plan,
                                               const std::vector<Axis>& axes,
                                               const std::string& path = "") const;
  // What a right step gives along the other paths.
  std::vector<double> RestOf(const Piece& piece, const std::string& path) const;
  // What each share along `axes`, which must not be empty, comes from.
  struct Tokens {
    double tokens = 0.0;  // how many,
    double rows = 0.0;   // of an expert weight: how many of their slots go to the holder's experts,
    double slots = 0.0;  // and how many to the piece's expert
  };
  std::vector<Tokens> TokensAlong(const Piece& piece, const Plan& plan,
                                  const std::vector<Axis>& axes) const;

 private:
  // Shares of one piece, computed when first asked for: by path, then by rank.
  struct Shares {
    const Piece* piece = nullptr;
    std::size_t index = 0;  // of the piece
    Spread spread = Spread::kTokens;
    std::vector<std::vector<std::optional<std::vector<double>>>> of;
  };

  void FindPlans();
  void FindPlanOfSlices(Spread spread);
  std::vector<bool> AffectedBy(const std::string& path) const;
  bool AddsUp(const Plan& plan) const;
  bool Cuts(Axis axis) const;
  std::vector<std::vector<bool>> SumSubsets(Spread spread) const;
  std::vector<Axis> InOrder(std::vector<Axis> sums) const;
  std::int64_t HolderOf(const Piece& piece) const;
  std::int64_t SliceRankOf(const Plan& plan, std::int64_t holder, std::int64_t source) const;
  const std::vector<double>* ShareOf(Shares& shares, const Plan& plan, std::size_t path,
                                     std::int64_t source) const;
  bool AddShares(Shares& shares, const Plan& plan, std::size_t path, const SumTable::Row& held,
                 std::vector<double>& values) const;
  // `changed`, where it is wanted: on which of the affected paths what is held is not what is
  // right.
  std::optional<std::vector<double>> Predict(Shares& shares, const Plan& plan,
                                             const SumTable::Row& held, const SumTable::Row& right,
                                             const std::vector<bool>& affected,
                                             std::vector<bool>* changed = nullptr) const;
  double CostOf(const Plan& plan, const Explanation& explanation) const;
  std::vector<Fit> Try(const Plan& plan, const std::vector<SumHypothesis>& hypotheses,
                       const SumTable& right) const;

  const Suspect& suspect_;
  const StepContract* contract_;
  std::vector<std::string> paths_;
  std::vector<Plan> plans_;
};

}  // namespace moe
