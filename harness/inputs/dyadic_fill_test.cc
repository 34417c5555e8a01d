#include "harness/inputs/dyadic_fill.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "harness/base/error.h"
#include "harness/inputs/generator.h"
#include "reference/moe_reference.h"

namespace moe {
namespace {

CaseSpec Spec() {
  CaseSpec spec;
  spec.path = "cases/test.json";
  spec.model = {.tokens = 48,
                .d_model = 32,
                .d_expert = 12,
                .experts = 12,
                .top_k = 2,
                .gate_bias = true,
                .d_shared = 12,
                .shared_gate = true};
  spec.numerics.fill = Fill::kDyadic;
  spec.numerics.seed = 7;
  return spec;
}

CaseSpec GroupedSpec() {
  CaseSpec spec = Spec();
  spec.model.score_function = ScoreFunction::kSigmoid;
  spec.model.gate_bias = false;
  spec.model.expert_bias = true;
  spec.model.expert_groups = 4;
  spec.model.limited_groups = 2;
  return spec;
}

reference::Matrix Read(const InputGenerator& inputs, const CaseSpec& spec,
                       const std::string& name) {
  const Shape shape = ShapeOf(name, spec.model);
  reference::Matrix value(shape[0], NumElements(shape) / shape[0]);
  inputs.Read(name, WholeOf(shape), {value.data(), static_cast<std::size_t>(value.size())});
  return value;
}

reference::Routing RouteOf(const InputGenerator& inputs, const CaseSpec& spec) {
  const auto vector = [&](const std::string& name, bool has) {
    return has ? reference::Vector(Read(inputs, spec, name).reshaped()) : reference::Vector();
  };
  return reference::Route(spec.model, Read(inputs, spec, "x_TD"), Read(inputs, spec, "gate_ED"),
                          vector("gate_bias_E", spec.model.gate_bias),
                          vector("expert_bias_E", spec.model.expert_bias));
}

TEST(DyadicFill, GivesChosenExpertsTheLogitZeroAndOthersNoScoreAtAll) {
  const CaseSpec spec = Spec();
  const InputGenerator inputs(spec);
  reference::Matrix logits_TE =
      Read(inputs, spec, "x_TD") * Read(inputs, spec, "gate_ED").transpose();
  logits_TE.rowwise() += Read(inputs, spec, "gate_bias_E").reshaped().transpose();
  for (Eigen::Index token = 0; token < logits_TE.rows(); ++token) {
    EXPECT_EQ((logits_TE.row(token).array() == 0.0).count(), spec.model.top_k);
    EXPECT_EQ((logits_TE.row(token).array() <= -1024.0).count(),
              spec.model.experts - spec.model.top_k);
  }
  EXPECT_EQ(inputs.smallest_logit_margin(), 1024.0);
}

TEST(DyadicFill, GivesEveryExpertEquallyManyTokens) {
  for (const CaseSpec& spec : {Spec(), GroupedSpec()}) {
    const InputGenerator inputs(spec);
    const reference::Routing routing = RouteOf(inputs, spec);
    for (std::int64_t expert = 0; expert < spec.model.experts; ++expert) {
      EXPECT_EQ((routing.topk_expert_TK.array() == expert).count(), 8) << expert;
    }
  }
}

TEST(DyadicFill, ChoosesFromAsManyGroupsAsAllowed) {
  const CaseSpec spec = GroupedSpec();
  const InputGenerator inputs(spec);
  const reference::Routing routing = RouteOf(inputs, spec);
  for (Eigen::Index token = 0; token < routing.topk_expert_TK.rows(); ++token) {
    EXPECT_NE(routing.topk_expert_TK(token, 0) / 3, routing.topk_expert_TK(token, 1) / 3);
  }
  EXPECT_GT(inputs.smallest_logit_margin(), MarginFloor(Dtype::kBfloat16));
}

TEST(DyadicFill, GivesIdleExpertsNoToken) {
  CaseSpec spec = Spec();
  spec.numerics.idle_experts = {0, 5};
  const InputGenerator inputs(spec);
  const reference::Routing routing = RouteOf(inputs, spec);
  EXPECT_EQ((routing.topk_expert_TK.array() == 0).count(), 0);
  EXPECT_EQ((routing.topk_expert_TK.array() == 5).count(), 0);
  EXPECT_GT((routing.topk_expert_TK.array() == 4).count(), 0);
}

// Whatever a program does with the score, it does it to a few bits only.
TEST(DyadicFill, HoldsFewPowersOfTwo) {
  for (const CaseSpec& spec : {Spec(), GroupedSpec()}) {
    const InputGenerator inputs(spec);
    for (const TensorInfo& input : InputsOf(spec.model)) {
      if (input.name == "expert_bias_E") {
        continue;  // takes part in no sum
      }
      const reference::Matrix value = Read(inputs, spec, input.name);
      EXPECT_GT(value.norm(), 0.0) << input.name;
      for (const double element : value.reshaped()) {
        int exponent = 0;
        EXPECT_TRUE(element == 0.0 || std::abs(std::frexp(element, &exponent)) == 0.5)
            << input.name << " " << element;
      }
    }
  }
}

TEST(DyadicFill, DependsOnTheSeed) {
  CaseSpec other = Spec();
  other.numerics.seed = 8;
  for (const char* name : {"x_TD", "d_y_TD", "w1_EFD", "w2_EDF"}) {
    EXPECT_NE(Read(InputGenerator(Spec()), Spec(), name), Read(InputGenerator(other), other, name));
  }
}

TEST(DyadicFill, SaysWhyAModelCannotBeExact) {
  struct Change {
    std::function<void(CaseSpec&)> apply;
    std::string complaint;
  };
  for (const Change& change : std::vector<Change>{
           {[](CaseSpec& s) { s.model.top_k = 3; },
            "top_k 3 makes scores of 1/3, which no sum of powers of two equals; use a power of "
            "two, or sigmoid without route_norm"},
           {[](CaseSpec& s) { s.model.top_k = 1; },
            "top_k 1 with normalised scores gives the gate no gradient; use 2 or more"},
           {[](CaseSpec& s) { s.model.route_scale = 2.5; },
            "route_scale 2.5 rounds what it scales; use a power of two"},
           {[](CaseSpec& s) { s.model.d_model = 16; },
            "d_model 16 leaves too little beside one column for each of 12 experts; use at least "
            "17"},
           {[](CaseSpec& s) {
              s.model.expert_groups = 4;
              s.model.limited_groups = 3;
            },
            "limited_groups 3 leaves a choice between equal groups to top_k 2; use at most 2"},
           {[](CaseSpec& s) {
              s.model.expert_groups = 4;
              s.model.limited_groups = 2;
              s.numerics.idle_experts = {1};
            },
            "idle_experts do not go with groups here; leave one of them out"},
           {[](CaseSpec& s) {
              s.program.dp_reduction = DpReduction::kMean;
              s.layouts = {ParseLayout("dp2.tp2", "test"), ParseLayout("dp3.tp2", "test")};
            },
            "dp_reduction mean divides by the 3 data-parallel ranks of dp3.tp2; use layouts with a "
            "power of two of them, or sum"}}) {
    CaseSpec spec = Spec();
    EXPECT_EQ(FindInexact(spec), "");
    change.apply(spec);
    EXPECT_EQ(FindInexact(spec), change.complaint);
    try {
      const InputGenerator inputs(spec);
      FAIL() << "no Error for: " << change.complaint;
    } catch (const Error& error) {
      EXPECT_EQ(std::string(error.what()),
                "cases/test.json: the fill is dyadic, and " + change.complaint);
    }
  }
}

TEST(DyadicFill, TakesAnyTopKWhereScoresAreNotNormalised) {
  CaseSpec spec = Spec();
  spec.model.score_function = ScoreFunction::kSigmoid;
  spec.model.top_k = 3;
  EXPECT_EQ(FindInexact(spec), "");
  EXPECT_NO_THROW(InputGenerator{spec});
}

TEST(DyadicFill, RefusesSumsOfTooManyTermsWithTheirNumbers) {
  CaseSpec spec = Spec();
  spec.model.tokens = 480;
  try {
    const InputGenerator inputs(spec);
    FAIL() << "no Error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("of which bfloat16 counts 256 exactly"),
              std::string::npos)
        << error.what();
  }
}

TEST(DyadicFill, RefusesTokensTooFewForItsHiddenUnits) {
  CaseSpec spec = Spec();
  spec.model.tokens = 12;
  try {
    const InputGenerator inputs(spec);
    FAIL() << "no Error";
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()),
              "cases/test.json: the fill is dyadic, and 2 tokens are too few to give each of 12 "
              "hidden units gradients of its own; use more tokens, another seed, or a smaller "
              "d_expert");
  }
}

}  // namespace
}  // namespace moe
