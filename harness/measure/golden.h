// Golden files: what a case's tensors may be off by, and the evidence for it (golden/README.md).
// Written by the tool alone.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>

#include "harness/base/dtype.h"
#include "harness/json/json_reader.h"
#include "harness/spec/case_spec.h"

namespace moe {

// All relative to the L2 norm of the slice. What is derived comes from float64 arithmetic alone;
// what is measured is recorded in steps that outlast a change of machine (NoiseStep, FaultStep).
struct GoldenTolerance {
  double tolerance = 0.0;         // allowed error of every slice: kSafety times the bound
  double bound = 0.0;             // derived: probabilistic bound of the least accurate useful slice
  double worst_case = 0.0;        // derived: worst-case bound of such a slice
  double detectable_scale = 0.0;  // derived: certain to be seen in the tensor from here on
  double noise_floor = 0.0;       // measured: the largest error of clean runs
  std::optional<double>
      fault_floor;  // measured: the smallest error of a planted fault that hits the tensor
  std::string why;
};

// A derived number as it is recorded: up to the next of two digits. One that is there already, but
// for its last bits, stays.
double RoundedUp(double number);

// Noise as it is recorded: `bound` over a power of the square root of 2, the least that is 1.5
// times what was measured (or the bound itself). The largest of many errors depends on the
// machine's kernels, by up to 1.3 times where it was tried, so the step of `before`, where there is
// one, stays while the noise is between a quarter and 1.25 times of it.
double NoiseStep(double measured, double bound, const std::optional<GoldenTolerance>& before);

// The effect of a fault as it is recorded: to two digits. It is measured in float64, far beyond
// those; the effect that is half way between two of them, such as 0.875 of 8 ranks, goes up.
double FaultStep(double measured);

struct GoldenReference {
  double norm = 0.0;
  double digest = 0.0;  // a sum over the elements with fixed signs, which hardly any other order of
                        // them gives again
};

// What the reference gives of its results, as it gives them: whole, or slice by slice.
class ReferenceSums {
 public:
  // Adds the elements of a tensor from its `first` on, row by row.
  void Add(const std::string& tensor, std::span<const double> elements, std::int64_t first);

  std::map<std::string, GoldenReference> ByTensor() const;

 private:
  struct Sums {
    double squares = 0.0;
    double with_signs = 0.0;
  };
  std::map<std::string, Sums> sums_;
};

struct Golden {
  std::string case_sha256;
  double smallest_logit_margin = 0.0;
  std::map<std::string, GoldenReference> reference;
  std::map<Dtype, std::map<std::string, GoldenTolerance>> tolerances;
};

// The golden file of a case below the folder `golden`. Throws Error(path, ...): it is missing; it
// is stale, since the case file has changed; a tolerance is not kClearance clear of a floor; a
// tensor or dtype of the case is not in it.
Golden ReadGolden(const std::string& golden, const CaseSpec& spec);

std::string GoldenPath(const std::string& golden, const CaseSpec& spec);
Json ToJson(const Golden& golden);
Golden ParseGolden(const Json& json,
                   const std::string& path);  // all checks but those against the case

// A golden file speaks of one problem: throws Error(where, ...) unless the reference gives of the
// problem at hand what it gave when the file was made. Norms and digests agree to 1e-5 of the norm,
// the margin to the digits that the file has.
void CheckProblem(const Golden& golden, const ReferenceSums& reference,
                  double smallest_logit_margin, const std::string& where);

// SHA-256 of a file's bytes, in hex.
std::string Sha256OfFile(const std::string& path);

}  // namespace moe
