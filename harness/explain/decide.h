// One diagnosis of the whole step. Every finder emits hypotheses (hypothesis.h): an explanation,
// what it costs to say it, and what every rank would hold. One rule ranks them:
//
//   score = misfit + cost + witnesses   (nats; the smallest wins)
//
// with the misfit chi2 / 2 over the deviations that rounding gives a right step, costs as costs.h
// states them, and witnesses (the call log against the contract) as log-odds. It is asked of all
// tensors together: a fault that several of them share is paid for once. What comes within
// kAmbiguousOdds of the best is told beside it. Where nothing rounds, a hypothesis that gives every
// bit leaves no room for one that does not.
#pragma once

#include <string>
#include <vector>

#include "harness/explain/judgement.h"
#include "harness/layout/step_graph.h"
#include "harness/measure/measure.h"

namespace moe {

// What only moegate's own runs have. `graph` may be null, `calls` empty: the sums each rank took
// part in, in order, "d_gate_ED@tp" or, where the result was divided by 2, "d_gate_ED@tp/2".
struct Witnesses {
  const StepGraph* graph = nullptr;
  std::vector<std::vector<std::string>> calls;
};

Judgement Decide(const Measured& measured, const Witnesses& witnesses);

}  // namespace moe
