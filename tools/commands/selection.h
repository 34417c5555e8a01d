// Which cases on which layouts a command line means.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "harness/spec/case_spec.h"

namespace moe {

// The cases that `texts` mean, each once, with no layouts but those that are meant. Each text is
// CASE or CASE@LAYOUT, either with *, ? and [...] as in a shell ("issues/*@tp2*"); no text means
// all. A LAYOUT without wildcards may be one that the case does not list. Where `layout`
// (--layout) is not empty it stands in for the layouts of every case. Throws Error: for a text that
// selects nothing, for a layout that a case's model cannot run under, and where a text and `layout`
// both name one.
std::vector<CaseSpec> Select(const std::string& cases_folder, const std::vector<std::string>& texts,
                             const std::string& layout = "");

// A dtype that the step runs in; nothing for an empty text. Throws Error("--dtype", ...).
std::optional<Dtype> StepDtype(const std::string& text);

}  // namespace moe
