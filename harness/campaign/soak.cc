#include "harness/campaign/soak.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "harness/base/error.h"
#include "harness/json/json_reader.h"
#include "harness/measure/tolerance.h"
#include "harness/run_case.h"
#include "harness/run_step.h"
#include "harness/whole_inputs.h"

namespace moe {
namespace {

// What one worker saw of one case with one seed.
class SeedRun {
 public:
  SeedRun(const CaseSpec& spec, std::uint64_t seed, const SoakOptions& options)
      : spec_(spec), options_(options) {
    spec_.numerics.seed = seed;
    run_.backend = options.backend;
    run_.deadline = options.step_deadline;
  }

  SoakResult Run() {
    std::optional<WholeInputs> inputs;
    try {
      inputs.emplace(spec_.model, InputGenerator(spec_));
    } catch (const Error&) {
      soak_.refused_seeds = 1;
      return soak_;
    }
    for (const Layout& layout : spec_.layouts) {
      const StepGraph graph = GraphOf(spec_, layout);
      for (const Dtype dtype : spec_.numerics.dtypes) {
        if (!options_.dtype || dtype == *options_.dtype) {
          Step(graph, dtype, *inputs);
        }
      }
    }
    return soak_;
  }

 private:
  void Step(const StepGraph& graph, Dtype dtype, const TensorSource& inputs) {
    const Result result =
        RunOnce(spec_, graph, dtype, inputs, std::nullopt, /*golden=*/nullptr, run_);
    ++soak_.steps;
    soak_.vacuous += result.verdict == Verdict::kVacuous ? 1 : 0;
    const std::string told = fmt::format("{}\n    repro  {} --seed={}", Headline(result),
                                         result.repro, spec_.numerics.seed);
    if (result.verdict == Verdict::kError || result.verdict == Verdict::kSkipped) {
      soak_.errors.push_back(told);
    } else if (result.verdict == Verdict::kFail) {
      soak_.alarms.push_back(told);
    }
    for (const auto& [tensor, measured] : result.judgement.measured) {
      // None of an exact case: there any error is an alarm, of infinite ratio.
      if (std::isfinite(measured.ratio) && measured.ratio > 0.0) {
        auto& largest = soak_.largest_ratio[result.dtype];
        largest = std::max(largest, {measured.ratio, fmt::format("{} of {}", tensor, result.id)});
      }
    }
  }

  CaseSpec spec_;
  const SoakOptions& options_;
  RunOptions run_;
  SoakResult soak_;
};

std::string Encode(const SoakResult& soak) {
  return Json{{"steps", soak.steps},
              {"vacuous", soak.vacuous},
              {"refused_seeds", soak.refused_seeds},
              {"largest_ratio", soak.largest_ratio},
              {"alarms", soak.alarms},
              {"errors", soak.errors}}
      .dump(-1, ' ', false, Json::error_handler_t::replace);
}

void AddDecoded(const std::string& text, SoakResult& soak) {
  const Json json = Json::parse(text);
  soak.steps += json.at("steps").get<std::int64_t>();
  soak.vacuous += json.at("vacuous").get<std::int64_t>();
  soak.refused_seeds += json.at("refused_seeds").get<std::int64_t>();
  for (const std::string alarm : json.at("alarms")) {
    soak.alarms.push_back(alarm);
  }
  for (const std::string error : json.at("errors")) {
    soak.errors.push_back(error);
  }
  const std::map<std::string, std::pair<double, std::string>> ratios = json.at("largest_ratio");
  for (const auto& [dtype, ratio] : ratios) {
    auto& largest = soak.largest_ratio[dtype];
    largest = std::max(largest, ratio);
  }
}

}  // namespace

SoakResult RunSoak(const std::vector<CaseSpec>& specs, const SoakOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  // Forking copies what is loaded: the step's library is loaded once, before.
  TheStepPlugin();
  const auto cases = static_cast<std::int64_t>(specs.size());
  const auto answers = RunInWorkers(
      cases * options.seeds,
      [&](std::int64_t task) {
        const CaseSpec& spec = specs[static_cast<std::size_t>(task % cases)];
        const std::uint64_t first = options.first_seed.value_or(spec.numerics.seed + 1);
        return Encode(
            SeedRun(spec, first + static_cast<std::uint64_t>(task / cases), options).Run());
      },
      options.workers);
  SoakResult soak;
  for (const std::string& answer : answers) {
    AddDecoded(answer, soak);
  }
  soak.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return soak;
}

std::string ToText(const SoakResult& soak) {
  std::string text;
  for (const std::string& alarm : soak.alarms) {
    text += "ALARM  " + alarm + "\n";
  }
  for (const std::string& error : soak.errors) {
    text += "ERROR  " + error + "\n";
  }
  for (const auto& [dtype, largest] : soak.largest_ratio) {
    text += fmt::format("{}: errors reach {:.2f} times the expected one, of {:.0f} allowed ({})\n",
                        dtype, largest.first, kSafety, largest.second);
  }
  return text +
         fmt::format(
             "{} clean steps in {:.1f} s ({:.0f} steps/s), {} alarms, {} errors; {} vacuous, "
             "{} seeds without usable inputs left out\n",
             soak.steps, soak.seconds,
             static_cast<double>(soak.steps) / std::max(soak.seconds, 1e-9), soak.alarms.size(),
             soak.errors.size(), soak.vacuous, soak.refused_seeds);
}

}  // namespace moe
