// What the ranks of a clean step sum: exactly what the contract owes, in every case on every
// layout. Nothing is judged here, so a sum that is made and not owed, or the reverse, shows even
// where the numbers are right by luck.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "harness/inputs/generator.h"
#include "harness/layout/step_contract.h"
#include "harness/run_step.h"
#include "harness/spec/case_spec.h"
#include "harness/whole_inputs.h"

namespace moe {
namespace {

// The sums of each tensor in their order, as logs have them: "d_gate_ED@tp", and
// "d_gate_ED@dp_shard/2" for one that is divided.
using Sums = std::map<std::string, std::vector<std::string>>;

// By how many ranks a program that averages divides a sum: over ranks with other tokens, those of
// its axis; of an expert's gradient, to which the tokens of all ranks have come, all of them.
std::int64_t DivisorOf(const Reduction& sum, const StepContract& contract) {
  const bool is_batch = sum.axis != Axis::kTp && sum.axis != Axis::kEtp;
  if (contract.dp_reduction != DpReduction::kMean || !is_batch) {
    return 1;
  }
  const Mesh& dense = contract.meshes.dense;
  return sum.axis == Axis::kEdp ? dense.WorldSize() / dense.SizeOf(Axis::kTp)
                                : dense.SizeOf(sum.axis);
}

Sums SumsOwed(const StepContract& contract) {
  Sums sums;
  for (const Reduction& sum : contract.Owed()) {
    const std::int64_t divisor = DivisorOf(sum, contract);
    sums[sum.tensor].push_back(divisor == 1 ? ToText(sum)
                                            : fmt::format("{}/{}", ToText(sum), divisor));
  }
  return sums;
}

Sums SumsMade(const std::vector<std::string>& calls) {
  Sums sums;
  for (const std::string& call : calls) {
    sums[call.substr(0, call.find('@'))].push_back(call);
  }
  return sums;
}

TEST(CleanLog, IsTheSumsThatAreOwedOnEveryRankAndOfEveryTensorInTheirOrder) {
  for (const CaseSpec& spec : ReadCases(MOEGATE_SOURCE_DIR "/cases")) {
    const WholeInputs inputs(spec.model, InputGenerator(spec));
    for (const Layout& layout : spec.layouts) {
      const StepGraph graph = GraphOf(spec, layout);
      const Sums owed = SumsOwed(graph.contract());
      const std::vector<RankOutput> ranks =
          RunRanksOf({.graph = &graph, .inputs = &inputs}, "threads");
      for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
        EXPECT_EQ(SumsMade(ranks[rank].calls), owed) << CaseId(spec, layout) << ", rank " << rank;
      }
    }
  }
}

}  // namespace
}  // namespace moe
