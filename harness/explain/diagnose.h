// Reads the cause of a wrong tensor off the values that the ranks hold. Explanations compete: sums
// that went wrong (sum_causes), factors (factor_causes), right values in wrong places
// (order_causes), wrong values in few places (value_causes), coarse ones (precision_causes). What
// fits every rank and every slice is a candidate; what is known of the program, its contract and
// the log of its calls, decides between those that give the same numbers.
#pragma once

#include <string>
#include <vector>

#include "harness/explain/finding.h"
#include "harness/explain/suspect.h"
#include "harness/layout/step_contract.h"

namespace moe {

// What only moegate's own runs have. `contract` may be null, `calls` empty: the sums each rank took
// part in, in order, "d_gate_ED@tp" or, where the result was divided by 2, "d_gate_ED@tp/2".
struct Witnesses {
  const StepContract* contract = nullptr;
  const std::vector<std::vector<std::string>>& calls;
};

// Fills explanation, candidates, residual, text and evidence of a finding that fails.
void Diagnose(const Suspect& suspect, const Witnesses& witnesses, Finding& finding);

// Arithmetic in a coarser dtype leaves its errors in more than one tensor; where only one looks
// like it, that one is unexplained.
void DoubtPrecision(std::vector<Finding>& findings);

// Where a tensor's cause is ambiguous and one of its candidates is what another tensor of the run
// has for certain, one fault explains both: takes that one.
void ShareCauses(std::vector<Finding>& findings);

}  // namespace moe
