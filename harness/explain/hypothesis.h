// What may be wrong with a tensor, as something that can be tested: an explanation, what it costs
// to name it (costs.h), and what every holder would then hold. Finders only emit these; nobody
// prefers one to another before they are ranked (decide.h).
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "harness/explain/finding.h"
#include "harness/explain/ledger.h"
#include "harness/explain/suspect.h"

namespace moe {

// A hypothesis that the values do not refute.
struct Fit {
  Explanation explanation;
  double cost = 0.0;  // of its own, without kFaultCost
  Misfit misfit;
  std::optional<Spread> spread;  // whose shares it speaks of
  bool everywhere = true;        // false: on the wrong ranks alone, while others are right
  bool names_a_factor = false;   // one that fits, of whatever origin
  // What to say beside the explanation.
  std::optional<ElementPlace> element;
  std::optional<UnitPlace> not_zero;
  std::string option_value;
  bool must_reach_d_x = false;  // what it says of the scores shows in d_x_TD too

  double Score() const { return misfit.nats + cost; }
};

struct Hypothesis {
  Explanation explanation;
  double cost = 0.0;
  // Fills what the piece would hold; false where it cannot be.
  std::function<bool(const Piece& piece, Prediction& prediction)> predict;
  std::optional<Spread> spread;
  enum class Reach {
    kAll,           // it says what every holder has
    kWrongHolders,  // the others are right
    kEither,        // all or, at the price of a longer story, those that are wrong
  };
  Reach reach = Reach::kAll;
  // Completes the fit by what the predictor has learnt from the values; false refutes it after all.
  std::function<bool(Fit& fit)> finish;
};

// Those that the values do not refute. A hypothesis is left at the first piece that it does not
// explain, the worst of all first.
std::vector<Fit> Test(const Suspect& suspect, std::vector<Hypothesis> hypotheses);

}  // namespace moe
