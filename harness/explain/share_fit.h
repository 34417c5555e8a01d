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
  std::vector<double> times;  // by coordinate along the axes
  double residual = 0.0;      // relative
  double condition = 0.0;
  std::string obstacle;  // why the shares cannot be told apart, and what would do; else empty
  std::string text;      // "rank 0 holds the share of tp=0 once and of tp=1 not at all (...)"
};

// The shares along `path` (empty: all paths), what comes along the others taken as right.
ShareFit FitShares(const SumCauses& sums, const Suspect& suspect, const Piece& piece,
                   const SumCauses::Plan& plan, const std::vector<Axis>& axes,
                   const std::string& path = "");

// Sentences on what wrong ranks hold, for a cause that speaks of shares.
std::vector<std::string> DescribeShares(const SumCauses& sums, const Suspect& suspect,
                                        const SumCauses::Plan& plan,
                                        const Explanation& explanation);

// Whether whole numbers of every rank's share give what the wrong ranks hold, with some of them
// missing or some of them doubled.
std::optional<Fit> FindRanksOfShares(const SumCauses& sums, const Suspect& suspect);

// A tensor of one number, or none that is not zero, fits any factor: says so; empty when it has
// more.
std::string TooFewElements(const Piece& piece);

}  // namespace moe
