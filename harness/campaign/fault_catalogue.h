// Every fault that can be planted in a step, and what a right answer to each is. The classes FC1 to
// FC33 are kinds of public bugs (cases/README.md, Faults).
#pragma once

#include <string>
#include <vector>

#include "harness/explain/finding.h"
#include "harness/layout/fault.h"

namespace moe {

// A cause that a finding on `tensor` may name. Members of `explanation` that are empty are not
// asked for.
struct Answer {
  std::string tensor;
  Explanation explanation;
  // Gives the same numbers as what was planted, so it is not wrong; but it is not what was planted.
  bool same_numbers = false;
};

struct PlantedFault {
  Fault fault;
  std::string bug_class;        // "FC1"
  std::vector<Answer> answers;  // empty: no cause names it, and any failure is a right answer
  std::string equivalent;       // why it changes nothing; empty when it must be seen
};

enum class RanksToPlant { kFirstAndLast, kAll };

// What can be planted in a step, in a fixed order, without faults that give the same numbers under
// another name. Faults that take a rank are planted at `ranks`.
std::vector<PlantedFault> CatalogueOf(const StepGraph& graph,
                                      RanksToPlant ranks = RanksToPlant::kFirstAndLast);

}  // namespace moe
