// Planted faults: what goes wrong at one named reduction.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "harness/layout/step_contract.h"

namespace moe {

struct Fault {
  enum class Kind {
    kDrop,        // the sum does not happen
    kRepeat,      // it happens once more than owed
    kMean,        // its result is divided by the number of ranks that took part
    kWrongGroup,  // it goes over another axis
    kSkipRank,    // one rank sends zeros instead of its share
  };

  Kind kind = Kind::kDrop;
  Reduction reduction;
  Axis wrong_axis = Axis::kTp;  // kWrongGroup
  std::int64_t rank = 0;        // kSkipRank: a rank of the world
};

// "drop d_gate_ED@tp", "repeat d_gate_ED@tp", "mean d_gate_ED@tp", "wrong-group ep d_gate_ED@tp",
// "skip-rank 1 d_gate_ED@tp".
std::string ToText(const Fault& fault);

// Reads such a text; the argument of wrong-group and skip-rank may stand before or after the
// reduction. Throws Error(where, ...) for anything else.
Fault ParseFault(std::string_view text, const std::string& where);

// Why the fault cannot be planted under `contract`: a tensor or a sum that does not exist there
// (the sentence lists those that do), an axis or a rank that is not there; empty when it can. A sum
// that the contract lists as settled can be planted at: dropping it changes nothing.
std::string FindMisfit(const Fault& fault, const StepContract& contract);

}  // namespace moe
