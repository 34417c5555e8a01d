// Which clean runs are made of a case, what is kept of them, and what is refused.

#include "tools/commands/clean_runs.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "harness/base/error.h"

namespace moe {
namespace {

// Two layouts, seed 5.
CaseSpec SmallCase() {
  return {.name = "a",
          .path = "cases/a.json",
          .model = {.tokens = 8, .d_model = 4, .d_expert = 4, .experts = 4, .top_k = 2},
          .numerics = {.dtypes = {Dtype::kFloat32}, .seed = 5},
          .layouts = {{.tp = 2, .ep = 2}, {.dp_shard = 2}}};
}

// What is kept of d_gate_ED when the runs measure what `measure` says.
CleanRuns KeptOf(
    const std::function<TensorFigures(const CaseSpec& spec, const Layout& layout)>& measure) {
  const CaseSpec spec = SmallCase();
  return MeasureCleanRuns(spec, Dtype::kFloat32, InputGenerator(spec),
                          [&](const CaseSpec& of, const StepGraph& graph, Dtype,
                              const InputGenerator&, const std::string&) {
                            return Figures{{"d_gate_ED", measure(of, graph.layout())}};
                          })
      .at("d_gate_ED");
}

TEST(MeasureCleanRuns, RunsEveryLayoutTheFirstAsProcessesTooAndTwoMoreSeeds) {
  const CaseSpec spec = SmallCase();
  std::vector<std::string> runs;
  MeasureCleanRuns(spec, Dtype::kFloat32, InputGenerator(spec),
                   [&](const CaseSpec& of, const StepGraph& graph, Dtype dtype,
                       const InputGenerator&, const std::string& backend) {
                     runs.push_back(fmt::format("{} {} {} seed {}", ToText(graph.layout()),
                                                ToText(dtype), backend, of.numerics.seed));
                     return Figures{};
                   });
  EXPECT_EQ(runs, (std::vector<std::string>{
                      "tp2.ep2.etp1 float32 threads seed 5", "dp2 float32 threads seed 5",
                      "tp2.ep2.etp1 float32 gloo seed 5", "tp2.ep2.etp1 float32 threads seed 6",
                      "dp2 float32 threads seed 6", "tp2.ep2.etp1 float32 threads seed 7",
                      "dp2 float32 threads seed 7"}));
}

// Another seed is other inputs, not the same under another number.
TEST(MeasureCleanRuns, DrawsTheInputsOfEverySeed) {
  const CaseSpec spec = SmallCase();
  std::set<double> first_values;
  MeasureCleanRuns(spec, Dtype::kFloat32, InputGenerator(spec),
                   [&](const CaseSpec&, const StepGraph&, Dtype, const InputGenerator& inputs,
                       const std::string&) {
                     std::vector<double> values(4);
                     inputs.Read("gate_ED", {{{0}, {0, 1, 2, 3}}}, values);
                     first_values.insert(values[0] + 100.0 * values[1]);
                     return Figures{};
                   });
  EXPECT_EQ(first_values.size(), 3U);
}

TEST(MeasureCleanRuns, KeepsTheLargestOfTheCasesOwnProblem) {
  const CleanRuns kept = KeptOf([](const CaseSpec& spec, const Layout& layout) {
    if (spec.numerics.seed != 5) {
      return TensorFigures{.detectable_scale = 0.0};
    }
    return layout.tp == 2
               ? TensorFigures{.bound = 3.0,
                               .worst_case = 70.0,
                               .error = 1.0,
                               .detectable_scale = 0.5}
               : TensorFigures{
                     .bound = 2.0, .worst_case = 80.0, .error = 1.5, .detectable_scale = 0.25};
  });
  EXPECT_EQ(kept.bound, 3.0);
  EXPECT_EQ(kept.worst_case, 80.0);
  EXPECT_EQ(kept.noise, 1.5);
  EXPECT_EQ(kept.detectable_scale, 0.5);
}

// An error of another problem counts by what part of the bound there it is.
TEST(MeasureCleanRuns, TakesTheNoiseOfOtherSeedsInUnitsOfTheBound) {
  const CleanRuns kept = KeptOf([](const CaseSpec& spec, const Layout&) {
    return spec.numerics.seed == 5
               ? TensorFigures{.bound = 2.0, .error = 0.5, .detectable_scale = 0.0}
               : TensorFigures{
                     .bound = 8.0, .error = 6.0, .useful_ratio = 0.75, .detectable_scale = 0.0};
  });
  EXPECT_EQ(kept.bound, 2.0);
  EXPECT_EQ(kept.noise, 1.5);
}

TEST(MeasureCleanRuns, KeepsTheLargestRatiosOfAllSeeds) {
  const CleanRuns kept = KeptOf([](const CaseSpec& spec, const Layout&) {
    return spec.numerics.seed == 7
               ? TensorFigures{.ratio = 0.5, .worst_case_ratio = 0.25, .scale_ratio = 0.75}
               : TensorFigures{.ratio = 0.1, .worst_case_ratio = 0.1, .scale_ratio = 0.1};
  });
  EXPECT_EQ(kept.ratio, 0.5);
  EXPECT_EQ(kept.worst_case_ratio, 0.25);
  EXPECT_EQ(kept.scale_ratio, 0.75);
}

// What CheckCleanRuns says of one tensor's runs.
std::string Complaint(const CleanRuns& runs) {
  try {
    CheckCleanRuns(SmallCase(), Dtype::kBfloat16, {{"d_gate_ED", runs}});
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(CheckCleanRuns, AllowsWhatReachesItsBounds) {
  EXPECT_EQ(Complaint({.ratio = 1.0, .worst_case_ratio = 1.0, .scale_ratio = 1.0}), "");
}

TEST(CheckCleanRuns, RefusesARunThatExceedsTheBoundOfASlice) {
  EXPECT_EQ(Complaint({.ratio = 1.01}),
            "cases/a.json: clean runs in bfloat16 reach 1.01 of the bound of a slice of d_gate_ED; "
            "a bound that correct steps exceed needs a better derivation, not a factor");
}

TEST(CheckCleanRuns, RefusesARunThatExceedsTheWorstCase) {
  EXPECT_NE(Complaint({.worst_case_ratio = 1.5}).find("1.50 of the worst-case bound of a slice"),
            std::string::npos);
}

TEST(CheckCleanRuns, RefusesARunThatExceedsTheBoundOfTheScale) {
  EXPECT_NE(Complaint({.scale_ratio = 1.5}).find("1.50 of the bound of the scale"),
            std::string::npos);
}

TEST(CheckCleanRuns, RefusesARatioThatIsNoNumber) {
  EXPECT_NE(Complaint({.ratio = NAN}), "");
}

// An error where the dyadic fill allows none.
TEST(CheckCleanRuns, RefusesAnInfiniteRatio) {
  EXPECT_NE(Complaint({.ratio = INFINITY}), "");
}

}  // namespace
}  // namespace moe
