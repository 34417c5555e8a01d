// moegate list: what there is to run.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdio>

#include "tools/commands/commands.h"
#include "tools/commands/selection.h"

namespace moe {

int List(const CommonOptions& common, const std::vector<std::string>& select, bool json) {
  Json list = Json::array();
  for (const SelectedCase& selected : Select(common.cases_folder, select)) {
    std::vector<std::string> layouts;
    for (const Layout& layout : selected.layouts) {
      layouts.push_back(ToText(layout));
    }
    std::vector<std::string> dtypes;
    for (const Dtype dtype : selected.spec.numerics.dtypes) {
      dtypes.emplace_back(ToText(dtype));
    }
    if (json) {
      Json entry;
      entry["case"] = selected.spec.name;
      entry["source"] = selected.spec.source;
      entry["layouts"] = layouts;
      entry["dtypes"] = dtypes;
      entry["must_catch"] = selected.spec.must_catch.size();
      list.push_back(std::move(entry));
      continue;
    }
    fmt::print("{}\n  {}\n", selected.spec.name, selected.spec.why);
    fmt::print("  layouts {}\n  dtypes  {}   faults to tell {}\n\n", fmt::join(layouts, " "),
               fmt::join(dtypes, " "),
               selected.spec.must_catch.size() + selected.spec.must_pass.size());
  }
  if (json) {
    fmt::print("{}\n", list.dump(2));
  }
  return 0;
}

}  // namespace moe
