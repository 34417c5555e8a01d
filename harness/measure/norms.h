// L2 arithmetic on the values of one slice.
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

namespace moe {

inline double Dot(const std::vector<double>& x, const std::vector<double>& y) {
  double sum = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    sum += x[i] * y[i];
  }
  return sum;
}

inline double Norm(const std::vector<double>& x) {
  return std::sqrt(Dot(x, x));
}

// Norm of x - factor * y.
inline double Distance(const std::vector<double>& x, const std::vector<double>& y,
                       double factor = 1.0) {
  double sum = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double difference = x[i] - factor * y[i];
    sum += difference * difference;
  }
  return std::sqrt(sum);
}

}  // namespace moe
