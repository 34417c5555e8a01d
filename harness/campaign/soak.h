// Many steps without a fault, over seeds, layouts and dtypes: none may alarm.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "harness/campaign/workers.h"
#include "harness/spec/case_spec.h"

namespace moe {

struct SoakOptions {
  std::int64_t seeds = 10;                  // per case
  std::optional<std::uint64_t> first_seed;  // else the one after each case's own
  std::optional<Dtype> dtype;               // only this one
  std::string backend = "threads";
  std::chrono::milliseconds step_deadline{20'000};  // of every wait for another rank
  WorkerOptions workers;
};

struct SoakResult {
  std::int64_t steps = 0;
  std::int64_t vacuous = 0;        // of them: agreed, but some expert got no tokens
  std::int64_t refused_seeds = 0;  // for which the generator finds no inputs with clear margins
  // Of each dtype: the largest error of a slice over what was expected of it, and the tensor.
  std::map<std::string, std::pair<double, std::string>> largest_ratio;
  std::vector<std::string> alarms;  // "what; the line to run"
  std::vector<std::string> errors;  // steps that did not come to their end
  double seconds = 0.0;
};

// Runs every case on every layout that `specs` lists, with every seed, and judges the steps by the
// error model: golden files speak of one seed. Throws Error when a worker fails.
SoakResult RunSoak(const std::vector<CaseSpec>& specs, const SoakOptions& options);

// A few lines; the last is the summary.
std::string ToText(const SoakResult& soak);

}  // namespace moe
