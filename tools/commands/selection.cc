#include "tools/commands/selection.h"

#include <fmt/format.h>
#include <fnmatch.h>

#include <algorithm>
#include <iterator>

#include "harness/base/error.h"

namespace moe {
namespace {

bool HasWildcard(const std::string& text) {
  return text.find_first_of("*?[") != std::string::npos;
}

bool Matches(const std::string& pattern, const std::string& text) {
  return ::fnmatch(pattern.c_str(), text.c_str(), 0) == 0;
}

// One word of the command line: CASE or CASE@LAYOUT.
struct Wanted {
  explicit Wanted(const std::string& word)
      : text(word), name(word.substr(0, word.find('@'))), has_layout(name.size() < word.size()) {
    if (has_layout) {
      layout = word.substr(name.size() + 1);
    }
  }

  std::string text;
  std::string name;
  bool has_layout;
  std::string layout;
};

void RequireFit(const CaseSpec& spec, const Layout& layout, const std::string& where) {
  if (const std::string misfit = FindMisfit(spec.model, layout); !misfit.empty()) {
    throw Error(where, misfit);
  }
}

std::vector<Layout> LayoutsOf(const CaseSpec& spec, const Wanted& wanted) {
  if (!wanted.has_layout) {
    return spec.layouts;
  }
  if (!HasWildcard(wanted.layout)) {
    const Layout layout = ParseLayout(wanted.layout, wanted.text);
    RequireFit(
        spec, layout,
        HasWildcard(wanted.name) ? fmt::format("{} on {}", wanted.text, spec.name) : wanted.text);
    return {layout};
  }
  std::vector<Layout> layouts;
  std::copy_if(spec.layouts.begin(), spec.layouts.end(), std::back_inserter(layouts),
               [&](const Layout& layout) { return Matches(wanted.layout, ToText(layout)); });
  return layouts;
}

// The cases that one word means, those left out of which it means no layout.
std::vector<CaseSpec> CasesOf(const std::string& cases_folder, const Wanted& wanted) {
  std::vector<CaseSpec> specs;
  if (HasWildcard(wanted.name)) {
    specs = ReadCases(cases_folder);
    std::erase_if(specs, [&](const CaseSpec& spec) { return !Matches(wanted.name, spec.name); });
  } else {
    specs.push_back(FindCase(cases_folder, wanted.name));
  }
  for (CaseSpec& spec : specs) {
    spec.layouts = LayoutsOf(spec, wanted);
  }
  std::erase_if(specs, [](const CaseSpec& spec) { return spec.layouts.empty(); });
  if (specs.empty()) {
    throw Error(wanted.text,
                "selects no case on any of its layouts; `moegate list` shows what there is");
  }
  return specs;
}

// Adds a case, or to the same case its further layouts.
void Add(const CaseSpec& spec, std::vector<CaseSpec>& selected) {
  const auto same = std::find_if(selected.begin(), selected.end(),
                                 [&](const CaseSpec& other) { return other.name == spec.name; });
  if (same == selected.end()) {
    selected.push_back(spec);
    return;
  }
  std::copy_if(spec.layouts.begin(), spec.layouts.end(), std::back_inserter(same->layouts),
               [&, known = same->layouts](const Layout& layout) {
                 return std::find(known.begin(), known.end(), layout) == known.end();
               });
}

}  // namespace

std::vector<CaseSpec> Select(const std::string& cases_folder, const std::vector<std::string>& texts,
                             const std::string& layout) {
  std::vector<CaseSpec> selected;
  if (texts.empty()) {
    selected = ReadCases(cases_folder);
  }
  for (const std::string& text : texts) {
    const Wanted wanted(text);
    if (wanted.has_layout && !layout.empty()) {
      throw Error("--layout", fmt::format("{} stands in for the layouts of the cases, and \"{}\" "
                                          "names its own; leave out one of them",
                                          layout, text));
    }
    for (const CaseSpec& spec : CasesOf(cases_folder, wanted)) {
      Add(spec, selected);
    }
  }
  if (!layout.empty()) {
    const Layout parsed = ParseLayout(layout, "--layout");
    for (CaseSpec& spec : selected) {
      RequireFit(spec, parsed, fmt::format("{} on --layout {}", spec.name, layout));
      spec.layouts = {parsed};
    }
  }
  return selected;
}

std::optional<Dtype> StepDtype(const std::string& text) {
  if (text.empty()) {
    return std::nullopt;
  }
  const auto dtype = DtypeFromText(text);
  if (dtype != Dtype::kFloat64 && dtype != Dtype::kFloat32 && dtype != Dtype::kBfloat16) {
    throw Error(
        "--dtype",
        fmt::format("\"{}\" is no dtype of the step; use float64, float32 or bfloat16", text));
  }
  return dtype;
}

}  // namespace moe
