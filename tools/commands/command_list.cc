// moegate list: what there is to run.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "harness/json/json_reader.h"
#include "tools/commands/commands.h"
#include "tools/commands/options.h"
#include "tools/commands/selection.h"

namespace moe {
namespace {

struct ListCommand {
  std::vector<std::string> select;
  bool json = false;
};

void List(const CommonOptions& common, const ListCommand& command) {
  Json list = Json::array();
  for (const CaseSpec& spec : Select(common.cases_folder, command.select)) {
    std::vector<std::string> layouts;
    for (const Layout& layout : spec.layouts) {
      layouts.push_back(ToText(layout));
    }
    std::vector<std::string> dtypes;
    for (const Dtype dtype : spec.numerics.dtypes) {
      dtypes.emplace_back(ToText(dtype));
    }
    if (command.json) {
      Json entry;
      entry["case"] = spec.name;
      entry["source"] = spec.source;
      entry["layouts"] = layouts;
      entry["dtypes"] = dtypes;
      entry["must_catch"] = spec.must_catch.size();
      list.push_back(std::move(entry));
      continue;
    }
    fmt::print("{}\n  {}\n", spec.name, spec.why);
    fmt::print("  layouts {}\n  dtypes  {}   faults to tell {}\n\n", fmt::join(layouts, " "),
               fmt::join(dtypes, " "), spec.must_catch.size() + spec.must_pass.size());
  }
  if (command.json) {
    fmt::print("{}\n", list.dump(2));
  }
}

}  // namespace

void RegisterList(CLI::App& app, const CommonOptions& common, int& status) {
  const auto command = std::make_shared<ListCommand>();
  CLI::App* sub = app.add_subcommand("list", "Show the cases, their layouts and dtypes");
  AddSelect(*sub, command->select);
  sub->add_flag("--json", command->json, "Print the list as JSON");
  sub->callback([&common, &status, command] {
    List(common, *command);
    status = 0;
  });
}

}  // namespace moe
