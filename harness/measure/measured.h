// What was measured of a dump: numbers, no words and no causes.
#pragma once

#include <cmath>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "harness/measure/observed.h"

namespace moe {

// No gradient is that large, and squares of such numbers overflow.
inline constexpr double kAbsurd = 1e150;

// What a regenerated golden file records of a tensor of a run. Relative to the norm of the slice,
// the largest of the useful slices (kLargestUsefulTolerance).
struct TensorFigures {
  double bound = 0.0;       // norm of the probabilistic bound
  double worst_case = 0.0;  // norm of the worst-case bound; 0 unless it was asked for
  double error = 0.0;
  double useful_ratio = 0.0;  // error over bound
  // The largest of all slices, useful or not; infinite for an error where none may be.
  double ratio = 0.0;             // error over bound
  double worst_case_ratio = 0.0;  // error over worst-case bound; 0 unless it was asked for
  // Of the tensor as a whole (scale.h).
  double scale_bound = 0.0;  // of its fitted factor
  double scale_ratio = 0.0;  // error of the factor over its bound
  // The smallest s for which the tensor times 1 + s is certain to fail (DetectableScale).
  double detectable_scale = INFINITY;
};

// A unit of a holder: an expert, a token, or the whole slice where there are neither (-1).
struct UnitPlace {
  std::string kind;  // "token", "expert"; empty for a whole slice
  std::int64_t index = -1;
  std::vector<std::int64_t> ranks;
};

// One element of a holder, by global indices.
struct ElementPlace {
  std::vector<std::int64_t> index;
  std::vector<std::int64_t> ranks;
  double got = 0.0;
  double want = 0.0;
};

class MeasuredTensor {
 public:
  // Of one unit of one holder, L2.
  struct Unit {
    double error = 0.0;
    double want = 0.0;
    double deviation = 0.0;  // what rounding does to a right one, or to a cause where nothing may
    double allowed = 0.0;    // be off
    bool is_wrong = false;
  };
  // One factor that fits all slices, minus 1.
  struct Scale {
    double error = 0.0;
    double allowed = 0.0;
    bool is_wrong = false;     // no slice is wrong on its own, and this is
    double elementwise = 0.0;  // relative error of all elements
    // What the factor leaves is no more than rounding of a right step,
    bool leaves_rounding = false;
    double spread = 0.0;  // and slices are off by it alike: about 1
  };
  struct ReplicaGap {
    double difference = 0.0;  // L2, the largest, where it is more than rounding
    std::vector<std::int64_t> ranks;
    std::vector<std::int64_t> others;
    UnitPlace place;
  };
  // Of the golden file, where it speaks of the tensor.
  struct Floors {
    double noise = 0.0;
    std::optional<double> fault;
  };

  explicit MeasuredTensor(ObservedTensor tensor) : observed(std::move(tensor)) {}

  const std::string& name() const { return observed.name(); }
  bool proves_something() const { return telling_units > 0; }

  ObservedTensor observed;
  std::vector<std::vector<Unit>> units;  // by holder and local unit
  bool is_exact = false;                 // nothing may be off
  bool is_wrong = false;
  std::vector<std::int64_t> ranks;  // that hold a wrong slice, ascending
  double error = 0.0;               // relative, of the worst slice
  double tolerance = 0.0;           // allowed there
  UnitPlace worst;
  std::map<std::int64_t, double> error_of_rank;
  Scale scale;
  std::optional<ElementPlace> absurd;  // the first that is NaN, Inf or absurdly large
  std::optional<ReplicaGap> replicas;
  std::optional<Floors> floors;
  double want_norm = 0.0;
  std::int64_t telling_units = 0;  // large enough against their rounding error to prove something
  TensorFigures figures;
};

}  // namespace moe
