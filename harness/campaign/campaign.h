// The mutation campaign: every fault of the catalogue planted under many cases, layouts, dtypes and
// seeds, and what the judge said of each.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "harness/campaign/classify.h"
#include "harness/campaign/workers.h"
#include "harness/json/json_reader.h"
#include "harness/spec/case_spec.h"

namespace moe {

struct CampaignOptions {
  std::int64_t seeds = 2;  // per case: its own and the next ones that can be drawn
  // Every fault in every dtype, with every seed and at every rank. Else each in one of the dtypes
  // and seeds in turn, at the first and the last rank, and of those at most so many, evenly spread.
  bool full = false;
  std::int64_t most = 15'000;
  std::vector<std::string> classes;  // only these ("FC6"); empty: all
  std::optional<Dtype> dtype;        // only this one
  // Judge by the values alone, as a foreign dump is: without contract and call log.
  bool foreign = false;
  std::string golden_folder;
  std::chrono::milliseconds step_deadline{5'000};  // of every wait for another rank
  WorkerOptions workers;
};

// One planted fault and what was said of it.
struct Mutant {
  std::string id;  // "issues/torchtitan-2387@tp2.ep2.etp1"
  std::string layout;
  std::string dtype;
  std::string fill;  // "uniform" or "dyadic"
  std::uint64_t seed = 0;
  std::string fault;
  std::string bug_class;
  std::string tensor;  // where it is planted or first seen; "step" for the step as a whole
  Outcome outcome = Outcome::kSurvived;
  std::string why;                // of what was not killed, crashed or should change nothing
  std::vector<std::string> said;  // "d_gate_ED: missing_sum [tp]" of every finding that fails
  std::int64_t unexplained = 0;   // of those, how many say no cause
  std::string repro;
};

Json ToJson(const Mutant& mutant);

struct Campaign {
  std::vector<Mutant> mutants;
  std::vector<std::string>
      unclean;  // steps that do not pass without a fault, where none was planted
  std::int64_t clean_steps = 0;
  std::int64_t planned = 0;  // faults on layouts, of which `mutants` may be a sample
  double seconds = 0.0;
  bool full = false;
};

// Runs the campaign over the layouts that each of `specs` lists. Throws Error when a case cannot be
// prepared, or a worker fails.
Campaign RunCampaign(const std::vector<CaseSpec>& specs, const CampaignOptions& options);

}  // namespace moe
