// A mutation campaign in figures, as text for people and as JSON.
#pragma once

#include <map>
#include <string>

#include "harness/campaign/campaign.h"

namespace moe {

// How many mutants came to each outcome.
struct Tally {
  std::map<Outcome, std::int64_t> of;

  std::int64_t Of(Outcome outcome) const;
  std::int64_t Planted() const;
  std::int64_t Killed() const;
  // Of those killed whose cause has a name, how many were named right; 1 when there are none.
  double NamedRightShare() const;
};

// Every fault that can be seen was, none was named for what it is not, and every step without a
// fault passed. In bfloat16 a fault may be smaller than what rounding allows (Outcome::kUnseen).
bool Holds(const Campaign& campaign);

// The matrix of outcomes by class, by dtype and by fill, what went wrong with the line to run, what
// bfloat16 cannot see, and one summary line.
std::string ToText(const Campaign& campaign);

// planted, killed, named_right, ... in "total", and by "class", "layout", "dtype", "fill" and
// "tensor"; and every mutant under "faults".
Json ToJson(const Campaign& campaign);

}  // namespace moe
