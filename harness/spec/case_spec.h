// A case file: one MoE problem, the layouts it runs under, and the bugs it must catch
// (cases/README.md describes the format with a full example).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "harness/base/dtype.h"
#include "harness/base/model.h"
#include "harness/layout/fault.h"
#include "harness/layout/layout.h"
#include "harness/layout/step_contract.h"

namespace moe {

// What the judge must say when `fault` is planted.
struct MustCatch {
  Fault fault;
  Layout on;
  std::string cause;              // "missing_sum", ...; empty: any failure will do
  std::vector<std::string> axes;  // what was owed; empty: not asked for
  std::string tensor;             // which must fail with that cause; empty: any
};

// A fault that must change nothing under this layout: a sum that is not owed there, or not needed.
struct MustPass {
  Fault fault;
  Layout on;
};

// What the inputs are made of.
enum class Fill {
  kUniform,  // steps of 1/128 with random sign
  kDyadic,   // few powers of two, so that the step rounds nowhere and is judged with tolerance 0
};

struct Numerics {
  std::vector<Dtype> dtypes = {Dtype::kFloat64, Dtype::kFloat32, Dtype::kBfloat16};
  Fill fill = Fill::kUniform;
  std::uint64_t seed = 0;
  std::vector<std::int64_t> idle_experts;  // experts that no token chooses, on purpose
};

struct CaseSpec {
  std::string name;  // "issues/torchtitan-2387": the path below cases/ without .json
  std::string path;
  std::string why;
  std::string source;
  Model model;
  Program program;
  Numerics numerics;
  std::vector<Layout> layouts;  // listed ones, then those that only faults are planted on
  std::vector<MustCatch> must_catch;
  std::vector<MustPass> must_pass;
};

// "issues/torchtitan-2387@tp2.ep2.etp1"
std::string CaseId(const CaseSpec& spec, const Layout& layout);

// The step of the case on one of its layouts, or another one that fits its model.
StepGraph GraphOf(const CaseSpec& spec, const Layout& layout);

// Reads `path`; `name` as above. Throws Error("path#/pointer", one sentence) for an unknown key, a
// wrong type, sizes that cannot be, a layout that does not fit the model, or a fault that cannot be
// planted.
CaseSpec ReadCase(const std::string& path, const std::string& name);

// The case of one name below the folder `cases`; throws Error that lists near names when there is
// none.
CaseSpec FindCase(const std::string& cases, const std::string& name);

// All cases below the folder, sorted by name. Throws Error when the folder has none.
std::vector<CaseSpec> ReadCases(const std::string& cases);

}  // namespace moe
