// Judges a dump: measures it and decides. Sees nothing but the dump, the problem and what a correct
// step owes.
#pragma once

#include "harness/explain/decide.h"

namespace moe {

// What only some dumps have.
struct JudgeOptions {
  const Golden* golden = nullptr;  // tolerances of the case; else the error model alone
  // Of the program that made the dump; for a foreign one, which sums it owes is not known.
  const StepGraph* graph = nullptr;
  // Sums that each rank took part in, in order; empty for a foreign dump.
  std::vector<std::vector<std::string>> calls;
  std::vector<std::int64_t> idle_experts;  // without a token on purpose
  bool worst_case = false;                 // measure against the worst-case bound too
  bool exact = false;  // the problem is one whose step rounds nowhere: nothing is allowed
};

// Throws Error(dump.name, ...) for a dump that cannot be judged at all.
Judgement Judge(const Dump& dump, const TensorSource& problem, const JudgeOptions& options);

}  // namespace moe
