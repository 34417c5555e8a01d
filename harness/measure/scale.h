// The scale of a tensor as a whole: all its slices vote on one factor. Rounding errors average out
// in it, so that it sees a wrong factor that no slice could tell from its own rounding.
#pragma once

#include <vector>

#include "reference/moe_reference.h"

namespace moe {

// Fits got = (1 + error) want over every slice of a tensor by least squares, and bounds what
// rounding may put into that error:
//   error = sum_i want_i (got_i - want_i) / sum_i want_i^2
// Units have independent errors, as in reference/arithmetic.h, so their variances add. Copies of a
// unit may all have the same error; every unit has as many, so that they change no quotient.
class ScaleFit {
 public:
  explicit ScaleFit(const reference::Rounding& rounding);

  // Adds what one holder has of a unit.
  void Add(const std::vector<double>& got, const std::vector<double>& want);
  // Adds the bound of one whole unit or, where the estimate of the tensor has a projection
  // variance, of the tensor. Without one all errors of the unit may have one cause, and their part
  // in the sum is at most |value| |deviation|.
  void AddBound(const reference::Estimate& whole);

  // The fitted factor minus 1; 0 where the reference is 0.
  double error() const;
  // What its standard deviation is at most; 0 where the reference is 0. The sum of so many errors
  // is normal, and each rounding uniform within its unit u, of variance u^2 / 3, so that this is a
  // deviation of the model (which takes u itself) over sqrt(3).
  double deviation() const;

 private:
  double systematic_;
  double want_squares_ = 0.0;
  double error_dot_want_ = 0.0;
  double bound_squares_ = 0.0;  // of what has a bound, each unit counted once
  double variance_ = 0.0;       // of their projected errors
};

}  // namespace moe
