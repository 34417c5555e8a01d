#include "harness/layout/step_contract.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace moe {
namespace {

using Texts = std::vector<std::string>;

constexpr Model kModel = {.tokens = 48, .d_model = 8, .d_expert = 12, .experts = 4, .top_k = 2};
constexpr Program kAtBoundary = {.tp_backward = TpBackward::kSumAtBoundary};
constexpr Program kInside = {.tp_backward = TpBackward::kSumInside};

StepContract ContractOf(const std::string& layout, const Program& program,
                        const Model& model = kModel) {
  return MakeContract(model, ParseLayout(layout, "here"), program);
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

TEST(FindUnsupported, RunsEtpOneAndEtpEqualToTp) {
  EXPECT_EQ(FindUnsupported(ParseLayout("tp4.ep2.etp1", "here")), "");
  EXPECT_EQ(FindUnsupported(ParseLayout("dp2.tp4.ep2.etp4", "here")), "");
  EXPECT_EQ(
      FindUnsupported(ParseLayout("tp4.ep2.etp2", "here")),
      "etp 2 with tp 4: the built-in step runs etp 1 and etp equal to tp; dumps of such a layout "
      "can be judged with `moegate check`");
}

}  // namespace
}  // namespace moe
