#include "harness/measure/scale.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace moe {
namespace {

// Approximations of exp have errors of one sign over whole ranges of their argument, which do not
// average out. A sigmoid or softmax is off by at most this many units (reference/router.cc).
constexpr double kFunctionUnits = 4.0;

}  // namespace

ScaleFit::ScaleFit(const reference::Rounding& rounding)
    : systematic_(kFunctionUnits * std::max(rounding.accumulate, rounding.scores)) {}

void ScaleFit::Add(const std::vector<double>& got, const std::vector<double>& want) {
  for (std::size_t i = 0; i < want.size(); ++i) {
    error_dot_want_ += want[i] * (got[i] - want[i]);
    want_squares_ += want[i] * want[i];
  }
}

void ScaleFit::AddBound(const reference::Estimate& whole) {
  const double squares = whole.value.squaredNorm();
  bound_squares_ += squares;
  variance_ += whole.projection_variance > 0.0 ? whole.projection_variance
                                               : squares * whole.deviation.squaredNorm();
}

double ScaleFit::error() const {
  return want_squares_ > 0.0 ? error_dot_want_ / want_squares_ : 0.0;
}

double ScaleFit::deviation() const {
  return bound_squares_ > 0.0 ? std::sqrt(variance_ / 3.0) / bound_squares_ + systematic_ : 0.0;
}

}  // namespace moe
