// moegate soak: many steps without a fault over the selected cases and layouts.

#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "harness/base/error.h"
#include "harness/campaign/soak.h"
#include "tools/commands/commands.h"
#include "tools/commands/options.h"
#include "tools/commands/selection.h"

namespace moe {
namespace {

struct SoakCommand {
  std::vector<std::string> select;
  std::string layout;  // instead of the cases' own
  std::string dtype;   // only this one
  std::string backend = "threads";
  std::int64_t seeds = 10;
  std::optional<std::uint64_t> first_seed;
  std::int64_t jobs = 0;  // 0: one per core
};

int Soak(const CommonOptions& common, const SoakCommand& command) {
  const SoakResult soak =
      RunSoak(Select(common.cases_folder, command.select, command.layout),
              {.seeds = command.seeds,
               .first_seed = command.first_seed,
               .dtype = StepDtype(command.dtype),
               .backend = command.backend,
               .workers = {.jobs = command.jobs, .progress = ::isatty(STDERR_FILENO) == 1}});
  fmt::print("{}", ToText(soak));
  if (!soak.errors.empty()) {
    return 2;
  }
  if (soak.steps == 0) {
    throw Error("soak", "ran nothing: no selected case runs in this dtype with any of the seeds");
  }
  return soak.alarms.empty() ? 0 : 1;
}

}  // namespace

void RegisterSoak(CLI::App& app, const CommonOptions& common, int& status) {
  const auto command = std::make_shared<SoakCommand>();
  CLI::App* sub =
      app.add_subcommand("soak", "Run many steps without a fault, which must never alarm");
  AddSelect(*sub, command->select);
  sub->add_option("--layout", command->layout, "Run on this layout instead of the cases' own");
  AddDtype(*sub, command->dtype);
  sub->add_option("--seeds", command->seeds, "Seeds per case")
      ->capture_default_str()
      ->check(CLI::Range(1, 1'000'000));
  sub->add_option("--first-seed", command->first_seed,
                  "The first of them; by default the one after the case's own");
  AddBackend(*sub, command->backend);
  AddJobs(*sub, command->jobs);
  sub->callback([&common, &status, command] { status = Soak(common, *command); });
}

}  // namespace moe
