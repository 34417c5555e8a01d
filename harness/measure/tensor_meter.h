// One tensor on its way through the measurement: every unit of every rank against the reference,
// replicas against one another, the scale of the whole.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "harness/measure/golden.h"
#include "harness/measure/measured.h"
#include "harness/measure/scale.h"

namespace moe {

struct MeasureOptions {
  const Golden* golden = nullptr;  // tolerances of the case; else the error model alone
  // A stranger's dump: it may round in one direction, and ties of the routing may fall either way.
  bool is_foreign = true;
  std::vector<std::int64_t> idle_experts;  // without a token on purpose
  bool worst_case = false;                 // measure against the worst-case bound too
  bool exact = false;  // the problem is one whose step rounds nowhere: nothing is allowed
};

// Whether nothing may be off. An exact problem is so in bfloat16 and finer; float16 ends at 65504.
bool AllowsNothing(const Manifest& manifest, const MeasureOptions& options);

class TensorMeter {
 public:
  // All must outlive this.
  TensorMeter(const Dump& dump, const std::string& name, const MeasureOptions& options);

  const ObservedTensor& observed() const { return tensor_.observed; }
  // The largest bound of a slice so far, relative.
  double bound() const { return tensor_.figures.bound; }

  // Measures unit `global_unit` of every holder that has it. The rows and columns of `want` are the
  // last two dimensions of the unit (or its only one); `worst_case` may be empty.
  void AddUnit(std::int64_t global_unit, const reference::Matrix& value,
               const reference::Matrix& deviation, const reference::Matrix& worst_case);
  void BoundScale(const reference::Estimate& whole) { scale_.AddBound(whole); }
  // What was measured, when all units were added.
  MeasuredTensor Finish() &&;

 private:
  // What the holders of one unit hold, and by how much (L2) each may be off.
  struct Held {
    std::vector<std::size_t> holders;
    std::vector<std::vector<double>> got;
    std::vector<double> allowed;
  };
  // Of the factors that units have on their own, minus 1: weights (one over the variance that
  // rounding gives such a factor), and weighted sums and squares.
  struct UnitFactors {
    double count = 0.0;
    double weights = 0.0;
    double sum = 0.0;
    double squares = 0.0;

    // How far they are from the common factor 1 + error, per unit; about 1 for rounding alone.
    double Spread(double error) const {
      return (squares - 2.0 * error * sum + error * error * weights) / count;
    }
  };

  const GoldenTolerance* GoldenEntry() const;
  double AllowedError(double want_norm, double deviation_norm) const;
  void NoteAbsurdity(const ObservedTensor::Holder& holder, std::int64_t global_unit,
                     const std::vector<double>& got);
  void CompareReplicas(const Held& held, std::int64_t global_unit);
  UnitPlace PlaceOf(std::int64_t global_unit, const ObservedTensor::Holder& holder) const;
  void Fail(const ObservedTensor::Holder& holder);
  void AddFigures(double error, double want_norm, double deviation_norm, double worst_case_norm);
  void MeasureScale();

  const MeasureOptions& options_;
  MeasuredTensor tensor_;
  ScaleFit scale_;
  Dtype dtype_;
  double coarsest_unit_;  // of the arithmetic that takes part in the tensor
  std::optional<double> tolerance_;
  double want_squares_ = 0.0;
  double error_squares_ = 0.0;
  double deviation_squares_ = 0.0;
  UnitFactors unit_factors_;
  bool has_worst_ = false;
  double worst_excess_ = 0.0;  // error over what is allowed, of the worst slice
};

}  // namespace moe
