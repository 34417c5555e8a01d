// moegate run: the built-in step under every selected case and layout.

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <map>
#include <memory>

#include "harness/base/error.h"
#include "harness/run_case.h"
#include "harness/run_step.h"
#include "tools/commands/command_run.h"
#include "tools/commands/job.h"
#include "tools/commands/selection.h"

namespace moe {
namespace {

struct Listed {
  const CaseSpec* spec;
  const StepGraph* graph;
  Dtype dtype;

  std::string Id() const { return CaseId(*spec, graph->layout()); }
};

struct Runs {
  std::deque<StepGraph> graphs;  // by case and layout
  std::vector<Listed> listed;
};

std::vector<Dtype> DtypesOf(const CaseSpec& spec, const std::string& only) {
  const auto dtype = StepDtype(only);
  if (!dtype) {
    return spec.numerics.dtypes;
  }
  const auto& dtypes = spec.numerics.dtypes;
  return std::find(dtypes.begin(), dtypes.end(), *dtype) == dtypes.end()
             ? std::vector<Dtype>{}
             : std::vector<Dtype>{*dtype};
}

// With other inputs than those of its golden file a case is one step, judged by the error model.
void UseSeed(std::vector<CaseSpec>& selected, std::uint64_t seed) {
  for (CaseSpec& spec : selected) {
    spec.numerics.seed = seed;
    spec.must_catch.clear();
    spec.must_pass.clear();
  }
}

Runs ListRuns(const std::vector<CaseSpec>& selected, const RunCommand& command,
              const std::optional<Fault>& fault) {
  Runs runs;
  for (const CaseSpec& spec : selected) {
    for (const Layout& layout : spec.layouts) {
      const StepGraph& graph = runs.graphs.emplace_back(GraphOf(spec, layout));
      if (const std::string misfit = fault ? FindMisfit(*fault, graph) : ""; !misfit.empty()) {
        throw Error("--fault", fmt::format("{} on {}", misfit, CaseId(spec, layout)));
      }
      for (const Dtype dtype : DtypesOf(spec, command.dtype)) {
        runs.listed.push_back({&spec, &graph, dtype});
      }
    }
  }
  if (runs.listed.empty()) {
    throw Error("--dtype", fmt::format("no selected case runs in {}", command.dtype));
  }
  return runs;
}

// Golden files and generated inputs of the cases, each made once.
class Prepared {
 public:
  explicit Prepared(std::string golden_folder) : golden_folder_(std::move(golden_folder)) {}

  const InputGenerator& InputsOf(const CaseSpec& spec) {
    auto& inputs = inputs_[spec.name];
    if (!inputs) {
      inputs = std::make_unique<InputGenerator>(spec);
    }
    return *inputs;
  }

  const Golden& GoldenOf(const CaseSpec& spec) {
    const auto found = goldens_.find(spec.name);
    return found != goldens_.end()
               ? found->second
               : goldens_.emplace(spec.name, ReadGolden(golden_folder_, spec)).first->second;
  }

 private:
  std::string golden_folder_;
  std::map<std::string, std::unique_ptr<InputGenerator>> inputs_;
  std::map<std::string, Golden> goldens_;
};

// Runs everything that is listed as this rank of a job.
JobOutputs RunAsRank(const Job& job, const std::vector<Listed>& listed,
                     const std::optional<Fault>& fault, Prepared& prepared,
                     const RunOptions& options) {
  std::vector<StepRequest> requests;
  for (const Listed& item : listed) {
    auto more =
        RequestsOf(*item.spec, *item.graph, item.dtype, prepared.InputsOf(*item.spec), options);
    if (fault) {
      more.resize(1);
      more[0].fault = fault;
    }
    requests.insert(requests.end(), more.begin(), more.end());
  }
  return {job, options.backend, requests};
}

Result RunListed(const Listed& item, const std::optional<Fault>& fault,
                 const std::optional<std::uint64_t>& seed, Prepared& prepared,
                 const RunOptions& options) {
  try {
    const InputGenerator& inputs = prepared.InputsOf(*item.spec);
    if (seed) {
      Result result = RunOnce(*item.spec, *item.graph, item.dtype, inputs, fault,
                              /*golden=*/nullptr, options);
      result.repro += fmt::format(" --seed={}", *seed);
      return result;
    }
    const Golden& golden = prepared.GoldenOf(*item.spec);
    return fault ? RunOnce(*item.spec, *item.graph, item.dtype, inputs, fault, &golden, options)
                 : RunCase(*item.spec, *item.graph, item.dtype, inputs, golden, options);
  } catch (const Error& error) {
    return {.id = item.Id(),
            .dtype = std::string(ToText(item.dtype)),
            .backend = options.backend,
            .verdict = Verdict::kError,
            .text = error.what()};
  }
}

}  // namespace

int RunBuiltIn(const CommonOptions& common, const RunCommand& command) {
  std::vector<CaseSpec> selected = Select(common.cases_folder, command.select, command.layout);
  if (command.seed) {
    UseSeed(selected, *command.seed);
  }
  std::optional<Fault> fault;
  if (!command.fault.empty()) {
    fault = ParseFault(command.fault, "--fault");
  }
  const Runs runs = ListRuns(selected, command, fault);
  const std::vector<Listed>& listed = runs.listed;
  RunOptions options{.backend = command.backend,
                     .golden_folder = common.golden_folder,
                     .dump_folder = command.dump_folder};
  options.deadline = command.deadline.value_or(options.deadline);
  Prepared prepared(common.golden_folder);

  // Threads are ranks of this process, whoever started it.
  const auto job = command.backend == "threads" ? std::nullopt : JobFromEnvironment();
  std::optional<JobOutputs> outputs;
  if (job && TheStepPlugin().FindObstacle(command.backend, job->local_rank + 1).empty()) {
    outputs = RunAsRank(*job, listed, fault, prepared, options);
    options.run_ranks = [&](const StepRequest& request) { return outputs->Of(request); };
  }
  if (job && job->rank != 0) {
    return 0;  // rank 0 judges what all ranks hold
  }

  std::vector<Result> results;
  const bool progress = ::isatty(STDERR_FILENO) == 1;
  for (const Listed& item : listed) {
    if (progress) {
      fmt::print(stderr, "\r\033[K[{}/{}] {} {}", results.size() + 1, listed.size(), item.Id(),
                 ToText(item.dtype));
    }
    results.push_back(RunListed(item, fault, command.seed, prepared, options));
    if (progress) {
      fmt::print(stderr, "\r\033[K");
    }
    if (!command.output.json) {
      fmt::print("{}", ToText(results.back()));
      std::fflush(stdout);
    }
  }
  return Finish(results, static_cast<std::int64_t>(listed.size()), command.output);
}

}  // namespace moe
