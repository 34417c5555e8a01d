// What a rank holds as a combination of shares, by least squares: how often each is in it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "harness/explain/sum_causes.h"

namespace moe {

// A fit whose shares are nearer to one another than this cannot be trusted.
inline constexpr double kLargestCondition = 1e4;

struct ShareFit {
  std::vector<double> times;  // by coordinate along the axes; empty where they cannot be known
  double residual = 0.0;      // relative
  double condition = 0.0;
  std::optional<TooSmall> obstacle;  // why the shares cannot be told apart
};

// The shares along `path` (empty: all paths), what comes along the others taken as right.
ShareFit FitShares(const SumCauses& sums, const Suspect& suspect, const Piece& piece,
                   const SumCauses::Plan& plan, const std::vector<Axis>& axes,
                   const std::string& path = "");

// What wrong ranks at different places along the axes hold, for a cause that speaks of shares.
std::vector<HeldShares> SharesHeld(const SumCauses& sums, const Suspect& suspect,
                                   const SumCauses::Plan& plan, const Explanation& explanation);

// What the worst wrong rank holds, as far as it can be known.
std::optional<HeldShares> SharesHeldAt(const SumCauses& sums, const Suspect& suspect,
                                       const Piece& piece, const SumCauses::Plan& plan,
                                       const std::vector<Axis>& axes, const std::string& path);

// Whole numbers of every rank's share, with some of them missing or some of them doubled: those
// that the worst rank holds.
std::vector<Fit> FindRanksOfShares(const SumCauses& sums, const Suspect& suspect);

// A tensor of one number, or none that is not zero, fits any factor; empty when it has more.
std::optional<TooSmall> TooFewElements(const Piece& piece);

}  // namespace moe
