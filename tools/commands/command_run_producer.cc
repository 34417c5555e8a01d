// moegate run --producer: another framework's step under every selected case and layout, judged as
// `moegate check` judges its dumps.

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <new>

#include "harness/base/error.h"
#include "harness/json/model_json.h"
#include "harness/launch/job_environment.h"
#include "harness/launch/scratch_folder.h"
#include "tools/commands/command_run.h"
#include "tools/commands/judge_dump.h"
#include "tools/commands/problem_folder.h"
#include "tools/commands/selection.h"
#include "tools/producers/producer.h"

namespace moe {
namespace {

namespace fs = std::filesystem;

using Options = std::map<std::string, std::string>;

// "KEY=V1,V2" and "OTHER=V3" become every combination of one value each.
std::vector<Options> CombinationsOf(const std::vector<std::string>& texts) {
  std::vector<Options> combinations = {{}};
  for (const std::string& text : texts) {
    const std::size_t equals = text.find('=');
    if (equals == 0 || equals == std::string::npos || equals + 1 == text.size()) {
      throw Error("--producer-option",
                  fmt::format("\"{}\" must be KEY=VALUE or KEY=VALUE,VALUE", text));
    }
    const std::string key = text.substr(0, equals);
    if (combinations[0].contains(key)) {
      throw Error("--producer-option", fmt::format("{} is given twice; write {}=A,B", key, key));
    }
    std::vector<Options> more;
    for (const Options& combination : combinations) {
      for (std::size_t at = equals + 1; at <= text.size();) {
        const std::size_t comma = std::min(text.find(',', at), text.size());
        more.push_back(combination);
        more.back()[key] = text.substr(at, comma - at);
        at = comma + 1;
      }
    }
    combinations = std::move(more);
  }
  return combinations;
}

// One step to be judged.
struct Asked {
  const CaseSpec* spec;
  Layout layout;
  ProducerStep step;
  std::string options;  // "backend=spmd_types fsdp=on"
  std::string repro;
};

Asked Ask(const CaseSpec& spec, const Layout& layout, Dtype dtype, const Options& options,
          const std::string& producer) {
  Asked asked{.spec = &spec, .layout = layout};
  asked.step = {
      .id = CaseId(spec, layout), .layout = ToText(layout), .dtype = dtype, .options = options};
  asked.repro = fmt::format("build/moegate run {} --producer={} --dtype={}", asked.step.id,
                            producer, ToText(dtype));
  for (const auto& [key, value] : options) {
    asked.options += fmt::format("{}{}={}", asked.options.empty() ? "" : " ", key, value);
    asked.repro += fmt::format(" --producer-option={}={}", key, value);
  }
  return asked;
}

std::vector<Asked> AskAll(const std::vector<CaseSpec>& specs, const RunCommand& command) {
  const Dtype dtype = StepDtype(command.dtype).value_or(Dtype::kFloat64);
  std::vector<Asked> all;
  for (const Options& options : CombinationsOf(command.producer_options)) {
    for (const CaseSpec& spec : specs) {
      const auto& dtypes = spec.numerics.dtypes;
      if (std::find(dtypes.begin(), dtypes.end(), dtype) == dtypes.end()) {
        continue;
      }
      for (const Layout& layout : spec.layouts) {
        all.push_back(Ask(spec, layout, dtype, options, command.producer));
      }
    }
  }
  if (all.empty()) {
    throw Error("--dtype", fmt::format("no selected case runs in {}", ToText(dtype)));
  }
  return all;
}

// The folders that a step reads and writes; each case's problem is written once.
void PlaceFolders(std::vector<Asked>& all, const fs::path& scratch,
                  const std::optional<std::string>& kept) {
  for (std::size_t i = 0; i < all.size(); ++i) {
    const fs::path problem = scratch / "problems" / all[i].spec->name;
    if (!fs::exists(problem)) {
      WriteProblem(*all[i].spec, InputGenerator(*all[i].spec), problem.string(), all[i].step.dtype);
    }
    all[i].step.problem = problem.string();
    std::string name = all[i].step.id + "." + std::string(ToText(all[i].step.dtype));
    for (const auto& [key, value] : all[i].step.options) {
      name += fmt::format(".{}={}", key, value);
    }
    const fs::path out = kept ? fs::absolute(*kept) / name : scratch / "dumps" / std::to_string(i);
    if (fs::exists(out)) {
      throw Error(out.string(), "is there already; give another folder to --dump, or remove it");
    }
    fs::create_directories(out.parent_path());
    all[i].step.out = out.string();
  }
}

// A dump of another problem or layout would be judged, and say nothing about what was asked.
void CheckIsAsked(const Asked& asked) {
  const Manifest manifest = OpenDump(asked.step.out).manifest;
  const auto refuse = [&](const std::string& what) {
    throw Error(asked.step.id, fmt::format("the producer dumped {}", what));
  };
  if (manifest.case_name != asked.spec->name) {
    refuse(fmt::format("{} instead of the case {}",
                       manifest.case_name ? "the case " + *manifest.case_name : "no case by name",
                       asked.spec->name));
  }
  if (!(manifest.layout == asked.layout)) {
    refuse(
        fmt::format("the layout {} instead of {}", ToText(manifest.layout), ToText(asked.layout)));
  }
  if (ToJson(manifest.model) != ToJson(asked.spec->model)) {
    refuse(fmt::format("another model than that of {}", asked.spec->name));
  }
  if (manifest.dtype != asked.step.dtype) {
    refuse(fmt::format("{} instead of {}", ToText(manifest.dtype), ToText(asked.step.dtype)));
  }
}

Result ResultOf(const CommonOptions& common, const std::string& producer, const Asked& asked,
                const ProducerAnswer& answer) {
  Result result;
  result.verdict = Verdict::kError;
  result.text = answer.text;
  if (answer.kind == ProducerAnswer::Kind::kSkipped) {
    result.verdict = Verdict::kSkipped;
  } else if (answer.kind == ProducerAnswer::Kind::kDump) {
    try {
      CheckIsAsked(asked);
      result = JudgeDump(common, asked.step.out);
    } catch (const Error& error) {
      result.text = error.what();
    } catch (const std::bad_alloc&) {
      result.text = asked.step.out + ": needs more memory than there is";
    }
  }
  result.id = asked.step.id;
  result.dtype = ToText(asked.step.dtype);
  result.backend = producer;
  result.options = asked.options;
  result.repro = asked.repro;
  return result;
}

// One line on the terminal that says what is going on, where there is a terminal.
class Progress {
 public:
  void Show(const std::string& text) {
    if (shown_) {
      fmt::print(stderr, "\r\033[K{}", text);
    }
  }
  void Clear() { Show(""); }

 private:
  const bool shown_ = ::isatty(STDERR_FILENO) == 1;
};

}  // namespace

int RunWithProducer(const CommonOptions& common, const RunCommand& command) {
  if (JobFromEnvironment()) {
    throw Error("--producer", "starts its ranks itself; run it without torchrun, srun or mpirun");
  }
  const std::vector<CaseSpec> specs = Select(common.cases_folder, command.select, command.layout);
  std::vector<Asked> all = AskAll(specs, command);
  const ScratchFolder scratch;
  PlaceFolders(all, scratch.path(), command.dump_folder);
  const Producer producer =
      FindProducer(command.producer, common.adapters_folder, scratch.path().string());
  std::vector<ProducerStep> steps;
  for (const Asked& asked : all) {
    steps.push_back(asked.step);
  }
  ProducerDeadlines deadlines;
  deadlines.step = command.deadline.value_or(deadlines.step);

  Progress progress;
  std::vector<Result> results;
  auto start = std::chrono::steady_clock::now();
  const auto begin = [&](std::size_t step) {
    start = std::chrono::steady_clock::now();
    if (step < all.size()) {
      progress.Show(
          fmt::format("[{}/{}] {} {}", step + 1, all.size(), all[step].step.id, all[step].options));
    }
  };
  const auto answered = [&](std::size_t step, const ProducerAnswer& answer) {
    results.push_back(ResultOf(common, producer.name, all[step], answer));
    results.back().seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    progress.Clear();
    if (!command.output.json) {
      fmt::print("{}", ToText(results.back()));
      std::fflush(stdout);
    }
    if (!command.dump_folder) {
      std::error_code ignored;  // the scratch folder goes as a whole
      fs::remove_all(all[step].step.out, ignored);
    }
    begin(step + 1);
  };
  progress.Show(fmt::format("{} starts", producer.name));
  RunProducer(producer, steps, scratch.path().string(), deadlines,
              {.ready = [&] { begin(0); }, .answered = answered});
  progress.Clear();
  return Finish(results, static_cast<std::int64_t>(all.size()), command.output);
}

}  // namespace moe
