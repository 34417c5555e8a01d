// moegate soak: many steps without a fault over the selected cases and layouts.

#include <fmt/format.h>
#include <unistd.h>

#include "harness/base/error.h"
#include "harness/campaign/soak.h"
#include "tools/commands/commands.h"
#include "tools/commands/selection.h"

namespace moe {

int Soak(const CommonOptions& common, const SoakCommand& command) {
  const SoakResult soak =
      RunSoak(SelectSpecs(common.cases_folder, command.select, command.layout),
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

}  // namespace moe
