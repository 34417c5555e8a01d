// One choice for every tensor of a step: the hypotheses that together cost the least, a fault that
// several tensors share being paid for once.
#pragma once

#include <string>
#include <vector>

#include "harness/explain/hypothesis.h"

namespace moe {

// A tensor that failed and what may be wrong with it.
struct Accused {
  std::string tensor;
  std::vector<Fit> fits;  // never empty
};

// By tensor, the place of the chosen fit among its own; and how much more the whole would cost if
// it were another: 0 for the chosen, infinite for those that are far.
struct JointChoice {
  std::vector<std::size_t> chosen;
  std::vector<std::vector<double>> odds;  // nats over the best
  std::size_t faults = 0;                 // different ones
};

JointChoice ChooseJointly(const std::vector<Accused>& accused);

// Whether one fault may be behind both: the same cause, axes, ranks and factor, at a place of the
// step that reaches both tensors along these paths.
bool ShareAFault(const std::string& tensor, const Explanation& a, const std::string& other,
                 const Explanation& b);

}  // namespace moe
