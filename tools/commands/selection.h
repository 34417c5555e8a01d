// Which cases on which layouts a command line means.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "harness/spec/case_spec.h"

namespace moe {

struct SelectedCase {
  CaseSpec spec;
  std::vector<Layout> layouts;
};

// Each text is CASE or CASE@LAYOUT, either with * and ? as in a shell ("issues/*@tp2*"); none means
// all. A LAYOUT without wildcards may be one that the case does not list. Throws Error for a text
// that selects nothing, and for a layout that the case's model cannot run under.
std::vector<SelectedCase> Select(const std::string& cases_folder,
                                 const std::vector<std::string>& texts);

// The same as cases that list just the selected layouts, each on `layout` instead where that is not
// empty.
std::vector<CaseSpec> SelectSpecs(const std::string& cases_folder,
                                  const std::vector<std::string>& texts, const std::string& layout);

// A dtype that the step runs in; nothing for an empty text. Throws Error("--dtype", ...).
std::optional<Dtype> StepDtype(const std::string& text);

// `layout` checked against the case: sizes that divide.
void CheckFits(const CaseSpec& spec, const Layout& layout, const std::string& where);

}  // namespace moe
