// What a hypothesis costs, in nats, before any number is looked at. One rule ranks all of them
// (decide.h): misfit + cost, the smallest wins. These are the only constants of that rule.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace moe {

// A fault more in the same step is a thousand times less likely than one that explains it all.
inline const double kFaultCost = std::log(1000.0);

// Each step that makes a story longer than "this sum, over this axis" (a second axis, one path
// alone, some ranks alone, ranks instead of an axis, a factor without a place) makes it twenty
// times less likely.
inline const double kLongerCost = std::log(20.0);

// Right values in wrong places, other values, another formula: rarer than sums and factors, which a
// step has many of.
inline const double kRareCost = 2.0 * kLongerCost;

// Not to know is the last resort, for every tensor anew. Errors like those of coarse arithmetic say
// little in one tensor alone: there not to know is cheaper, in two it is not.
inline const double kUnexplainedCost = 4.0 * kLongerCost;
inline const double kCoarseCost = 5.0 * kLongerCost;

// A call log that shows a sum, or shows that it was not made, errs once in a million times.
inline const double kWitnessOdds = std::log(1e6);

// Hypotheses whose odds are nearer to one another than 10 : 1 are told as ambiguous.
inline const double kAmbiguousOdds = std::log(10.0);

// A choice among so many.
inline double ChoiceCost(std::size_t choices) {
  return choices > 1 ? std::log(static_cast<double>(choices)) : 0.0;
}

// The axes of a tensor's own view are what its sums go over; those of the other view explain what
// they cannot.
inline const double kOtherViewCost = 6.0 * kLongerCost;

// One axis of either view.
inline const double kAxisCost = ChoiceCost(8);

// A number that was fitted to `values` others: half their logarithm, and how many distinguishable
// values it might have had, of which it can tell one of size `size` apart to `deviation`.
inline double FittedCost(std::size_t values, double size, double deviation) {
  const double resolution = deviation > 0.0 ? std::abs(size) / deviation : 1e16;
  return 0.5 * ChoiceCost(values) + std::log(std::max(2.0, resolution));
}

}  // namespace moe
