#include "harness/layout/step_contract.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "harness/layout/step_graph.h"

namespace moe {
namespace {

using Texts = std::vector<std::string>;

constexpr Model kModel = {.tokens = 48, .d_model = 8, .d_expert = 12, .experts = 4, .top_k = 2};
constexpr Program kAtBoundary = {.tp_backward = TpBackward::kSumAtBoundary};
constexpr Program kInside = {.tp_backward = TpBackward::kSumInside};

StepContract ContractOf(const std::string& layout, const Program& program,
                        const Model& model = kModel) {
  return StepGraph(model, ParseLayout(layout, "here"), program).contract();
}

Texts Sorted(const std::vector<Reduction>& reductions) {
  Texts texts;
  for (const Reduction& reduction : reductions) {
    texts.push_back(ToText(reduction));
  }
  std::sort(texts.begin(), texts.end());
  return texts;
}

Texts Owed(const StepContract& contract) {
  return Sorted(contract.Owed());
}
Texts Settled(const StepContract& contract) {
  return Sorted(contract.Settled());
}

TEST(StepContract, OwesNothingOnOneRank) {
  for (const Program& program : {kAtBoundary, kInside}) {
    EXPECT_EQ(Owed(ContractOf("dp1", program)), Texts{});
    EXPECT_EQ(Settled(ContractOf("dp1", program)), Texts{});
  }
}

TEST(StepContract, OwesEveryParameterTheSumOverTheBatch) {
  const StepContract contract = ContractOf("dpr2.dp2.cp2", kAtBoundary);
  EXPECT_EQ(Owed(contract), (Texts{"d_gate_ED@cp", "d_gate_ED@dp_replicate", "d_gate_ED@dp_shard",
                                   "d_w1_EFD@edp", "d_w2_EDF@edp", "d_w3_EFD@edp"}));
  EXPECT_EQ(Settled(contract), Texts{});
}

// With expert parallelism the tokens travel, so an expert's gradient is whole where it arises.
TEST(StepContract, OwesExpertsNothingWhereEpTakesAllRanks) {
  EXPECT_EQ(Owed(ContractOf("dp2.ep2", kAtBoundary)), (Texts{"d_gate_ED@dp_shard"}));
}

TEST(StepContract, OwesExpertsTheSumOverEdpOnly) {
  EXPECT_EQ(Owed(ContractOf("dp4.ep2", kInside)),
            (Texts{"d_gate_ED@dp_shard", "d_w1_EFD@edp", "d_w2_EDF@edp", "d_w3_EFD@edp"}));
}

TEST(StepContract, SumsAtTheBoundaryUnderTpAlone) {
  const StepContract contract = ContractOf("tp2", kAtBoundary);
  EXPECT_EQ(Owed(contract), (Texts{"d_gate_ED@tp", "d_x_TD@tp", "y_TD@tp"}));
  EXPECT_EQ(Settled(contract), Texts{});
}

// #1878: d_routed_ND is summed behind the experts; what comes of it is whole.
TEST(StepContract, SumsInsideUnderTpAlone) {
  const StepContract contract = ContractOf("tp2", kInside);
  EXPECT_EQ(Owed(contract), (Texts{"d_logits_TE@tp", "d_routed_ND@tp", "y_TD@tp"}));
  EXPECT_EQ(Settled(contract), (Texts{"d_gate_ED@tp", "d_routed_TD@tp", "d_x_TD@tp"}));
}

TEST(StepContract, FindsTheLogitsSettledWhereTheScoreComesBeforeTheExperts) {
  Model model = kModel;
  model.score_placement = ScorePlacement::kBeforeExperts;
  const StepContract contract = ContractOf("tp2", kInside, model);
  EXPECT_EQ(Owed(contract), (Texts{"d_routed_ND@tp", "y_TD@tp"}));
  EXPECT_EQ(Settled(contract),
            (Texts{"d_gate_ED@tp", "d_logits_TE@tp", "d_routed_TD@tp", "d_x_TD@tp"}));
}

// #2387: with etp 1 each tp rank routes its own tokens to whole experts.
TEST(StepContract, SumsAtTheBoundaryWithWholeExperts) {
  EXPECT_EQ(Owed(ContractOf("tp2.ep2.etp1", kAtBoundary)),
            (Texts{"d_gate_ED@tp", "d_x_TD@tp", "y_TD@tp"}));
}

TEST(StepContract, SumsInsideWithWholeExperts) {
  for (const ScorePlacement placement :
       {ScorePlacement::kBeforeExperts, ScorePlacement::kAfterExperts}) {
    Model model = kModel;
    model.score_placement = placement;
    const StepContract contract = ContractOf("tp2.ep2.etp1", kInside, model);
    EXPECT_EQ(Owed(contract), (Texts{"d_logits_TE@tp", "d_routed_TD@tp", "y_TD@tp"}));
    EXPECT_EQ(Settled(contract), (Texts{"d_gate_ED@tp", "d_x_TD@tp"}));
  }
}

TEST(StepContract, SumsOverBatchAndTpWithShardedExperts) {
  EXPECT_EQ(Owed(ContractOf("dp2.tp2.ep2.etp2", kAtBoundary)),
            (Texts{"d_gate_ED@dp_shard", "d_gate_ED@tp", "d_x_TD@tp", "y_TD@tp"}));
  EXPECT_EQ(Owed(ContractOf("dp2.tp2.ep2.etp2", kInside)),
            (Texts{"d_gate_ED@dp_shard", "d_logits_TE@tp", "d_routed_ND@tp", "y_TD@tp"}));
}

TEST(StepContract, OwesSharedExpertsTheBatchAndTheirInputTp) {
  Model model = kModel;
  model.d_shared = 6;
  const StepContract contract = ContractOf("dp2.tp2", kInside, model);
  EXPECT_TRUE(contract.Owes({"d_shared_w1_FD", Axis::kDpShard}));
  EXPECT_FALSE(contract.Owes({"d_shared_w1_FD", Axis::kTp}));
  EXPECT_TRUE(contract.Owes({"d_shared_TD", Axis::kTp}));
  EXPECT_EQ(ContractOf("dp2.tp2", kAtBoundary, model).Find("d_shared_TD"), nullptr);
}

TEST(StepContract, PlacesTensorsOnTheirMeshes) {
  const StepContract contract = ContractOf("dp2.tp2.ep2.etp2", kAtBoundary);
  const ContractTensor& w2 = *contract.Find("d_w2_EDF");
  EXPECT_EQ(w2.mesh, MeshKind::kExpert);
  EXPECT_EQ(w2.placements, (Placements{{Axis::kEp, Shard(0)}, {Axis::kEtp, Shard(2)}}));
  EXPECT_EQ(contract.Find("d_w1_EFD")->placements,
            (Placements{{Axis::kEp, Shard(0)}, {Axis::kEtp, Shard(1)}}));
  EXPECT_EQ(contract.Find("d_gate_ED")->placements,
            (Placements{{Axis::kDpShard, Replicate()}, {Axis::kTp, Replicate()}}));
}

TEST(StepContract, SplitsRowsOverTpOnlyUnderSequenceParallelism) {
  EXPECT_EQ(ContractOf("tp2", kAtBoundary).Find("d_x_TD")->placements.at(Axis::kTp), Shard(0));
  EXPECT_EQ(ContractOf("tp2.sp0", kAtBoundary).Find("d_x_TD")->placements.at(Axis::kTp),
            Replicate());
}

TEST(StepContract, CallsNoIntermediateAResult) {
  for (const ContractTensor& tensor : ContractOf("tp2", kInside).tensors) {
    const bool inside = tensor.name == "d_routed_ND" || tensor.name == "d_routed_TD" ||
                        tensor.name == "d_logits_TE";
    EXPECT_EQ(tensor.result, !inside) << tensor.name;
  }
}

// Megatron's folding: with etp other than 1 and tp each rank routes tokens of its own, and what the
// slices of the hidden units give of the rows that an etp group gathers is summed over etp.
TEST(StepContract, SumsOverEtpWhereItsRanksHaveTokensOfTheirOwn) {
  for (const char* layout : {"tp4.etp2", "dp4.tp2.ep2.etp4", "dp2.tp3.etp2"}) {
    const StepContract contract = ContractOf(layout, kAtBoundary);
    EXPECT_TRUE(contract.Owes({"y_routed_ND", Axis::kEtp})) << layout;
    EXPECT_TRUE(contract.Owes({"d_routed_ND", Axis::kEtp})) << layout;
    EXPECT_TRUE(contract.Owes({"d_gate_ED", Axis::kTp})) << layout;
    EXPECT_TRUE(contract.Owes({"d_x_TD", Axis::kTp})) << layout;
  }
  EXPECT_EQ(Owed(ContractOf("dp2.tp1.etp2", kAtBoundary)),
            (Texts{"d_gate_ED@dp_shard", "d_routed_ND@etp", "y_routed_ND@etp"}));
  EXPECT_EQ(Owed(ContractOf("tp4.etp2", kAtBoundary)),
            (Texts{"d_gate_ED@tp", "d_routed_ND@etp", "d_w1_EFD@edp", "d_w2_EDF@edp",
                   "d_w3_EFD@edp", "d_x_TD@tp", "y_TD@tp", "y_routed_ND@etp"}));
}

TEST(StepContract, SumsInsideUnderFoldingAsWithWholeExperts) {
  const StepContract contract = ContractOf("dp2.tp2.etp4", kInside);
  EXPECT_EQ(Owed(contract), (Texts{"d_gate_ED@dp_shard", "d_logits_TE@tp", "d_routed_ND@etp",
                                   "d_routed_TD@tp", "y_TD@tp", "y_routed_ND@etp"}));
}

TEST(StepContract, SumsOverEtpWithinTheStepNowhereElse) {
  for (const char* layout : {"tp2", "tp2.etp1", "dp2.tp2.ep2.etp2", "dp4.ep2"}) {
    EXPECT_EQ(ContractOf(layout, kAtBoundary).Find("y_routed_ND"), nullptr) << layout;
    EXPECT_EQ(ContractOf(layout, kAtBoundary).Find("d_routed_ND"), nullptr) << layout;
  }
}

// A group of one rank sums nothing, but a program can send its sum to other ranks.
TEST(StepContract, KnowsExpertsThatAreAloneOnEdp) {
  EXPECT_TRUE(ContractOf("dp2.tp1.etp2", kAtBoundary).IsAlone({"d_w1_EFD", Axis::kEdp}));
  EXPECT_FALSE(ContractOf("dp2.tp1.etp2", kAtBoundary).IsAlone({"d_gate_ED", Axis::kDpShard}));
  EXPECT_FALSE(ContractOf("dp4.tp1.etp2", kAtBoundary).IsAlone({"d_w1_EFD", Axis::kEdp}));
  EXPECT_FALSE(ContractOf("dp1", kAtBoundary).IsAlone({"d_w1_EFD", Axis::kEdp}));
}

}  // namespace
}  // namespace moe
