// moegate check: judges dump folders that somebody else made.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <new>

#include "harness/base/error.h"
#include "tools/commands/commands.h"
#include "tools/commands/judge_dump.h"
#include "tools/commands/output.h"

namespace moe {
namespace {

struct CheckCommand {
  std::vector<std::string> dumps;
  OutputOptions output;
};

int Check(const CommonOptions& common, const CheckCommand& command) {
  std::vector<Result> results;
  for (const std::string& folder : command.dumps) {
    try {
      results.push_back(JudgeDump(common, folder));
    } catch (const Error& error) {
      results.push_back({.id = folder, .verdict = Verdict::kError, .text = error.what()});
    } catch (const std::bad_alloc&) {
      results.push_back({.id = folder,
                         .verdict = Verdict::kError,
                         .text = folder + ": needs more memory than there is"});
    }
    if (!command.output.json) {
      fmt::print("{}", ToText(results.back()));
    }
  }
  return Finish(results, static_cast<std::int64_t>(command.dumps.size()), command.output);
}

}  // namespace

void RegisterCheck(CLI::App& app, const CommonOptions& common, int& status) {
  const auto command = std::make_shared<CheckCommand>();
  CLI::App* sub = app.add_subcommand("check", "Judge dumps that another framework made");
  sub->add_option("DUMP", command->dumps,
                  "Folders with manifest.json and one safetensors file per rank")
      ->required();
  AddOutput(*sub, command->output);
  sub->callback([&common, &status, command] { status = Check(common, *command); });
}

}  // namespace moe
