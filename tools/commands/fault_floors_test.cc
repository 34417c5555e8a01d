// Which faults are planted for a golden file, and what becomes of their errors.

#include "tools/commands/fault_floors.h"

#include <gtest/gtest.h>

#include <set>

#include "harness/base/error.h"

namespace moe {
namespace {

CaseSpec SmallCase() {
  return {.name = "a",
          .model = {.tokens = 8, .d_model = 4, .d_expert = 4, .experts = 4, .top_k = 2},
          .program = {.tp_backward = TpBackward::kSumInside},
          .numerics = {.dtypes = {Dtype::kFloat32, Dtype::kBfloat16}},
          .layouts = {{.tp = 2, .ep = 2}, {.dp_shard = 2}}};
}

// A golden file without fault floors whose tolerances are all 0.25, of a bound of 0.0625.
Golden WithoutFloors(const CaseSpec& spec) {
  Golden golden;
  for (const TensorInfo& result : ResultsOf(spec.model)) {
    golden.reference[result.name] = {.norm = 1.0};
    for (const Dtype dtype : spec.numerics.dtypes) {
      golden.tolerances[dtype][result.name] = {.tolerance = 0.25, .bound = 0.0625};
    }
  }
  return golden;
}

// What one dtype measures where every tensor has this error.
Figures Measure(const CaseSpec& spec, double error, double bound = 0.0625) {
  Figures measurements;
  for (const TensorInfo& result : ResultsOf(spec.model)) {
    measurements[result.name] = {.bound = bound, .error = error};
  }
  return measurements;
}

// Floors and remarks where float32 measures what `measure` says of a fault, and bfloat16 1.0.
struct Floors {
  Golden golden;
  std::vector<std::string> remarks;

  std::optional<double> Of(Dtype dtype, const std::string& tensor) const {
    return golden.tolerances.at(dtype).at(tensor).fault_floor;
  }
};
Floors FloorsOf(
    const std::function<Figures(const CaseSpec&, const Layout&, const Fault&)>& measure) {
  const CaseSpec spec = SmallCase();
  Floors floors{.golden = WithoutFloors(spec)};
  floors.remarks = AddFaultFloors(
      spec, InputGenerator(spec), floors.golden,
      [&](const CaseSpec& of, const StepGraph& graph, const InputGenerator&, const Fault& fault) {
        return std::map<Dtype, Figures>{{Dtype::kFloat32, measure(of, graph.layout(), fault)},
                                        {Dtype::kBfloat16, Measure(of, 1.0)}};
      });
  return floors;
}

TEST(AddFaultFloors, PlantsADropARepetitionAndAMeanAtEverySumOfATensorOnEveryLayout) {
  std::multiset<std::string> planted;
  FloorsOf([&](const CaseSpec& spec, const Layout& layout, const Fault& fault) {
    planted.insert(ToText(layout) + " " + ToText(fault));
    return Measure(spec, 1.0);
  });
  std::multiset<std::string> want;
  for (const char* sum : {"tp2.ep2.etp1 y_TD@tp", "dp2 d_gate_ED@dp_shard", "dp2 d_w1_EFD@edp",
                          "dp2 d_w2_EDF@edp", "dp2 d_w3_EFD@edp"}) {
    const std::string text = sum;
    const std::size_t space = text.find(' ');
    for (const char* kind : {" drop", " repeat", " mean"}) {
      want.insert(text.substr(0, space) + kind + text.substr(space));
    }
  }
  EXPECT_EQ(planted, want);
}

TEST(AddFaultFloors, KeepsTheSmallestErrorOfATensor) {
  const Floors floors = FloorsOf([](const CaseSpec& spec, const Layout&, const Fault& fault) {
    return Measure(spec, fault.kind == Fault::Kind::kMean ? 0.5 : 1.0);
  });
  EXPECT_EQ(floors.Of(Dtype::kFloat32, "y_TD"), 0.5);
}

TEST(AddFaultFloors, KeepsThemApartByDtype) {
  const Floors floors = FloorsOf(
      [](const CaseSpec& spec, const Layout&, const Fault&) { return Measure(spec, 0.5); });
  EXPECT_EQ(floors.Of(Dtype::kFloat32, "y_TD"), 0.5);
  EXPECT_EQ(floors.Of(Dtype::kBfloat16, "y_TD"), 1.0);
}

TEST(AddFaultFloors, RecordsErrorsInStepsOfTwoDigits) {
  const Floors floors = FloorsOf(
      [](const CaseSpec& spec, const Layout&, const Fault&) { return Measure(spec, 0.875); });
  EXPECT_EQ(floors.Of(Dtype::kFloat32, "y_TD"), 0.88);
}

TEST(AddFaultFloors, LeavesATensorWithoutSumsWithoutAFloor) {
  const Floors floors = FloorsOf(
      [](const CaseSpec& spec, const Layout&, const Fault&) { return Measure(spec, 0.5); });
  EXPECT_EQ(floors.Of(Dtype::kFloat32, "d_x_TD"), std::nullopt);
}

TEST(AddFaultFloors, RemarksOnAFaultThatTheToleranceAllows) {
  const Floors floors = FloorsOf([](const CaseSpec& spec, const Layout&, const Fault& fault) {
    const bool is_small =
        fault.kind == Fault::Kind::kRepeat && fault.reduction.tensor == "d_gate_ED";
    return Measure(spec, is_small ? 0.25 : 1.0);
  });
  EXPECT_EQ(floors.remarks,
            std::vector<std::string>{"a@dp2 float32: 'repeat d_gate_ED@dp_shard' changes d_gate_ED "
                                     "by 2.5e-01 only, which its tolerance 2.5e-01 allows"});
}

TEST(AddFaultFloors, AFaultThatTheToleranceAllowsIsNoFloor) {
  const Floors floors = FloorsOf([](const CaseSpec& spec, const Layout&, const Fault& fault) {
    return Measure(spec, fault.kind == Fault::Kind::kRepeat ? 0.25 : 1.0);
  });
  EXPECT_EQ(floors.Of(Dtype::kFloat32, "d_gate_ED"), 1.0);
}

// No slice of the tensor is useful there (kLargestUsefulTolerance), so an error relative to it
// means nothing.
TEST(AddFaultFloors, LeavesOutALayoutThatJudgesEverySliceByItsOwnBound) {
  const Floors floors = FloorsOf([](const CaseSpec& spec, const Layout&, const Fault& fault) {
    return fault.kind == Fault::Kind::kMean ? Measure(spec, 0.5, /*bound=*/0.0)
                                            : Measure(spec, 1.0);
  });
  EXPECT_EQ(floors.Of(Dtype::kFloat32, "y_TD"), 1.0);
}

// Where nothing rounds no tensor has a bound on any layout, and every error counts.
TEST(AddFaultFloors, CountsEveryErrorWhereNothingIsAllowed) {
  const CaseSpec spec = SmallCase();
  Golden golden = WithoutFloors(spec);
  golden.tolerances[Dtype::kFloat32]["y_TD"] = {};
  AddFaultFloors(
      spec, InputGenerator(spec), golden,
      [&](const CaseSpec& of, const StepGraph&, const InputGenerator&, const Fault&) {
        return std::map<Dtype, Figures>{{Dtype::kFloat32, Measure(of, 0.5, /*bound=*/0.0)}};
      });
  EXPECT_EQ(golden.tolerances[Dtype::kFloat32]["y_TD"].fault_floor, 0.5);
}

}  // namespace
}  // namespace moe
