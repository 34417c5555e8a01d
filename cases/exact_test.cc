// What the dyadic fill is for: the smallest change of any result fails, no rank's share of any sum
// could be left out unseen, and no token, expert or hidden unit could be taken for another.

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <map>
#include <set>

#include "cases/whole_reference.h"
#include "harness/run_case.h"
#include "harness/run_step.h"

namespace moe {
namespace {

using Values = std::vector<double>;

std::vector<CaseSpec> DyadicCases() {
  std::vector<CaseSpec> specs = ReadCases(MOEGATE_SOURCE_DIR "/cases");
  std::erase_if(specs, [](const CaseSpec& spec) { return spec.numerics.fill != Fill::kDyadic; });
  return specs;
}

Layout WidestOf(const CaseSpec& spec) {
  return *std::max_element(
      spec.layouts.begin(), spec.layouts.end(),
      [](const Layout& a, const Layout& b) { return a.WorldSize() < b.WorldSize(); });
}

std::vector<RankOutput> RunOnThreads(const StepRequest& request) {
  return RunRanksOf(request, "threads");
}

// The same rank file with every value of one tensor changed.
std::vector<std::byte> WithChange(const std::vector<std::byte>& file, const std::string& tensor,
                                  const std::function<void(Values&)>& change) {
  const SafetensorsFile whole = SafetensorsFile::FromBytes(file, "rank");
  std::map<std::string, TensorView> views = whole.tensors();
  TensorView& view = views.at(tensor);
  Values values(static_cast<std::size_t>(NumElements(view.shape)));
  view.Read(0, values);
  change(values);
  std::vector<float> singles(values.begin(), values.end());
  std::vector<std::uint16_t> halves;
  for (const float single : singles) {  // the values have few bits: no rounding is needed
    halves.push_back(static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(single) >> 16U));
  }
  view.bytes = view.dtype == Dtype::kBfloat16 ? std::as_bytes(std::span(halves))
                                              : std::as_bytes(std::span(singles));
  return EncodeSafetensors(views);
}

// Tensors that fail when the last rank changes what it holds of `tensor`.
std::set<std::string> FailingAfter(const CaseSpec& spec, const InputGenerator& inputs, Dtype dtype,
                                   const std::string& tensor,
                                   const std::function<void(Values&)>& change) {
  const RunOptions options{.run_ranks = [&](const StepRequest& request) {
    std::vector<RankOutput> outputs = RunOnThreads(request);
    outputs.back().tensors = WithChange(outputs.back().tensors, tensor, change);
    return outputs;
  }};
  const Result result =
      RunOnce(spec, GraphOf(spec, WidestOf(spec)), dtype, inputs, std::nullopt, nullptr, options);
  std::set<std::string> failing;
  for (const Finding& finding : result.judgement.findings) {
    if (finding.verdict != Verdict::kPass) {
      failing.insert(finding.tensor);
    }
  }
  return failing;
}

TEST(Exact, FailsWhatIsScaledByOneStepOfItsDtype) {
  for (const CaseSpec& spec : DyadicCases()) {
    const InputGenerator inputs(spec);
    for (const TensorInfo& result : ResultsOf(spec.model)) {
      for (const auto& [dtype, step] :
           {std::pair{Dtype::kBfloat16, 0x1p-7}, {Dtype::kFloat32, 0x1p-23}}) {
        const auto scale = [step = step](Values& values) {
          for (double& value : values) {
            // To the next bfloat16 or float where the product lies between two.
            const double ulp = std::exp2(std::ilogb(value)) * step;
            value = value == 0.0 ? 0.0 : std::nearbyint(value * (1.0 + step) / ulp) * ulp;
          }
        };
        EXPECT_EQ(FailingAfter(spec, inputs, dtype, result.name, scale),
                  std::set<std::string>{result.name})
            << spec.name << " " << ToText(dtype);
      }
    }
  }
}

TEST(Exact, FailsOneElementThatIsOneStepOff) {
  for (const CaseSpec& spec : DyadicCases()) {
    const InputGenerator inputs(spec);
    for (const TensorInfo& result : ResultsOf(spec.model)) {
      const auto nudge = [](Values& values) {
        double* smallest = nullptr;
        for (double& value : values) {
          if (value != 0.0 && (smallest == nullptr || std::abs(value) < std::abs(*smallest))) {
            smallest = &value;
          }
        }
        ASSERT_NE(smallest, nullptr);
        *smallest *= 1.0 + 0x1p-23;
      };
      EXPECT_EQ(FailingAfter(spec, inputs, Dtype::kFloat32, result.name, nudge),
                std::set<std::string>{result.name})
          << spec.name;
    }
  }
}

TEST(Exact, TakesAZeroForItsNegative) {
  const CaseSpec spec = DyadicCases().front();
  const InputGenerator inputs(spec);
  const auto negate_zeros = [](Values& values) {
    ASSERT_GT(std::count(values.begin(), values.end(), 0.0), 0);
    std::replace(values.begin(), values.end(), 0.0, -0.0);
  };
  EXPECT_EQ(FailingAfter(spec, inputs, Dtype::kFloat32, "d_gate_ED", negate_zeros),
            std::set<std::string>{});
}

// What all ranks hold when the step is over.
std::vector<std::byte> HeldAfter(const StepRequest& request) {
  std::vector<std::byte> held;
  for (const RankOutput& output : RunOnThreads(request)) {
    held.insert(held.end(), output.tensors.begin(), output.tensors.end());
  }
  return held;
}

// A share of zero could be left out unseen, and one that equals another's be taken for it: without
// any one share the ranks hold something else than with all, or without another.
TEST(Exact, GivesEveryRankAShareOfItsOwnInEverySum) {
  for (const CaseSpec& spec : DyadicCases()) {
    const InputGenerator inputs(spec);
    for (const Layout& layout : spec.layouts) {
      if (layout.WorldSize() > 6 && layout != WidestOf(spec)) {
        continue;  // For the sake of time; the widest has the smallest shares.
      }
      const StepGraph graph = GraphOf(spec, layout);
      StepRequest request{.graph = &graph, .dtype = Dtype::kFloat32, .inputs = &inputs};
      const std::vector<std::byte> clean = HeldAfter(request);
      // There only ranks that differ on every axis of 2 or 4.
      const std::int64_t stride = layout.WorldSize() > 6 ? 5 : 1;
      for (const Reduction& owed : graph.contract().Owed()) {
        std::set<std::vector<std::byte>> held = {clean};
        std::int64_t ranks = 0;
        for (std::int64_t rank = 0; rank < layout.WorldSize(); rank += stride, ++ranks) {
          request.fault = {.kind = Fault::Kind::kSkipRank, .reduction = owed, .rank = rank};
          held.insert(HeldAfter(request));
        }
        EXPECT_EQ(std::ssize(held), 1 + ranks) << CaseId(spec, layout) << " " << ToText(owed);
      }
    }
  }
}

// The units of one tensor by their index along `dim`, each as the list of its values.
std::vector<Values> UnitsAlong(const Values& whole, const Shape& shape, std::size_t dim) {
  std::vector<Values> units(static_cast<std::size_t>(shape[dim]));
  std::int64_t inner = 1;
  for (std::size_t d = dim + 1; d < shape.size(); ++d) {
    inner *= shape[d];
  }
  for (std::size_t i = 0; i < whole.size(); ++i) {
    const auto index = static_cast<std::int64_t>(i) / inner % shape[dim];
    units[static_cast<std::size_t>(index)].push_back(whole[i]);
  }
  return units;
}

// No unit is zero, and none is as another: a lost one shows, and two that changed places.
TEST(Exact, MakesEveryTokenExpertAndHiddenUnitDifferent) {
  for (const CaseSpec& spec : DyadicCases()) {
    const InputGenerator inputs(spec);
    const std::map<std::string, Values> results = WholeReference(spec.model, inputs);
    const auto expect_different = [&](const std::string& name, const Values& whole,
                                      const Shape& shape, std::size_t dim) {
      const std::vector<Values> units = UnitsAlong(whole, shape, dim);
      std::set<Values> different(units.begin(), units.end());
      different.insert(Values(units[0].size(), 0.0));
      EXPECT_EQ(std::ssize(different), 1 + shape[dim])
          << spec.name << " " << name << " along dimension " << dim;
    };
    for (const TensorInfo& result : ResultsOf(spec.model)) {
      const std::string letters = result.name.substr(result.name.rfind('_') + 1);
      const Values& whole = results.at(result.name);
      if (letters.size() == 1) {
        continue;  // single numbers of few bits
      }
      for (std::size_t dim = 0; dim < letters.size(); ++dim) {
        if (letters[dim] != 'D' && (letters[dim] != 'F' || letters.size() == 2)) {
          expect_different(result.name, whole, result.shape, dim);
        }
      }
      if (letters.size() == 3) {  // hidden units: within each expert
        for (const Values& expert : UnitsAlong(whole, result.shape, 0)) {
          expect_different(result.name, expert, {result.shape[1], result.shape[2]},
                           letters[1] == 'F' ? 0 : 1);
        }
      }
    }
  }
}

}  // namespace
}  // namespace moe
