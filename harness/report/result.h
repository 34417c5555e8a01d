// The outcome of one case on one layout in one dtype, or of one dump, and how it is told: as text
// for people, as JSON, as JUnit XML (DESIGN: formats, Result).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "harness/explain/judge.h"
#include "harness/json/json_reader.h"

namespace moe {

// A planted fault of must_catch or must_pass and whether the judge said the right thing of it.
struct PlantedOutcome {
  std::string fault;
  bool as_wanted = false;
  std::string said;  // the headline the judge gave, or why it could not be run
};

struct Result {
  std::string id;  // "issues/torchtitan-2387@tp2.ep2.etp1", or the folder of a dump
  std::string dtype;
  std::string backend;  // "threads", "gloo", "nccl", "torchtitan==0.3.0"; empty for a dump
  std::string options;  // of a producer: "backend=spmd_types fsdp=on"
  std::optional<std::string> fault;
  Verdict verdict = Verdict::kPass;
  Judgement judgement;
  std::vector<PlantedOutcome> planted;
  std::string text;   // of kSkipped and kError: what was missing or wrong
  std::string repro;  // the command that does this again
  double seconds = 0.0;
};

struct Summary {
  std::int64_t listed = 0;  // how many results there should be
  std::int64_t passed = 0, failed = 0, vacuous = 0, skipped = 0, error = 0;
  std::int64_t planted = 0, planted_as_wanted = 0;
};
Summary Summarize(const std::vector<Result>& results, std::int64_t listed);

// 0 when every listed result passed; 2 when one is an error; else 1.
int ExitStatus(const Summary& summary);

// "d_gate_ED: missing sum over tp": what went wrong first, in the order gate, experts, the rest.
std::string Headline(const Result& result);

// One line for a result that passes, the whole story for one that does not.
std::string ToText(const Result& result);
std::string ToText(const Summary& summary);

Json ToJson(const std::vector<Result>& results, const Summary& summary);

// Writes JUnit XML with one test case per result. Throws Error(path, ...).
void WriteJUnit(const std::string& path, const std::vector<Result>& results,
                const Summary& summary);

}  // namespace moe
