#include "harness/inputs/generator.h"

#include <gtest/gtest.h>

#include <cmath>

#include "harness/base/error.h"
#include "reference/moe_reference.h"

namespace moe {
namespace {

CaseSpec Spec() {
  CaseSpec spec;
  spec.path = "cases/test.json";
  spec.model = {.tokens = 48,
                .d_model = 16,
                .d_expert = 12,
                .experts = 8,
                .top_k = 2,
                .gate_bias = true,
                .expert_bias = true,
                .d_shared = 6,
                .shared_gate = true};
  spec.numerics = {.dtypes = {Dtype::kBfloat16}, .seed = 7};
  return spec;
}

std::vector<double> ReadSlice(const InputGenerator& generator, const std::string& name,
                              const Slice& slice) {
  std::vector<double> values(static_cast<std::size_t>(NumElements(slice.LocalShape())));
  generator.Read(name, slice, values);
  return values;
}

std::vector<double> ReadWhole(const InputGenerator& generator, const CaseSpec& spec,
                              const std::string& name) {
  return ReadSlice(generator, name, WholeOf(ShapeOf(name, spec.model)));
}

reference::Routing RouteOf(const InputGenerator& generator, const CaseSpec& spec) {
  const Model& model = spec.model;
  const auto fill = [&](const std::string& name, auto& target) {
    const std::vector<double> values = ReadWhole(generator, spec, name);
    std::copy(values.begin(), values.end(), target.data());
  };
  reference::Matrix x_TD(model.tokens, model.d_model);
  reference::Matrix gate_ED(model.experts, model.d_model);
  reference::Vector gate_bias_E(model.experts);
  reference::Vector expert_bias_E(model.experts);
  fill("x_TD", x_TD);
  fill("gate_ED", gate_ED);
  fill("gate_bias_E", gate_bias_E);
  fill("expert_bias_E", expert_bias_E);
  return reference::Route(model, x_TD, gate_ED, gate_bias_E, expert_bias_E);
}

class InputGeneratorOfFill : public testing::TestWithParam<Fill> {};
INSTANTIATE_TEST_SUITE_P(Fills, InputGeneratorOfFill,
                         testing::Values(Fill::kUniform, Fill::kDyadic));

TEST_P(InputGeneratorOfFill, GivesAShardTheValuesOfTheWhole) {
  CaseSpec spec = Spec();
  spec.model.d_model = 24;
  spec.numerics.fill = GetParam();
  const InputGenerator generator(spec);
  for (const TensorInfo& input : InputsOf(spec.model)) {
    const std::vector<double> whole = ReadWhole(generator, spec, input.name);
    Slice odd =
        WholeOf(input.shape);  // every other index of the first dimension, the last one reversed
    for (std::size_t i = 0; i < odd.index[0].size(); ++i) {
      odd.index[0].erase(odd.index[0].begin() + static_cast<std::ptrdiff_t>(i));
    }
    std::reverse(odd.index.back().begin(), odd.index.back().end());
    const std::vector<double> shard = ReadSlice(generator, input.name, odd);
    const std::size_t rows = odd.index[0].size();
    const std::size_t per_row = shard.size() / rows;
    const auto width = static_cast<std::int64_t>(odd.index.back().size());
    for (std::size_t i = 0; i < shard.size(); ++i) {
      std::int64_t global = 0;
      if (input.shape.size() == 1) {
        global = odd.index[0][i];
      } else {
        const auto row_size = static_cast<std::int64_t>(per_row);
        const auto inside = static_cast<std::int64_t>(i % per_row);
        global = odd.index[0][i / per_row] * row_size + inside / width * width + width - 1 -
                 inside % width;
      }
      ASSERT_EQ(shard[i], whole[static_cast<std::size_t>(global)]) << input.name << " " << i;
    }
  }
}

TEST(InputGenerator, KeepsToTheBfloat16GridAndOffZero) {
  const CaseSpec spec = Spec();
  const InputGenerator generator(spec);
  for (const TensorInfo& input : InputsOf(spec.model)) {
    for (const double value : ReadWhole(generator, spec, input.name)) {
      int exponent = 0;
      const double significand =
          std::frexp(value, &exponent) * 256.0;  // 8 bits, the hidden one included
      ASSERT_EQ(significand, std::round(significand)) << input.name << " " << value;
      ASSERT_NE(value, 0.0) << input.name;
    }
  }
}

TEST(InputGenerator, ClearsTheMarginOfTheCoarsestDtype) {
  CaseSpec spec = Spec();
  spec.numerics.dtypes = {Dtype::kFloat64, Dtype::kBfloat16, Dtype::kFloat32};
  const InputGenerator generator(spec);
  const reference::Routing routing = RouteOf(generator, spec);
  EXPECT_GT(routing.logit_margin_T.minCoeff(), MarginFloor(Dtype::kBfloat16));
  EXPECT_EQ(routing.logit_margin_T.minCoeff(), generator.smallest_logit_margin());
}

TEST(InputGenerator, RedrawsOnlyWhatTheDtypesNeed) {
  CaseSpec spec = Spec();
  spec.numerics.dtypes = {Dtype::kFloat64};
  const InputGenerator generator(spec);
  EXPECT_LT(generator.smallest_logit_margin(), MarginFloor(Dtype::kBfloat16));
}

TEST(InputGenerator, GivesIdleExpertsNoToken) {
  CaseSpec spec = Spec();
  spec.numerics.idle_experts = {0, 5};
  const reference::Routing routing = RouteOf(InputGenerator(spec), spec);
  EXPECT_FALSE((routing.topk_expert_TK.array() == 0).any());
  EXPECT_FALSE((routing.topk_expert_TK.array() == 5).any());
  EXPECT_TRUE((RouteOf(InputGenerator(Spec()), Spec()).topk_expert_TK.array() == 5).any());
}

// One feature and 512 experts: the best logits lie one step of the grid apart.
TEST(InputGenerator, RefusesAHopelessMarginWithItsNumbers) {
  CaseSpec spec;
  spec.path = "cases/hopeless.json";
  spec.model = {.tokens = 1, .d_model = 1, .d_expert = 1, .experts = 512, .top_k = 1};
  try {
    const InputGenerator generator(spec);
    FAIL() << generator.smallest_logit_margin();
  } catch (const Error& error) {
    EXPECT_TRUE(std::string(error.what())
                    .starts_with("cases/hopeless.json: token 0 finds no row with a top-k margin "
                                 "above 3.12e-02, and above what rounding may take, in 10000 draws "
                                 "(best "))
        << error.what();
  }
}

TEST(InputGenerator, DependsOnTheSeed) {
  CaseSpec other = Spec();
  other.numerics.seed = 8;
  EXPECT_NE(ReadWhole(InputGenerator(Spec()), Spec(), "w1_EFD"),
            ReadWhole(InputGenerator(other), other, "w1_EFD"));
}

// Golden files hold only as long as these never change. All three tensors have the scale 1 here.
TEST(InputGenerator, GivesTheSameValuesForever) {
  const CaseSpec spec = Spec();
  const InputGenerator generator(spec);
  const auto first = [&](const std::string& name) {
    std::vector<double> values = ReadWhole(generator, spec, name);
    values.resize(4);
    for (double& value : values) {
      value *= 128.0;
    }
    return values;
  };
  EXPECT_EQ(first("d_y_TD"), (std::vector<double>{-76, -65, 18, 123}));
  EXPECT_EQ(first("gate_ED"), (std::vector<double>{61, -28, 125, -21}));
  EXPECT_EQ(first("w2_EDF"), (std::vector<double>{120, -96, 110, -49}));
}

}  // namespace
}  // namespace moe
