#include "tools/commands/selection.h"

#include <fmt/format.h>
#include <fnmatch.h>

#include <algorithm>
#include <filesystem>

#include "harness/base/error.h"

namespace moe {
namespace {

bool HasWildcard(const std::string& text) {
  return text.find_first_of("*?[") != std::string::npos;
}

bool Matches(const std::string& pattern, const std::string& text) {
  return ::fnmatch(pattern.c_str(), text.c_str(), 0) == 0;
}

void AddLayout(std::vector<Layout>& layouts, const Layout& layout) {
  if (std::find(layouts.begin(), layouts.end(), layout) == layouts.end()) {
    layouts.push_back(layout);
  }
}

// The layouts of one case that `pattern` (empty: all) means.
std::vector<Layout> LayoutsOf(const CaseSpec& spec, const std::string& pattern,
                              const std::string& text) {
  if (pattern.empty()) {
    return spec.layouts;
  }
  if (!HasWildcard(pattern)) {
    const Layout layout = ParseLayout(pattern, text);
    CheckFits(spec, layout, text);
    return {layout};
  }
  std::vector<Layout> layouts;
  std::copy_if(spec.layouts.begin(), spec.layouts.end(), std::back_inserter(layouts),
               [&](const Layout& layout) { return Matches(pattern, ToText(layout)); });
  return layouts;
}

}  // namespace

void CheckFits(const CaseSpec& spec, const Layout& layout, const std::string& where) {
  if (const std::string misfit = FindMisfit(spec.model, layout); !misfit.empty()) {
    throw Error(where, misfit);
  }
}

std::vector<SelectedCase> Select(const std::string& cases_folder,
                                 const std::vector<std::string>& texts) {
  std::vector<SelectedCase> selected;
  const auto add = [&](const CaseSpec& spec, const std::vector<Layout>& layouts) {
    auto found = std::find_if(selected.begin(), selected.end(),
                              [&](const SelectedCase& s) { return s.spec.name == spec.name; });
    if (found == selected.end()) {
      found = selected.insert(selected.end(), SelectedCase{spec, {}});
    }
    for (const Layout& layout : layouts) {
      AddLayout(found->layouts, layout);
    }
  };
  if (texts.empty()) {
    for (const CaseSpec& spec : ReadCases(cases_folder)) {
      add(spec, spec.layouts);
    }
    return selected;
  }
  for (const std::string& text : texts) {
    const std::size_t at = text.find('@');
    const std::string name = text.substr(0, at);
    const std::string layout = at == std::string::npos ? "" : text.substr(at + 1);
    const std::size_t before = selected.size();
    bool any = false;
    if (!HasWildcard(name)) {
      const CaseSpec spec = FindCase(cases_folder, name);
      const std::vector<Layout> layouts = LayoutsOf(spec, layout, text);
      any = !layouts.empty();
      add(spec, layouts);
    } else {
      for (const CaseSpec& spec : ReadCases(cases_folder)) {
        if (!Matches(name, spec.name)) {
          continue;
        }
        const std::vector<Layout> layouts = LayoutsOf(spec, layout, text);
        if (!layouts.empty()) {
          any = true;
          add(spec, layouts);
        }
      }
    }
    if (!any) {
      selected.resize(before);
      throw Error(text,
                  "selects no case on any of its layouts; `moegate list` shows what there is");
    }
  }
  return selected;
}

std::vector<CaseSpec> SelectSpecs(const std::string& cases_folder,
                                  const std::vector<std::string>& texts,
                                  const std::string& layout) {
  std::vector<CaseSpec> specs;
  for (SelectedCase& one : Select(cases_folder, texts)) {
    if (!layout.empty()) {
      one.layouts = {ParseLayout(layout, "--layout")};
      CheckFits(one.spec, one.layouts.front(),
                fmt::format("{} on --layout {}", one.spec.name, layout));
    }
    specs.push_back(std::move(one.spec));
    specs.back().layouts = std::move(one.layouts);
  }
  return specs;
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
