#include "harness/whole_inputs.h"

#include <gtest/gtest.h>

#include "harness/inputs/generator.h"

namespace moe {
namespace {

TEST(WholeInputs, ReadsEverySliceAsItsSourceDoes) {
  CaseSpec spec;
  spec.model = {.tokens = 16, .d_model = 8, .d_expert = 6, .experts = 4, .top_k = 2};
  spec.model.gate_bias = true;
  const InputGenerator source(spec);
  const WholeInputs whole(spec.model, source);
  const std::map<std::string, Slice> slices = {{"x_TD", {{{3, 1, 15}, {0, 7}}}},
                                               {"gate_bias_E", {{{2, 3}}}},
                                               {"w2_EDF", {{{1, 3}, {5}, {0, 2, 4}}}}};
  for (const auto& [name, slice] : slices) {
    std::vector<double> want(static_cast<std::size_t>(NumElements(slice.LocalShape())));
    std::vector<double> got(want.size());
    source.Read(name, slice, want);
    whole.Read(name, slice, got);
    EXPECT_EQ(got, want) << name;
  }
}

}  // namespace
}  // namespace moe
