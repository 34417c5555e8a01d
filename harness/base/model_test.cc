#include "harness/base/model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

namespace moe {
namespace {

const Model kSound = {.tokens = 64,
                      .d_model = 32,
                      .d_expert = 48,
                      .experts = 8,
                      .top_k = 2,
                      .expert_groups = 4,
                      .limited_groups = 2,
                      .d_shared = 16,
                      .shared_gate = true};

// "key: sentence" of the sound model after `change`; empty when nothing is wrong.
std::string FaultAfter(const std::function<void(Model&)>& change) {
  Model model = kSound;
  change(model);
  const auto fault = FindFault(model);
  return fault ? std::string(fault->key) + ": " + fault->what : "";
}

TEST(Model, IsSoundAsItStands) {
  EXPECT_EQ(FaultAfter([](Model&) {}), "");
}

TEST(Model, NeedsEverySizeInRange) {
  EXPECT_EQ(FaultAfter([](Model& m) { m.tokens = 0; }), "tokens: tokens is 0; use 1 to 1048576");
  EXPECT_EQ(FaultAfter([](Model& m) { m.d_expert = -1; }),
            "d_expert: d_expert is -1; use 1 to 1048576");
  EXPECT_EQ(FaultAfter([](Model& m) { m.d_model = 1 << 20; }), "");
  EXPECT_EQ(FaultAfter([](Model& m) { m.d_model = (1 << 20) + 1; }),
            "d_model: d_model is 1048577; use 1 to 1048576");
  EXPECT_EQ(FaultAfter([](Model& m) { m.d_shared = -1; }),
            "d_shared: d_shared is -1; use 0 to 1048576");
}

TEST(Model, ChoosesNoMoreExpertsThanThereAre) {
  EXPECT_EQ(FaultAfter([](Model& m) { m.top_k = 9; }),
            "top_k: top_k 9 is more than experts 8; use 1 to 8");
}

TEST(Model, ChoosesNoMoreExpertsThanItsGroupsHold) {
  EXPECT_EQ(FaultAfter([](Model& m) { m.top_k = 4; }), "");
  EXPECT_EQ(FaultAfter([](Model& m) { m.top_k = 5; }),
            "top_k: top_k 5 is more than the 4 experts of 2 groups; use 1 to 4");
}

TEST(Model, CutsExpertsIntoEqualGroups) {
  EXPECT_EQ(FaultAfter([](Model& m) { m.expert_groups = 3; }),
            "expert_groups: expert_groups 3 does not divide experts 8");
  EXPECT_EQ(FaultAfter([](Model& m) { m.limited_groups = 5; }),
            "limited_groups: limited_groups 5 is more than expert_groups 4; use 1 to 4");
}

TEST(Model, ScalesScoresByAFiniteNumberOtherThanZero) {
  EXPECT_EQ(FaultAfter([](Model& m) { m.route_scale = -2.5; }), "");
  EXPECT_EQ(FaultAfter([](Model& m) { m.route_scale = 0.0; }),
            "route_scale: route_scale is 0; use a finite number other than 0");
  EXPECT_EQ(FaultAfter([](Model& m) { m.route_scale = INFINITY; }),
            "route_scale: route_scale is inf; use a finite number other than 0");
}

TEST(Model, GatesSharedExpertsOnlyWhereThereAreSome) {
  EXPECT_EQ(FaultAfter([](Model& m) { m.d_shared = 0; }),
            "shared_gate: shared_gate needs shared experts; set d_shared");
}

}  // namespace
}  // namespace moe
