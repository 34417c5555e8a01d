// The rule that chooses one story for the whole step, on hypotheses with made-up misfits.
#include "harness/explain/joint.h"

#include <gtest/gtest.h>

#include <cmath>

#include "harness/explain/costs.h"

namespace moe {
namespace {

Fit Make(const Explanation& explanation, double nats, double cost) {
  return {.explanation = explanation, .cost = cost, .misfit = {.nats = nats}};
}

const Explanation kDoubleTp = {.cause = Cause::kDoubleSum, .axes = {Axis::kTp}};
const Explanation kDoubleDp = {.cause = Cause::kDoubleSum, .axes = {Axis::kDpShard}};
const Explanation kUnknown = {.cause = Cause::kUnexplained};

TEST(ChooseJointly, TakesTheSmallestSumOfMisfitAndCost) {
  const JointChoice choice =
      ChooseJointly({{"d_gate_ED", {Make(kDoubleTp, 20.0, 1.0), Make(kDoubleDp, 2.0, 9.0)}}});
  EXPECT_EQ(choice.chosen, std::vector<std::size_t>{1});
  EXPECT_NEAR(choice.odds[0][0], 10.0, 1e-9);
  EXPECT_EQ(choice.odds[0][1], 0.0);
}

TEST(ChooseJointly, LeavesATieATie) {
  const JointChoice choice =
      ChooseJointly({{"d_gate_ED", {Make(kDoubleTp, 2.0, 1.0), Make(kDoubleDp, 2.0, 1.0)}}});
  EXPECT_EQ(choice.odds[0][0], 0.0);
  EXPECT_EQ(choice.odds[0][1], 0.0);
}

// What one tensor cannot tell another can.
TEST(ChooseJointly, PaysOnceForAFaultThatTensorsShare) {
  const JointChoice choice =
      ChooseJointly({{"d_gate_ED", {Make(kDoubleDp, 0.0, 1.0), Make(kDoubleTp, 0.0, 1.0)}},
                     {"d_gate_bias_E", {Make(kDoubleTp, 0.0, 1.0)}}});
  EXPECT_EQ(choice.chosen[0], 1U);
  EXPECT_EQ(choice.faults, 1U);
  EXPECT_NEAR(choice.odds[0][0], kFaultCost + 1.0, 1e-9);
}

// Though for each alone the other story is the cheaper one.
TEST(ChooseJointly, FindsTheStoryThatIsTheCheapestForAllTogether) {
  const Explanation other = {.cause = Cause::kWrongScale, .factor = 2.0};
  const Explanation third = {.cause = Cause::kWrongScale, .factor = 3.0};
  const JointChoice choice =
      ChooseJointly({{"d_w1_EFD", {Make(other, 0.0, 1.0), Make(kDoubleTp, 0.0, 2.0)}},
                     {"d_w2_EDF", {Make(third, 0.0, 1.0), Make(kDoubleTp, 0.0, 2.0)}}});
  EXPECT_EQ(choice.chosen, (std::vector<std::size_t>{1, 1}));
  EXPECT_EQ(choice.faults, 1U);
}

// The gate's gradient and what the gate gives d_x come through one sum of the scores' gradient.
TEST(ShareAFault, GoesByWhatASumReaches) {
  Explanation in_gate_path = kDoubleTp;
  in_gate_path.path = "gate";
  Explanation in_routed_path = kDoubleTp;
  in_routed_path.path = "routed";
  EXPECT_TRUE(ShareAFault("d_gate_ED", kDoubleTp, "d_x_TD", in_gate_path));
  EXPECT_FALSE(ShareAFault("d_gate_ED", kDoubleTp, "d_x_TD", in_routed_path));
  EXPECT_FALSE(ShareAFault("d_x_TD", in_gate_path, "d_x_TD", in_routed_path));
  EXPECT_FALSE(ShareAFault("d_gate_ED", kDoubleTp, "d_gate_bias_E", kDoubleDp));
}

TEST(ShareAFault, TellsFactorsApart) {
  const auto scale = [](double factor) {
    return Explanation{.cause = Cause::kWrongScale, .factor = factor};
  };
  EXPECT_TRUE(ShareAFault("d_w1_EFD", scale(0.5), "d_w2_EDF", scale(0.5)));
  EXPECT_FALSE(ShareAFault("d_w1_EFD", scale(0.5), "d_w2_EDF", scale(0.25)));
}

// Coarse arithmetic leaves its errors in more than one tensor.
TEST(ChooseJointly, DoubtsCoarseArithmeticInOneTensorAlone) {
  const Explanation coarse = {.cause = Cause::kPrecision, .option = "bfloat16"};
  const std::vector<Fit> fits = {Make(coarse, 50.0, kCoarseCost),
                                 Make(kUnknown, 50.0, kUnexplainedCost)};
  EXPECT_EQ(ChooseJointly({{"d_w1_EFD", fits}}).chosen[0], 1U);
  EXPECT_EQ(ChooseJointly({{"d_w1_EFD", fits}, {"d_w2_EDF", fits}}).chosen,
            (std::vector<std::size_t>{0, 0}));
}

}  // namespace
}  // namespace moe
