// The graph of stages and sums on every case and layout.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "harness/layout/step_graph.h"
#include "harness/spec/case_spec.h"

namespace moe {
namespace {

std::string ToText(const std::vector<Axis>& axes) {
  std::string text;
  for (const Axis axis : axes) {
    text += fmt::format(" {}", moe::ToText(axis));
  }
  return text;
}

// All that a contract says, but for tensors inside the step without any sum.
std::string ToText(const StepContract& contract) {
  std::string text;
  for (const ContractTensor& tensor : contract.tensors) {
    if (!tensor.result && tensor.owed.empty() && tensor.settled.empty()) {
      continue;
    }
    text += fmt::format("{} {} {} {} owed{} settled{} alone{}", tensor.name,
                        moe::ToText(tensor.shape), moe::ToText(tensor.mesh), tensor.result,
                        ToText(tensor.owed), ToText(tensor.settled), ToText(tensor.alone));
    for (const auto& [axis, placement] : tensor.placements) {
      text += fmt::format(" {}:{}", moe::ToText(axis), moe::ToText(placement));
    }
    text += "\n";
  }
  return text;
}

TEST(StepGraph, DerivesTheContractThatWasWrittenByHand) {
  std::int64_t agreed = 0;
  for (const CaseSpec& spec : ReadCases(MOEGATE_SOURCE_DIR "/cases")) {
    for (const Layout& layout : spec.layouts) {
      const StepGraph graph(spec.model, layout, spec.program);
      EXPECT_EQ(ToText(graph.contract()), ToText(MakeContract(spec.model, layout, spec.program)))
          << CaseId(spec, layout);
      ++agreed;
    }
  }
  fmt::print("{} cases and layouts agree\n", agreed);
  EXPECT_GT(agreed, 300);
}

}  // namespace
}  // namespace moe
