// One tensor on its way through the judge: every unit of every rank against the reference, replicas
// against one another, the scale of the whole, and when it fails the cause.
#pragma once

#include <cmath>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "harness/explain/judge.h"
#include "harness/explain/ledger.h"
#include "harness/explain/suspect.h"
#include "harness/measure/observed.h"
#include "harness/measure/scale.h"

namespace moe {

// Whether nothing may be off. An exact problem is so in bfloat16 and finer; float16 ends at 65504.
bool AllowsNothing(const Manifest& manifest, const JudgeOptions& options);

class TensorJudge {
 public:
  // All must outlive this.
  TensorJudge(const Dump& dump, const std::string& name, const JudgeOptions& options);

  // Judges unit `global_unit` of every holder that has it. The rows and columns of `want` are the
  // last two dimensions of the unit (or its only one); `worst_case` may be empty.
  void JudgeUnit(std::int64_t global_unit, const reference::Matrix& value,
                 const reference::Matrix& deviation, const reference::Matrix& worst_case);
  void BoundScale(const reference::Estimate& whole) { scale_.AddBound(whole); }
  // The finding; of a tensor that fails with its cause, which `ledger` helps to find.
  Finding Finish(const Manifest& manifest, Ledger& ledger);
  const Judgement::Measured& measured() const { return measured_; }
  double want_norm() const { return std::sqrt(want_squares_); }
  const ObservedTensor& observed() const { return observed_; }
  bool proves_something() const { return telling_units_ > 0; }
  // Whether the tensor is what a step of `manifest`'s model and `ledger` gives.
  bool IsExplainedBy(const Manifest& manifest, Ledger& ledger) const;

 private:
  // What the holders of one unit hold, and by how much (L2) each may be off.
  struct Unit {
    std::vector<std::size_t> holders;
    std::vector<std::vector<double>> got;
    std::vector<double> allowed;
  };

  std::optional<double> GoldenTolerance() const;
  double AllowedError(double want_norm, double deviation_norm) const;
  void NoteCorruption(const ObservedTensor::Holder& holder, std::int64_t global_unit,
                      const std::vector<double>& got);
  void CompareReplicas(const Unit& unit, std::int64_t global_unit);
  std::string UnitName(std::int64_t global_unit) const;
  void Fail(const ObservedTensor::Holder& holder);
  void Measure(double error, double want_norm, double deviation_norm, double worst_case_norm);
  void JudgeScale();

  const JudgeOptions& options_;
  ObservedTensor observed_;
  Measurement measurement_;
  ScaleFit scale_;
  Dtype dtype_;
  double coarsest_unit_;  // of the arithmetic that takes part in the tensor
  bool exact_;
  std::optional<double> tolerance_;
  Finding finding_;
  Judgement::Measured measured_;
  double want_squares_ = 0.0;
  double error_squares_ = 0.0;
  double deviation_squares_ = 0.0;
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
  UnitFactors unit_factors_;
  std::int64_t telling_units_ = 0;  // large enough against their rounding error to prove something
  std::string worst_;
  double worst_excess_ = 0.0;  // error over what is allowed, of the worst slice
  std::map<std::int64_t, double> error_of_rank_;
  double replica_difference_ = 0.0;  // L2, the largest, where it is more than rounding
  std::string replicas_that_differ_;
  std::string corruption_;
};

}  // namespace moe
