// Judges a dump: routing first, then replicas and every slice against the reference, then whether
// anything was tested at all. Sees nothing but the dump, the problem and what a correct step owes.
#pragma once

#include <cmath>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "harness/dump/dump.h"
#include "harness/explain/finding.h"
#include "harness/layout/step_contract.h"
#include "harness/layout/tensor_source.h"
#include "harness/measure/golden.h"

namespace moe {

// The witnesses that only some dumps have.
struct JudgeOptions {
  const Golden* golden = nullptr;  // tolerances of the case; else the error model alone
  // Of the program that made the dump; for a foreign one, which sums it owes is not known.
  const StepContract* contract = nullptr;
  // Sums that each rank took part in, in order; empty for a foreign dump.
  std::vector<std::vector<std::string>> calls;
  std::vector<std::int64_t> idle_experts;  // without a token on purpose
  bool worst_case = false;                 // measure against the worst-case bound too
  bool exact = false;  // the problem is one whose step rounds nowhere: nothing is allowed
};

struct Judgement {
  Verdict verdict = Verdict::kPass;
  std::vector<Finding> findings;   // one per judged tensor, in the order of ResultsOf
  std::vector<std::string> notes;  // what is worth knowing and changes no verdict
  // Of a dump by a stranger: who made it with what, the claims that were relied on (claims.h), what
  // its casts allow, and what could not be judged with the reason ("d_w1_EFD: left out on
  // purpose (not_dumped)").
  std::string producer;
  std::map<std::string, std::string> versions;
  std::vector<std::string> claims;
  std::string floor;
  std::vector<std::string> not_judged;
  std::int64_t slots = 0;  // T * K
  bool routing_compared = false;
  double smallest_margin = 0.0;  // of the selection scores
  // What a regenerated golden file records of this run, by tensor.
  struct Measured {
    // Relative to the norm of the slice, the largest of the useful slices
    // (kLargestUsefulTolerance).
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
  std::map<std::string, Measured> measured;
};

// Throws Error(dump.name, ...) for a dump that cannot be judged at all.
Judgement Judge(const Dump& dump, const TensorSource& problem, const JudgeOptions& options);

}  // namespace moe
