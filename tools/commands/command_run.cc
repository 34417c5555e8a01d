#include "tools/commands/command_run.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <memory>

#include "harness/base/error.h"
#include "harness/layout/fault.h"
#include "tools/commands/options.h"

namespace moe {
namespace {

std::chrono::milliseconds DeadlineOf(double seconds) {
  if (!std::isfinite(seconds)) {  // CLI::Range lets NaN pass
    throw Error("--deadline", "is not a number of seconds");
  }
  return std::chrono::milliseconds(static_cast<std::int64_t>(seconds * 1000.0));
}

}  // namespace

#ifndef MOEGATE_STEP
int RunBuiltIn(const CommonOptions& /*common*/, const RunCommand& /*command*/) {
  throw Error("run",
              "this moegate was built to judge dumps only (MOEGATE_STEP=OFF); give --producer, or "
              "run tools/setup.sh to build the parallel step");
}
#endif

void RegisterRun(CLI::App& app, const CommonOptions& common, int& status) {
  const auto command = std::make_shared<RunCommand>();
  CLI::App* sub = app.add_subcommand(
      "run",
      "Run cases with the built-in step, or another framework's, and judge them; all of them by "
      "default");
  AddSelect(*sub, command->select);
  sub->add_option("--layout", command->layout,
                  "Run on this layout instead of the cases' own, e.g. dp2.tp2.ep2.etp1");
  AddDtype(*sub, command->dtype);
  auto* backend = AddBackend(*sub, command->backend);
  auto* fault = sub->add_option("--fault", command->fault,
                                fmt::format("Plant a fault: 'drop d_gate_ED@tp', or another of {}",
                                            fmt::join(FaultForms(), ", ")));
  auto* seed = sub->add_option(
      "--seed", command->seed,
      "Draw the inputs from this seed and judge by the error model alone, as soak does");
  sub->add_option_function<std::string>(
      "--dump",
      [command](const std::string& folder) {
        if (!folder.empty()) {  // as from a variable that a script left unset
          command->dump_folder = folder;
        }
      },
      "Keep the dump of every run below this folder");
  sub->add_option_function<double>(
         "--deadline", [command](double seconds) { command->deadline = DeadlineOf(seconds); },
         "Seconds that any wait for a rank may take (20), or a step of a producer (60)")
      ->check(CLI::Range(0.1, 3600.0));
  auto* producer =
      sub->add_option(
             "--producer", command->producer,
             "Run another framework's step instead: torchtitan==0.2.2, megatron-core==0.19.2, "
             "or a program of your own (tools/adapters/README.md); as it is, so no faults are "
             "planted, and in float64 unless --dtype says otherwise")
          ->excludes(backend)
          ->excludes(fault)
          ->excludes(seed);
  sub->add_option("--producer-option", command->producer_options,
                  "KEY=VALUE for the producer; KEY=A,B runs every step with either")
      ->allow_extra_args(false)
      ->needs(producer);
  AddOutput(*sub, command->output);
  sub->callback([&common, &status, command, producer] {
    status =
        producer->count() > 0 ? RunWithProducer(common, *command) : RunBuiltIn(common, *command);
  });
}

}  // namespace moe
