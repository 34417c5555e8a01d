#include "tools/commands/output.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "tools/commands/version.h"

namespace moe {

void AddOutput(CLI::App& command, OutputOptions& output) {
  command.add_flag("--json", output.json, "Print the results as JSON instead of text");
  command.add_option("--junit", output.junit, "Also write the results as JUnit XML to this file");
}

int Finish(const std::vector<Result>& results, std::int64_t listed, const OutputOptions& output) {
  const Summary summary = Summarize(results, listed);
  if (output.json) {
    Json json = ToJson(results, summary);
    const Version version = ThisVersion();
    json["moegate"] = {{"version", version.version}, {"commit", version.commit}};
    fmt::print("{}\n", json.dump(2, ' ', false, Json::error_handler_t::replace));
  } else {
    fmt::print("{}\n", ToText(summary));
  }
  if (!output.junit.empty()) {
    WriteJUnit(output.junit, results, summary);
  }
  return ExitStatus(summary);
}

}  // namespace moe
