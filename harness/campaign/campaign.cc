#include "harness/campaign/campaign.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <memory>

#include "harness/base/error.h"
#include "harness/run_case.h"
#include "harness/run_step.h"
#include "harness/whole_inputs.h"

namespace moe {
namespace {

// Seeds tried beyond the ones that are wanted, where the generator refuses some.
constexpr std::uint64_t kSpareSeeds = 20;

// A case with one of its seeds. Only its own has a golden file; the others are judged by the error
// model alone.
struct Problem {
  CaseSpec spec;
  std::unique_ptr<WholeInputs> inputs;
  std::optional<Golden> golden;
};

// The faults of one case on one layout that are planted in one dtype with one seed.
struct Group {
  const Problem* problem = nullptr;
  const StepGraph* graph = nullptr;
  Dtype dtype = Dtype::kFloat64;
  std::vector<PlantedFault> faults;
};

std::vector<Problem> ProblemsOf(const CaseSpec& spec, const CampaignOptions& options) {
  std::vector<Problem> problems;
  for (std::uint64_t more = 0; more < static_cast<std::uint64_t>(options.seeds) + kSpareSeeds;
       ++more) {
    if (static_cast<std::int64_t>(problems.size()) == options.seeds) {
      break;
    }
    Problem problem{.spec = spec};
    problem.spec.numerics.seed += more;
    try {
      problem.inputs = std::make_unique<WholeInputs>(spec.model, InputGenerator(problem.spec));
    } catch (const Error&) {
      if (more == 0) {
        throw;
      }
      continue;  // this seed has no room between its margins; the next may
    }
    if (more == 0) {
      problem.golden = ReadGolden(options.golden_folder, spec);
    }
    problems.push_back(std::move(problem));
  }
  return problems;
}

std::vector<Dtype> DtypesOf(const CaseSpec& spec, const CampaignOptions& options) {
  std::vector<Dtype> dtypes = spec.numerics.dtypes;
  if (options.dtype) {
    std::erase_if(dtypes, [&](Dtype dtype) { return dtype != *options.dtype; });
  }
  return dtypes;
}

std::vector<PlantedFault> FaultsOn(const StepGraph& graph, const CampaignOptions& options) {
  std::vector<PlantedFault> faults =
      CatalogueOf(graph, options.full ? RanksToPlant::kAll : RanksToPlant::kFirstAndLast);
  std::erase_if(faults, [&](const PlantedFault& planted) {
    const auto& wanted = options.classes;
    return !wanted.empty() &&
           std::find(wanted.begin(), wanted.end(), planted.bug_class) == wanted.end();
  });
  return faults;
}

// Which of `count` things a sample of `most` keeps: evenly spread ones.
class Sample {
 public:
  Sample(std::int64_t count, std::int64_t most) : count_(count), most_(std::min(count, most)) {}
  bool KeepsNext() {
    const std::int64_t at = next_++;
    return (at + 1) * most_ / count_ > at * most_ / count_;
  }

 private:
  std::int64_t count_;
  std::int64_t most_;
  std::int64_t next_ = 0;
};

// Deals the faults of a layout out to the dtypes and seeds, or gives all to each.
std::vector<Group> GroupsOf(const std::vector<Problem>& problems, const StepGraph& graph,
                            std::size_t first_turn, Sample& sample,
                            const CampaignOptions& options) {
  const CaseSpec& spec = problems.front().spec;
  std::vector<Group> groups;
  for (const Problem& problem : problems) {
    for (const Dtype dtype : DtypesOf(spec, options)) {
      groups.push_back({.problem = &problem, .graph = &graph, .dtype = dtype});
    }
  }
  std::size_t turn = first_turn;
  for (const PlantedFault& planted : FaultsOn(graph, options)) {
    if (options.full) {
      for (Group& group : groups) {
        group.faults.push_back(planted);
      }
    } else if (sample.KeepsNext() && !groups.empty()) {
      groups[turn++ % groups.size()].faults.push_back(planted);
    }
  }
  std::erase_if(groups, [](const Group& group) { return group.faults.empty(); });
  return groups;
}

bool HoldTheSame(const std::vector<RankOutput>& a, const std::vector<RankOutput>& b) {
  return std::equal(
      a.begin(), a.end(), b.begin(), b.end(),
      [](const RankOutput& x, const RankOutput& y) { return x.tensors == y.tensors; });
}

std::string TensorOf(const PlantedFault& planted) {
  const Fault& fault = planted.fault;
  if (!fault.tensor.empty()) {
    return fault.tensor;
  }
  if (!fault.reduction.tensor.empty()) {
    return fault.reduction.tensor;
  }
  return planted.answers.empty() || fault.kind == Fault::Kind::kDropAll
             ? "step"
             : planted.answers.front().tensor;
}

// Plants the faults of one group after a clean step, on whichever worker this is.
class GroupRun {
 public:
  GroupRun(const Group& group, const CampaignOptions& options)
      : group_(group), foreign_(options.foreign) {
    run_.deadline = options.step_deadline;
    run_.judge = [this](const Dump& dump, const TensorSource& source, const JudgeOptions& judging) {
      return JudgeIt(dump, source, judging);
    };
    run_.run_ranks = [this](const StepRequest& request) {
      outputs_ = RunRanksOf(request, "threads");
      return outputs_;
    };
  }

  Json Run() {
    const Result clean = Once(std::nullopt);
    const bool sound = clean.verdict == Verdict::kPass || clean.verdict == Verdict::kVacuous;
    Json answer;
    answer["unclean"] = sound ? "" : fmt::format("{}: {}", ReproOf(std::nullopt), Headline(clean));
    answer["mutants"] = Json::array();
    if (!sound) {
      return answer;  // Faults on top of a step that is wrong already say nothing.
    }
    const std::vector<RankOutput> clean_outputs = outputs_;
    run_.judge = [&](const Dump& dump, const TensorSource& source, const JudgeOptions& judging) {
      is_clean_ = HoldTheSame(outputs_, clean_outputs);
      return is_clean_ ? clean.judgement : JudgeIt(dump, source, judging);
    };
    for (const PlantedFault& planted : group_.faults) {
      answer["mutants"].push_back(ToJson(Plant(planted)));
    }
    return answer;
  }

 private:
  Result Once(const std::optional<Fault>& fault) {
    const Problem& problem = *group_.problem;
    return RunOnce(problem.spec, *group_.graph, group_.dtype, *problem.inputs, fault,
                   problem.golden ? &*problem.golden : nullptr, run_);
  }

  Judgement JudgeIt(const Dump& dump, const TensorSource& source, JudgeOptions judging) const {
    if (foreign_) {
      judging.graph = nullptr;
      judging.calls.clear();
    }
    return Judge(dump, source, judging);
  }

  bool IsExact() const { return group_.problem->spec.numerics.fill == Fill::kDyadic; }

  std::string ReproOf(const std::optional<Fault>& fault) const {
    const Problem& problem = *group_.problem;
    return fmt::format("build/moegate run {} --dtype={}{}{}",
                       CaseId(problem.spec, group_.graph->layout()), ToText(group_.dtype),
                       problem.golden ? "" : fmt::format(" --seed={}", problem.spec.numerics.seed),
                       fault ? fmt::format(" --fault='{}'", ToText(*fault)) : "");
  }

  Mutant Plant(const PlantedFault& planted) {
    const Result result = Once(planted.fault);
    Mutant mutant{.id = result.id,
                  .layout = ToText(group_.graph->layout()),
                  .dtype = result.dtype,
                  .fill = IsExact() ? "dyadic" : "uniform",
                  .seed = group_.problem->spec.numerics.seed,
                  .fault = ToText(planted.fault),
                  .bug_class = planted.bug_class,
                  .tensor = TensorOf(planted),
                  .repro = ReproOf(planted.fault)};
    if (result.verdict == Verdict::kError) {
      mutant.outcome = Outcome::kCrashed;
      mutant.why = result.text;
      return mutant;
    }
    const Classified classified =
        Classify(planted, {.dtype = group_.dtype, .exact = IsExact(), .is_clean = is_clean_},
                 result.judgement);
    mutant.outcome = classified.outcome;
    mutant.why = classified.why;
    mutant.unexplained = classified.unexplained;
    for (const Finding& finding : result.judgement.findings) {
      if (finding.verdict == Verdict::kFail) {
        std::string text = fmt::format("{}: {}", finding.tensor, Describe(finding.explanation));
        for (const Explanation& candidate : finding.candidates) {
          text += fmt::format("; {}", Describe(candidate));
        }
        mutant.said.push_back(std::move(text));
      }
    }
    return mutant;
  }

  const Group& group_;
  bool foreign_;
  RunOptions run_;
  std::vector<RankOutput> outputs_;  // of the last step
  bool is_clean_ = false;            // whether they are those of the clean one
};

Outcome OutcomeFromText(const std::string& text) {
  return *std::find_if(kOutcomes.begin(), kOutcomes.end(),
                       [&](Outcome outcome) { return ToText(outcome) == text; });
}

Mutant MutantFromJson(const Json& json) {
  return {.id = json.at("id"),
          .layout = json.at("layout"),
          .dtype = json.at("dtype"),
          .fill = json.at("fill"),
          .seed = json.at("seed"),
          .fault = json.at("fault"),
          .bug_class = json.at("class"),
          .tensor = json.at("tensor"),
          .outcome = OutcomeFromText(json.at("outcome")),
          .why = json.at("why"),
          .said = json.at("said"),
          .unexplained = json.at("unexplained"),
          .repro = json.at("repro")};
}

}  // namespace

Json ToJson(const Mutant& mutant) {
  return {{"id", mutant.id},
          {"layout", mutant.layout},
          {"dtype", mutant.dtype},
          {"fill", mutant.fill},
          {"seed", mutant.seed},
          {"fault", mutant.fault},
          {"class", mutant.bug_class},
          {"tensor", mutant.tensor},
          {"outcome", std::string(ToText(mutant.outcome))},
          {"why", mutant.why},
          {"said", mutant.said},
          {"unexplained", mutant.unexplained},
          {"repro", mutant.repro}};
}

Campaign RunCampaign(const std::vector<CaseSpec>& specs, const CampaignOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::vector<Problem>> problems;
  for (const CaseSpec& spec : specs) {
    problems.push_back(ProblemsOf(spec, options));
  }
  std::int64_t planned = 0;
  std::deque<StepGraph> graphs;  // by case and layout
  for (const CaseSpec& spec : specs) {
    for (const Layout& layout : spec.layouts) {
      graphs.push_back(GraphOf(spec, layout));
      planned += static_cast<std::int64_t>(FaultsOn(graphs.back(), options).size());
    }
  }
  std::vector<Group> groups;
  Sample sample(planned, options.most);
  std::size_t turn = 0;
  for (const std::vector<Problem>& of_case : problems) {
    for (std::size_t layout = 0; layout < of_case.front().spec.layouts.size(); ++layout) {
      auto more = GroupsOf(of_case, graphs[turn], turn, sample, options);
      std::move(more.begin(), more.end(), std::back_inserter(groups));
      ++turn;
    }
  }
  // Forking copies what is loaded: the step's library is loaded once, before.
  TheStepPlugin();
  const auto answers = RunInWorkers(
      static_cast<std::int64_t>(groups.size()),
      [&](std::int64_t task) {
        return GroupRun(groups[static_cast<std::size_t>(task)], options)
            .Run()
            .dump(-1, ' ', false, Json::error_handler_t::replace);
      },
      options.workers);
  Campaign campaign{.clean_steps = static_cast<std::int64_t>(groups.size()),
                    .planned = planned,
                    .full = options.full};
  for (const std::string& answer : answers) {
    const Json json = Json::parse(answer);
    if (const std::string unclean = json.at("unclean"); !unclean.empty()) {
      campaign.unclean.push_back(unclean);
    }
    for (const Json& mutant : json.at("mutants")) {
      campaign.mutants.push_back(MutantFromJson(mutant));
    }
  }
  campaign.seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return campaign;
}

}  // namespace moe
