#include "reference/expert_kind.h"

#include <cmath>

#include "reference/arithmetic.h"

namespace moe::reference {
namespace {

// From here on sigmoid is exactly 1, and at its negative exactly 0, in float64 and so in float32:
// exp(-2^10) underflows in both.
constexpr double kSaturated = 1024.0;

double Silu(double u) {
  return u * Sigmoid(u);
}

// silu'(u) = s + u s (1 - s) with s = sigmoid(u).
double SiluSlope(double u) {
  const double s = Sigmoid(u);
  return s + u * SigmoidSlopeOf(s);
}

// silu''(u) = s (1 - s) (2 + u (1 - 2 s)).
double SiluCurvature(double u) {
  const double s = Sigmoid(u);
  return SigmoidSlopeOf(s) * (2.0 + u * (1.0 - 2.0 * s));
}

// The two terms of silu', which cancel near u = -1.28.
double SiluSlopeSize(double u) {
  const double s = Sigmoid(u);
  return s + std::abs(u) * SigmoidSlopeOf(s);
}

}  // namespace

ExpertKind SwiGlu() {
  return {.a = {.name = "SiLU",
                .value = Silu,
                .slope = SiluSlope,
                .curvature = SiluCurvature,
                .size = Silu,
                .slope_size = SiluSlopeSize,
                .is_exact = [](double u) { return u == 0.0 || std::abs(u) >= kSaturated; },
                .exact_where = "0 or at least 1024 in magnitude"},
          .b = std::nullopt};
}

}  // namespace moe::reference
