// Golden files: what a case's tensors may be off by, and the evidence for it (golden/README.md).
// Written by the tool alone.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "harness/base/dtype.h"
#include "harness/json/json_reader.h"
#include "harness/spec/case_spec.h"

namespace moe {

struct GoldenTolerance {
  double tolerance = 0.0;    // allowed relative L2 error of every slice
  double bound = 0.0;        // derived: the largest expected error of a slice
  double noise_floor = 0.0;  // measured: the largest error of clean runs
  std::optional<double>
      fault_floor;  // measured: the smallest error of a planted fault that hits the tensor
  std::string why;
};

struct GoldenReference {
  double norm = 0.0;
  double digest = 0.0;  // a sum over the elements with fixed signs, which no permutation keeps
};

struct Golden {
  std::string case_sha256;
  double smallest_logit_margin = 0.0;
  std::map<std::string, GoldenReference> reference;
  std::map<Dtype, std::map<std::string, GoldenTolerance>> tolerances;
};

// The golden file of a case below the folder `golden`. Throws Error(path, ...): it is missing; it
// is stale, since the case file has changed; a tolerance is not kClearance clear of a floor; a
// tensor or dtype of the case is not in it.
Golden ReadGolden(const std::string& golden, const CaseSpec& spec);

std::string GoldenPath(const std::string& golden, const CaseSpec& spec);
Json ToJson(const Golden& golden);
Golden ParseGolden(const Json& json,
                   const std::string& path);  // all checks but those against the case

// SHA-256 of a file's bytes, in hex.
std::string Sha256OfFile(const std::string& path);

}  // namespace moe
