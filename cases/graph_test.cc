// The graph of stages and sums on every case and layout.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "harness/layout/step_graph.h"
#include "harness/spec/case_spec.h"

namespace moe {
namespace {

// What some rank lacks is a sum that is owed, or it is the same everywhere, or cut: nothing is left
// pending when the step is over, and nothing is summed that was whole.
TEST(StepGraph, OwesExactlyTheSharesThatAreLeftOnEveryCaseAndLayout) {
  std::int64_t layouts = 0;
  for (const CaseSpec& spec : ReadCases(MOEGATE_SOURCE_DIR "/cases")) {
    for (const Layout& layout : spec.layouts) {
      const StepGraph graph = GraphOf(spec, layout);
      std::set<std::string> results;
      for (const ContractTensor& owed : graph.contract().tensors) {
        if (!owed.result) {
          continue;
        }
        results.insert(owed.name);
        std::set<Axis> shares;
        for (const auto& [axis, lie] : graph.LiesOf(owed.name)) {
          if (lie.kind == Lie::Kind::kShare) {
            shares.insert(axis);
          }
        }
        EXPECT_EQ(std::set<Axis>(owed.owed.begin(), owed.owed.end()), shares)
            << owed.name << " of " << CaseId(spec, layout);
      }
      for (const TensorInfo& result : ResultsOf(spec.model)) {
        EXPECT_TRUE(results.contains(result.name)) << result.name << " of " << CaseId(spec, layout);
      }
      ++layouts;
    }
  }
  EXPECT_GT(layouts, 300);
}

}  // namespace
}  // namespace moe
