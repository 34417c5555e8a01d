// What became of a planted fault: was it seen, and was it named for what it is.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "harness/campaign/fault_catalogue.h"
#include "harness/explain/judge.h"

namespace moe {

enum class Outcome {
  // Killed: the verdict is fail.
  kNamedRight,   // a finding names the cause, and none names another
  kAmbiguous,    // the cause is among the candidates that give the same numbers
  kNamedWrong,   // a finding names a cause that this is not
  kUnexplained,  // wrong, and no finding says why, though the cause has a name
  kUnnamed,      // wrong, and no cause has a name for it
  kCrashed,      // the step did not come to its end
  // Not killed.
  kEquivalent,  // it changes nothing, and that is proved
  kUnseen,      // smaller than what rounding allows; a right answer in bfloat16 alone
  kSurvived,
};
inline constexpr std::array kOutcomes = {
    Outcome::kNamedRight,  Outcome::kAmbiguous, Outcome::kNamedWrong,
    Outcome::kUnexplained, Outcome::kUnnamed,   Outcome::kCrashed,
    Outcome::kEquivalent,  Outcome::kUnseen,    Outcome::kSurvived};

std::string_view ToText(Outcome outcome);  // "named_right", ...
bool IsKilled(Outcome outcome);

struct Classified {
  Outcome outcome = Outcome::kSurvived;
  std::string
      why;  // of kEquivalent, kUnseen, kSurvived, and kNamedWrong where nothing should change
  std::int64_t unexplained = 0;  // findings that fail and say no cause
};

// What is known of a run of a planted fault that came to its end.
struct PlantedRun {
  Dtype dtype = Dtype::kFloat64;
  bool exact = false;     // the step rounds nowhere, and nothing was allowed
  bool is_clean = false;  // every rank holds bit for bit what it holds without the fault
};

Classified Classify(const PlantedFault& planted, const PlantedRun& run, const Judgement& judgement);

// "wrong_group [tp] used [ep]", "lost_path gate": the cause and what it says of itself.
std::string Describe(const Explanation& explanation);

}  // namespace moe
