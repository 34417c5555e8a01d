#include "harness/explain/precision_causes.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <set>

#include "harness/base/tensor_table.h"
#include "harness/explain/costs.h"
#include "harness/explain/factor_causes.h"
#include "harness/measure/norms.h"
#include "harness/measure/tolerance.h"

namespace moe {
namespace {

int SignificantBits(double value) {
  int exponent = 0;
  const double mantissa = std::frexp(value, &exponent);
  auto whole = static_cast<std::int64_t>(std::ldexp(std::abs(mantissa), 53));
  if (whole == 0) {
    return 0;
  }
  int bits = 53;
  for (; (whole & 1) == 0; whole >>= 1) {
    --bits;
  }
  return bits;
}

double RoundedTo(int bits, double value) {
  int exponent = 0;
  const double mantissa = std::frexp(value, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(mantissa, bits)), exponent - bits);
}

}  // namespace

std::vector<Fit> FindCoarseStorage(const Suspect& suspect) {
  if (suspect.name() == tensor::tokens_per_expert_E) {
    return {};  // small whole numbers, which nobody rounded
  }
  const double dtype_bits = -std::log2(UnitRoundoff(suspect.manifest().dtype));
  int bits = 0;
  suspect.ForEachWrong([&](const Piece& piece) {
    for (const double value : piece.got) {
      bits = std::max(bits, SignificantBits(value));
    }
    return bits <= 0.75 * dtype_bits;
  });
  // A little fewer bits than the dtype has may be chance.
  if (bits == 0 || bits > 0.75 * dtype_bits) {
    return {};
  }
  const double unit = std::ldexp(1.0, -bits);
  // Of rounding errors, uniform within half a step, over all mantissas.
  const double deviation = unit / std::sqrt(6.0);
  auto largest = std::make_shared<double>(0.0);
  auto chance = std::make_shared<double>(0.0);  // nats of that many zero bits at the end
  const auto predict = [=, &suspect](const Piece& piece, Prediction& prediction) {
    const double slack =
        kSafety * Norm(piece.deviation) / std::sqrt(static_cast<double>(piece.got.size())) * 4.0;
    prediction.values = piece.want;
    if (suspect.measured().is_exact) {  // what is rounded is known to the last bit
      for (double& value : prediction.values) {
        value = RoundedTo(bits, value);
      }
    }
    for (std::size_t i = 0; i < piece.got.size(); ++i) {
      const double error = std::abs(piece.got[i] - piece.want[i]);
      if (error > unit * std::abs(piece.want[i]) + slack) {
        return false;
      }
      *largest = std::max(*largest, piece.want[i] == 0.0 ? 0.0 : error / std::abs(piece.want[i]));
      if (!suspect.measured().is_exact) {
        prediction.noise.push_back(deviation * std::abs(piece.want[i]));
      }
      *chance += piece.got[i] == 0.0 ? 0.0 : piece.weight * std::log(2.0) * (dtype_bits - bits);
    }
    return true;
  };
  return Test(suspect,
              {{.explanation = {.cause = Cause::kPrecision, .option = fmt::format("{} bits", bits)},
                .cost = kRareCost + ChoiceCost(static_cast<std::size_t>(dtype_bits)),
                .predict = predict,
                .reach = Hypothesis::Reach::kWrongHolders,
                .finish = [unit, largest, chance](Fit& fit) {
                  fit.misfit.residual = *largest;
                  fit.misfit.nats -= *chance;
                  // Of many roundings some are off by nearly half a step.
                  return *largest >= 0.25 * unit;
                }}});
}

std::vector<Fit> FindCoarseArithmetic(const Suspect& suspect) {
  constexpr double kLeastLeft = 0.8;           // of the squared error, by factors of paths
  constexpr double kFewestIndependent = 30.0;  // with fewer, any error may lie across the reference
  double along = 0.0;                          // error along the reference,
  double wants = 0.0;
  double squares = 0.0;
  std::set<std::size_t> holders;
  double fourths = 0.0;  // of the reference
  std::int64_t units = 0;
  std::int64_t coarse = 0;        // units that are off by what no rounding of the dtype often does
  std::vector<double> relatives;  // errors of elements over their size
  std::vector<double> units_of_bound;  // errors of units over what rounding in the dtype gives them
  double largest = 0.0;                // of a unit
  const bool all = suspect.ForEachWrong([&](const Piece& piece) {
    for (std::size_t unit = 0; unit < piece.Units(); ++unit) {
      double unit_squares = 0.0;
      double unit_wants = 0.0;
      for (std::size_t i = unit * piece.unit_size; i < (unit + 1) * piece.unit_size; ++i) {
        const double error = piece.got[i] - piece.want[i];
        along += error * piece.want[i];
        unit_squares += error * error;
        unit_wants += piece.want[i] * piece.want[i];
        fourths += std::pow(piece.want[i], 4);
        if (piece.want[i] != 0.0) {
          relatives.push_back(std::abs(error / piece.want[i]));
        }
      }
      ++units;
      coarse += std::sqrt(unit_squares) > 0.5 * kSafety * piece.deviation[unit] ? 1 : 0;
      if (piece.deviation[unit] > 0.0) {
        units_of_bound.push_back(std::sqrt(unit_squares) / piece.deviation[unit]);
      }
      largest = std::max(largest, unit_wants > 0.0 ? unit_squares / unit_wants : 0.0);
      squares += unit_squares;
      wants += unit_wants;
    }
    holders.insert(piece.holder);
    return true;
  });
  if (!all || wants == 0.0 || squares == 0.0) {
    return {};
  }
  // Independent errors, each in proportion to its element, have along the reference a part of their
  // size of 1/sqrt(n), where large elements count for more than small ones and replicas, which make
  // the same errors, once; and no unit stands out.
  const double independent = wants * wants / fourths / static_cast<double>(holders.size());
  const double relative = std::sqrt(squares / wants);
  const bool has_no_direction = std::abs(along) / wants <= 3.5 * relative / std::sqrt(independent);
  // Errors of rounding lie on all elements in proportion, not on a few alone.
  const auto hit = std::count_if(relatives.begin(), relatives.end(),
                                 [&](double error) { return error >= 0.05 * relative; });
  // Nor in a few slices alone.
  if (2 * coarse < units || independent < kFewestIndependent ||
      10 * hit < 3 * std::ssize(relatives) || !has_no_direction ||
      ErrorLeftByFactors(suspect) < kLeastLeft || std::sqrt(largest) > 30.0 * relative) {
    return {};
  }
  // Arithmetic in a coarser dtype is off by as many times the bound as its unit is larger, in every
  // unit; errors of correct runs are 0.05 to 1.5 of their bound.
  std::nth_element(units_of_bound.begin(), units_of_bound.begin() + std::ssize(units_of_bound) / 2,
                   units_of_bound.end());
  const double own_unit = UnitRoundoff(suspect.manifest().dtype);
  const double middle =
      units_of_bound.empty() ? 0.0 : units_of_bound[units_of_bound.size() / 2] * own_unit;
  std::string dtype;
  for (const Dtype coarser : {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBfloat16}) {
    const double unit = UnitRoundoff(coarser);
    if (unit > 4.0 * own_unit && middle >= 0.05 * unit && middle <= 1.5 * unit) {
      dtype = ToText(coarser);
    }
  }
  if (dtype.empty()) {
    return {};
  }
  // Nothing more is known of each element than that it is off.
  return Test(suspect, {{.explanation = {.cause = Cause::kPrecision, .option = dtype},
                         .cost = kCoarseCost,
                         .predict =
                             [](const Piece& piece, Prediction& prediction) {
                               prediction.values = piece.want;
                               prediction.free.assign(piece.got.size(), true);
                               return true;
                             },
                         .reach = Hypothesis::Reach::kWrongHolders,
                         .finish =
                             [relative](Fit& fit) {
                               fit.misfit.residual = relative;
                               return true;
                             }}});
}

}  // namespace moe
