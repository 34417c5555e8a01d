// moegate mutate: the mutation campaign over the selected cases and layouts.

#include <fmt/format.h>
#include <unistd.h>

#include "harness/base/error.h"
#include "harness/campaign/campaign_report.h"
#include "tools/commands/commands.h"
#include "tools/commands/selection.h"

namespace moe {

int Mutate(const CommonOptions& common, const MutateCommand& command, bool json) {
  const Campaign campaign =
      RunCampaign(SelectSpecs(common.cases_folder, command.select, command.layout),
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
  if (json) {
    fmt::print("{}\n", ToJson(campaign).dump(1, ' ', false, Json::error_handler_t::replace));
  } else {
    fmt::print("{}", ToText(campaign));
  }
  return Holds(campaign) ? 0 : 1;
}

}  // namespace moe
