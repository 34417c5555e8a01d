// Judges a dump: routing first, then replicas and every slice against the reference, then whether
// anything was tested at all. Sees nothing but the dump, the problem and what a correct step owes.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "harness/compare/finding.h"
#include "harness/compare/golden.h"
#include "harness/dump/dump.h"
#include "harness/layout/step_contract.h"
#include "harness/layout/tensor_source.h"

namespace moe {

// The witnesses that only some dumps have.
struct JudgeOptions {
  const Golden* golden = nullptr;  // tolerances of the case; else the error model alone
  // Of the program that made the dump; for a foreign one, which sums it owes is not known.
  const StepContract* contract = nullptr;
  // Sums that each rank took part in, in order; empty for a foreign dump.
  std::vector<std::vector<std::string>> calls;
  std::vector<std::int64_t> idle_experts;  // without a token on purpose
};

struct Judgement {
  Verdict verdict = Verdict::kPass;
  std::vector<Finding> findings;   // one per judged tensor, in the order of ResultsOf
  std::vector<std::string> notes;  // what is worth knowing and changes no verdict
  std::int64_t slots = 0;          // T * K
  bool routing_compared = false;
  double smallest_margin = 0.0;  // of the selection scores
  // What a regenerated golden file records of this run, by tensor.
  struct Measured {
    double bound = 0.0;  // largest expected relative error of a useful slice
    double error = 0.0;  // largest relative error of a useful slice
    double ratio = 0.0;  // largest error over expected error of a useful slice
  };
  std::map<std::string, Measured> measured;
};

// Throws Error(dump.name, ...) for a dump that cannot be judged at all.
Judgement Judge(const Dump& dump, const TensorSource& problem, const JudgeOptions& options);

}  // namespace moe
