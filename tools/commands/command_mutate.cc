// moegate mutate: the mutation campaign over the selected cases and layouts.

#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "harness/base/error.h"
#include "harness/campaign/campaign_report.h"
#include "tools/commands/commands.h"
#include "tools/commands/options.h"
#include "tools/commands/selection.h"

namespace moe {
namespace {

struct MutateCommand {
  std::vector<std::string> select;
  std::string layout;  // instead of the cases' own
  std::string dtype;   // only this one
  std::vector<std::string> classes;
  std::int64_t seeds = 2;
  std::int64_t most = 15'000;  // planted, unless full
  bool full = false;
  std::int64_t jobs = 0;  // 0: one per core
  bool foreign = false;   // judge by the values alone, as check does
  bool json = false;
};

int Mutate(const CommonOptions& common, const MutateCommand& command) {
  const Campaign campaign =
      RunCampaign(Select(common.cases_folder, command.select, command.layout),
                  {.seeds = command.seeds,
                   .full = command.full,
                   .most = command.most,
                   .classes = command.classes,
                   .dtype = StepDtype(command.dtype),
                   .foreign = command.foreign,
                   .golden_folder = common.golden_folder,
                   .workers = {.jobs = command.jobs, .progress = ::isatty(STDERR_FILENO) == 1}});
  if (campaign.mutants.empty() && campaign.unclean.empty()) {
    throw Error("mutate",
                "plants nothing: no fault of these classes exists under what is selected");
  }
  if (command.json) {
    fmt::print("{}\n", ToJson(campaign).dump(1, ' ', false, Json::error_handler_t::replace));
  } else {
    fmt::print("{}", ToText(campaign));
  }
  return Holds(campaign) ? 0 : 1;
}

}  // namespace

void RegisterMutate(CLI::App& app, const CommonOptions& common, int& status) {
  const auto command = std::make_shared<MutateCommand>();
  CLI::App* sub = app.add_subcommand(
      "mutate", "Plant every fault of the catalogue, and show which were seen and named right");
  AddSelect(*sub, command->select);
  sub->add_option("--layout", command->layout, "Plant on this layout instead of the cases' own");
  AddDtype(*sub, command->dtype);
  sub->add_option("--classes", command->classes, "Only these classes of cases/README.md: FC1,FC6")
      ->delimiter(',');
  sub->add_option("--seeds", command->seeds, "Seeds per case, its own and the ones after it")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  sub->add_flag("--full", command->full,
                "Plant every fault in every dtype, with every seed, at every rank; else each "
                "in one dtype and seed in turn");
  sub->add_option("--most", command->most,
                  "Plant so many at most, evenly spread over what there is; --full plants all")
      ->capture_default_str()
      ->check(CLI::Range(1, 100'000'000));
  sub->add_flag("--foreign", command->foreign,
                "Judge by the values alone, as `moegate check` does: no contract, no call log");
  AddJobs(*sub, command->jobs);
  sub->add_flag("--json", command->json, "Print every fault and what was said of it as JSON");
  sub->callback([&common, &status, command] { status = Mutate(common, *command); });
}

}  // namespace moe
