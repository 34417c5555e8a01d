// All that is said of a dump: one finding per judged tensor, and what was relied on.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "harness/explain/finding.h"
#include "harness/measure/measure.h"

namespace moe {

struct Judgement {
  Verdict verdict = Verdict::kPass;
  std::vector<Finding> findings;  // in the order: choice of experts, counts, results, the rest
  RoutingComparison routing;      // without the observed choice
  std::int64_t slots = 0;         // T * K
  std::vector<std::int64_t> idle_experts;  // of a foreign dump: a note, no verdict
  // What a regenerated golden file records of this run, by tensor.
  std::map<std::string, TensorFigures> measured;
  // Of a dump by a stranger.
  struct Foreign {
    Manifest manifest;  // who made it with what, the claims that were relied on, and gaps
    std::vector<CastEffect> cast_effects;  // where its casts are coarser than its dtype
    bool has_coarser_casts = false;
  };
  std::optional<Foreign> foreign;
};

}  // namespace moe
