// moegate: reads the command line and calls one of commands.h.

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "harness/base/error.h"
#include "harness/layout/fault.h"
#include "tools/commands/commands.h"
#include "tools/commands/keep_memory.h"

namespace moe {
namespace {

// The clone that this binary was built from, unless the working directory is one.
std::string DefaultFolder(const std::string& name) {
  return std::filesystem::is_directory(name) ? name : std::string(MOEGATE_SOURCE_DIR "/") + name;
}

constexpr const char* kSelectHelp =
    "CASE or CASE@LAYOUT, with * and ? as in a shell: 'issues/*', "
    "'issues/torchtitan-2387@tp2.ep2.etp1'";

int Main(int argc, char** argv) {
  CLI::App app(
      "Tells whether a parallel Mixture-of-Experts training step computes the right gradients, and "
      "if not, which "
      "reduction is missing, doubled, mis-scaled or in the wrong group.\n"
      "Exit status: 0 every listed case passed; 1 one failed, was vacuous or did not run; 2 the "
      "command, a file "
      "or the machine is at fault.",
      "moegate");
  app.require_subcommand(1);
  app.fallthrough();
  CommonOptions common{DefaultFolder("cases"), DefaultFolder("golden"),
                       DefaultFolder("tools/adapters")};
  app.add_option("--cases", common.cases_folder, "Folder of case files")->capture_default_str();
  app.add_option("--golden", common.golden_folder, "Folder of golden files")->capture_default_str();
  OutputOptions output;
  std::string junit;
  const auto add_output = [&](CLI::App* command) {
    command->add_flag("--json", output.json, "Print the results as JSON instead of text");
    command->add_option("--junit", junit, "Also write the results as JUnit XML to this file");
  };

  std::vector<std::string> select;
  auto* list = app.add_subcommand("list", "Show the cases, their layouts and dtypes");
  list->add_option("SELECT", select, kSelectHelp);
  list->add_flag("--json", output.json, "Print the list as JSON");

  std::string target;
  auto* explain = app.add_subcommand(
      "explain",
      "Show a case's problem, what its tensors may be off by, its meshes, and which sums a correct "
      "step owes under each layout");
  explain->add_option("CASE[@LAYOUT]", target, "A case, or one of its layouts")->required();

  std::vector<std::string> dumps;
  auto* check = app.add_subcommand("check", "Judge dumps that another framework made");
  check->add_option("DUMP", dumps, "Folders with manifest.json and one safetensors file per rank")
      ->required();
  add_output(check);

  std::string folder;
  std::string dtype_text = "float64";
  auto* inputs =
      app.add_subcommand("inputs", "Write what another framework needs to run a case's problem");
  inputs->add_option("CASE", target, "A case")->required();
  inputs->add_option("--out", folder, "Folder to write to")->required();
  inputs->add_option("--dtype", dtype_text, "float64, float32 or bfloat16")->capture_default_str();

  RunCommand run_command;
  std::string dump_folder;
  auto* run = app.add_subcommand(
      "run",
      "Run cases with the built-in step, or another framework's, and judge them; all of them by "
      "default");
  run->add_option("SELECT", run_command.select, kSelectHelp);
  run->add_option("--layout", run_command.layout,
                  "Run on this layout instead of the cases' own, e.g. dp2.tp2.ep2.etp1");
  run->add_option("--dtype", run_command.dtype, "Only float64, float32 or bfloat16");
  auto* backend = run->add_option("--backend", run_command.backend, "threads, gloo or nccl")
                      ->capture_default_str()
                      ->check(CLI::IsMember({"threads", "gloo", "nccl"}));
  auto* fault = run->add_option("--fault", run_command.fault,
                                fmt::format("Plant a fault: 'drop d_gate_ED@tp', or another of {}",
                                            fmt::join(FaultForms(), ", ")));
  auto* seed = run->add_option(
      "--seed", run_command.seed,
      "Draw the inputs from this seed and judge by the error model alone, as soak does");
  run->add_option("--dump", dump_folder, "Keep the dump of every run below this folder");
  double deadline_seconds = 0.0;
  auto* deadline =
      run->add_option(
             "--deadline", deadline_seconds,
             "Seconds that any wait for a rank may take (20), or a step of a producer (60)")
          ->check(CLI::Range(0.1, 3600.0));
  auto* producer =
      run->add_option(
             "--producer", run_command.producer,
             "Run another framework's step instead: torchtitan==0.2.2, megatron-core==0.19.2, "
             "or a program of your own (tools/adapters/README.md); as it is, so no faults are "
             "planted, and in float64 unless --dtype says otherwise")
          ->excludes(backend)
          ->excludes(fault)
          ->excludes(seed);
  run->add_option("--producer-option", run_command.producer_options,
                  "KEY=VALUE for the producer; KEY=A,B runs every step with either")
      ->allow_extra_args(false)
      ->needs(producer);
  add_output(run);

#ifdef MOEGATE_STEP
  MutateCommand mutate_command;
  auto* mutate = app.add_subcommand(
      "mutate", "Plant every fault of the catalogue, and show which were seen and named right");
  mutate->add_option("SELECT", mutate_command.select, kSelectHelp);
  mutate->add_option("--layout", mutate_command.layout,
                     "Plant on this layout instead of the cases' own");
  mutate->add_option("--dtype", mutate_command.dtype, "Only float64, float32 or bfloat16");
  mutate
      ->add_option("--classes", mutate_command.classes,
                   "Only these classes of cases/README.md: FC1,FC6")
      ->delimiter(',');
  mutate
      ->add_option("--seeds", mutate_command.seeds, "Seeds per case, its own and the ones after it")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  mutate->add_flag("--full", mutate_command.full,
                   "Plant every fault in every dtype, with every seed, at every rank; else each in "
                   "one dtype and seed in turn");
  mutate
      ->add_option("--most", mutate_command.most,
                   "Plant so many at most, evenly spread over what there is; --full plants all")
      ->capture_default_str()
      ->check(CLI::Range(1, 100'000'000));
  mutate->add_flag("--foreign", mutate_command.foreign,
                   "Judge by the values alone, as `moegate check` does: no contract, no call log");
  mutate->add_option("--jobs", mutate_command.jobs, "Processes; 0: one per core")
      ->capture_default_str()
      ->check(CLI::Range(0, 1024));
  mutate->add_flag("--json", output.json, "Print every fault and what was said of it as JSON");

  SoakCommand soak_command;
  auto* soak = app.add_subcommand("soak", "Run many steps without a fault, which must never alarm");
  soak->add_option("SELECT", soak_command.select, kSelectHelp);
  soak->add_option("--layout", soak_command.layout, "Run on this layout instead of the cases' own");
  soak->add_option("--dtype", soak_command.dtype, "Only float64, float32 or bfloat16");
  soak->add_option("--seeds", soak_command.seeds, "Seeds per case")
      ->capture_default_str()
      ->check(CLI::Range(1, 1'000'000));
  soak->add_option("--first-seed", soak_command.first_seed,
                   "The first of them; by default the one after the case's own");
  soak->add_option("--backend", soak_command.backend, "threads, gloo or nccl")
      ->capture_default_str()
      ->check(CLI::IsMember({"threads", "gloo", "nccl"}));
  soak->add_option("--jobs", soak_command.jobs, "Processes; 0: one per core")
      ->capture_default_str()
      ->check(CLI::Range(0, 1024));

  RegenCommand regen_command;
  auto* regen = app.add_subcommand("regen", "Regenerate golden files; shows old against new");
  regen->add_option("SELECT", regen_command.select,
                    "CASE, with * and ? as in a shell; all by default");
  regen->add_flag("--accept", regen_command.accept,
                  "Also write tolerances that are wider than before");
  regen->add_flag(
      "--calibrate", regen_command.calibrate,
      "Write nothing; print per dtype the least, median and largest noise of clean runs "
      "over its bound, and exit with 1 where one exceeds it");
#endif

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (!junit.empty()) {
    output.junit = junit;
  }
  if (list->parsed()) {
    return List(common, select, output.json);
  }
  if (explain->parsed()) {
    return Explain(common, target);
  }
  if (check->parsed()) {
    return Check(common, dumps, output);
  }
  if (inputs->parsed()) {
    const auto dtype = DtypeFromText(dtype_text);
    if (dtype != Dtype::kFloat64 && dtype != Dtype::kFloat32 && dtype != Dtype::kBfloat16) {
      throw Error("--dtype",
                  fmt::format("\"{}\" is no dtype of inputs; use float64, float32 or bfloat16",
                              dtype_text));
    }
    return Inputs(common, target, folder, *dtype);
  }
  if (run->parsed()) {
    if (!dump_folder.empty()) {
      run_command.dump_folder = dump_folder;
    }
    if (deadline->count() > 0) {
      if (!std::isfinite(deadline_seconds)) {
        throw Error("--deadline", "is not a number of seconds");
      }
      run_command.deadline =
          std::chrono::milliseconds(static_cast<std::int64_t>(deadline_seconds * 1000.0));
    }
    if (producer->count() > 0) {
      return RunWithProducer(common, run_command, output);
    }
#ifdef MOEGATE_STEP
    return Run(common, run_command, output);
#else
    throw Error(
        "run",
        "this moegate was built to judge dumps only (MOEGATE_STEP=OFF); give --producer, or run "
        "tools/setup.sh to build the parallel step");
#endif
  }
#ifdef MOEGATE_STEP
  if (mutate->parsed()) {
    return Mutate(common, mutate_command, output.json);
  }
  if (soak->parsed()) {
    return Soak(common, soak_command);
  }
  return Regen(common, regen_command);
#else
  throw Error("moegate", "was built to judge dumps only");  // every other command has returned
#endif
}

}  // namespace

int Finish(const std::vector<Result>& results, std::int64_t listed, const OutputOptions& output) {
  const Summary summary = Summarize(results, listed);
  if (output.json) {
    fmt::print("{}\n",
               ToJson(results, summary).dump(2, ' ', false, Json::error_handler_t::replace));
  } else {
    fmt::print("{}\n", ToText(summary));
  }
  if (output.junit) {
    WriteJUnit(*output.junit, results, summary);
  }
  return ExitStatus(summary);
}

}  // namespace moe

int main(int argc, char** argv) {
  moe::KeepFreedMemory();
  // The ranks' threads are the parallelism; OpenMP pools under them would only fight.
  ::setenv("OMP_NUM_THREADS", "1", /*overwrite=*/0);
  int status = 2;
  try {
    status = moe::Main(argc, argv);
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
      throw moe::Error("standard output", "cannot be written, so the report is lost");
    }
  } catch (const std::exception& error) {
    fmt::print(stderr, "ERROR  {}\n", error.what());
    status = 2;
  }
  std::fflush(nullptr);
  // LibTorch's static destructors would take 60 ms, more than most commands, and save nothing.
  std::_Exit(status);
}
