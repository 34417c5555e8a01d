// Causes read off the values alone, as of a foreign dump. Shares are made without the ledger: of
// tokens with the cotangent of all others set to zero, of hidden units with the output weights of
// all others set to zero.

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "harness/layout/step_graph.h"
#include "harness/step_under_test.h"
#include "reference/contributions.h"

namespace moe {
namespace {

using Ranks = std::vector<std::int64_t>;

Model RoomyModel() {
  return {.tokens = 24,
          .d_model = 8,
          .d_expert = 6,
          .experts = 6,
          .top_k = 2,
          .score_function = ScoreFunction::kSigmoid};
}

Values Sum(const Values& a, const Values& b, double factor = 1.0) {
  Values sum = a;
  for (std::size_t i = 0; i < sum.size(); ++i) {
    sum[i] += factor * b[i];
  }
  return sum;
}

// The same step with other numbers in one input.
template <typename Change>
std::map<std::string, Values> ResultsWith(const Step& step, const std::string& input,
                                          const Change& change) {
  Step other = step;
  other.whole.clear();
  change(other.problem[input]);
  const reference::Routing routing = step.Routing();
  other.Run(&routing);
  return other.whole;
}

// What the tokens of `in_T` alone give.
std::map<std::string, Values> ShareOfTokens(const Step& step, const std::set<std::int64_t>& in_T) {
  const auto columns = static_cast<std::size_t>(step.manifest.model.d_model);
  return ResultsWith(step, "d_y_TD", [&](Values& d_y) {
    for (std::size_t i = 0; i < d_y.size(); ++i) {
      d_y[i] = in_T.contains(static_cast<std::int64_t>(i / columns)) ? d_y[i] : 0.0;
    }
  });
}

std::map<std::string, Values> ShareOfRank(const Step& step, std::int64_t rank) {
  const Slice slice = SliceOf(step.manifest, "y_TD", rank);
  return ShareOfTokens(step, {slice.index[0].begin(), slice.index[0].end()});
}

// What hidden units [first, first + count) alone give.
std::map<std::string, Values> ShareOfUnits(const Step& step, std::int64_t first,
                                           std::int64_t count) {
  const std::int64_t units = step.manifest.model.d_expert;
  return ResultsWith(step, "w2_EDF", [&](Values& w2) {
    for (std::size_t i = 0; i < w2.size(); ++i) {
      const std::int64_t unit = static_cast<std::int64_t>(i) % units;
      w2[i] = unit >= first && unit < first + count ? w2[i] : 0.0;
    }
  });
}

// Rank r holds its part of `of_rank[r]`, a whole tensor.
void Hold(Step& step, const std::string& name, const std::vector<Values>& of_rank) {
  const Manifest manifest = step.manifest;
  step.Tamper(name, [=](std::int64_t rank, Values& local) {
    local = ChangeableProblem::Cut(of_rank[static_cast<std::size_t>(rank)],
                                   manifest.tensors.at(name).shape, SliceOf(manifest, name, rank));
  });
}

std::vector<Values> SharesOfRanks(const Step& step, const std::string& name) {
  std::vector<Values> shares;
  for (std::int64_t rank = 0; rank < step.manifest.WorldSize(); ++rank) {
    shares.push_back(ShareOfRank(step, rank).at(name));
  }
  return shares;
}

bool SaysWhy(const Finding& finding, const std::string& part) {
  const auto sentences = EvidenceOf(finding);
  return std::any_of(sentences.begin(), sentences.end(), [&](const auto& sentence) {
    return sentence.find(part) != std::string::npos;
  });
}

TEST(Diagnose, NamesADroppedReduceScatterThoughNoReplicasAreLeft) {
  Step step("tp2", RoomyModel());
  step.Run();
  Hold(step, "d_x_TD",
       {ShareOfUnits(step, 0, 3).at("d_x_TD"), ShareOfUnits(step, 3, 3).at("d_x_TD")});
  const Finding finding = step.FindingOf("d_x_TD");
  EXPECT_EQ(Told(finding), "fail: missing_sum [tp] missing sum over tp");
  EXPECT_TRUE(SaysWhy(finding, "holds the share of tp=0 once, of tp=1 not at all (fit residual"))
      << EvidenceOf(finding).at(1);
  EXPECT_TRUE(SaysWhy(finding, "a share is what a slice of the hidden units gives"));
}

TEST(Diagnose, NamesTheGroupThatWasSummedOverInstead) {
  Step step("dp2.tp3.ep2.etp1", RoomyModel());
  step.Run();
  const auto shares = SharesOfRanks(step, "d_gate_ED");
  std::vector<Values> held;
  for (std::size_t rank = 0; rank < 6; ++rank) {
    const Values over_dp = Sum(shares[rank % 3], shares[rank % 3 + 3]);
    held.push_back(Sum(over_dp, over_dp));  // and once more by the sum that was owed
  }
  Hold(step, "d_gate_ED", held);
  const Finding finding = step.FindingOf("d_gate_ED");
  EXPECT_EQ(Told(finding), "fail: wrong_group [tp] wrong group: sum over dp_shard instead of tp");
  EXPECT_EQ(finding.explanation.used, std::vector{Axis::kDpShard});
  EXPECT_TRUE(SaysWhy(finding, "of tp=2 dp_shard=0, tp=2 dp_shard=1 twice (fit residual"))
      << fmt::format("{}", fmt::join(EvidenceOf(finding), "\n"));
}

// Experts whose hidden units are spread over etp; each rank has tokens of its own.
Step FoldedStep(const std::string& layout) {
  Model model = RoomyModel();
  model.d_expert = 12;
  Step step(layout, model);
  for (const char* name : {"d_w1_EFD", "d_w3_EFD", "d_w2_EDF"}) {
    step.manifest.tensors[name].placements = {
        {Axis::kEp, Shard(0)}, {Axis::kEtp, Shard(name == std::string("d_w2_EDF") ? 2 : 1)}};
  }
  return step.Run();
}

// Megatron-core 0.18.2 sums experts over the data-parallel ranks of the dense mesh where ep is 1.
// With etp over tp these hold other slices of the hidden units.
TEST(Diagnose, NamesTheSumThatMixesSlicesOfTheHiddenUnits) {
  Step step = FoldedStep("dp2.tp2.etp4");
  Manifest manifest = step.manifest;
  const Values whole = step.whole["d_w1_EFD"];
  step.Tamper("d_w1_EFD", [=](std::int64_t rank, Values& local) {
    local.assign(local.size(), 0.0);
    for (const std::int64_t other : manifest.meshes.dense.GroupOf(rank, {Axis::kDpShard})) {
      local = Sum(local,
                  ChangeableProblem::Cut(whole, {6, 12, 8}, SliceOf(manifest, "d_w1_EFD", other)));
    }
  });
  EXPECT_EQ(Told(step.FindingOf("d_w1_EFD")),
            "fail: wrong_group [edp] wrong group: sum over dp_shard instead of edp");
}

TEST(Diagnose, NamesTheSumOverSlicesThatIsMissing) {
  Step step = FoldedStep("dp3.tp1.etp3");
  Hold(step, "y_TD",
       {ShareOfUnits(step, 0, 4)["y_TD"], ShareOfUnits(step, 4, 4)["y_TD"],
        ShareOfUnits(step, 8, 4)["y_TD"]});
  EXPECT_EQ(Told(step.FindingOf("y_TD")), "fail: missing_sum [etp] missing sum over etp");
}

// The experts' outputs are shares in the scores' gradient too: of each rank's tokens its slice.
TEST(Diagnose, NamesTheSumOverSlicesThatTheRouterLacks) {
  Step step = FoldedStep("dp3.tp1.etp3");
  Values gate(step.whole["d_gate_ED"].size(), 0.0);
  for (std::int64_t rank = 0; rank < 3; ++rank) {
    const auto slice = SliceOf(step.manifest, "y_TD", rank);
    Step of_rank = step;
    const auto columns = static_cast<std::size_t>(step.manifest.model.d_model);
    Values& d_y = of_rank.problem["d_y_TD"];
    for (std::size_t i = 0; i < d_y.size(); ++i) {
      const auto token = static_cast<std::int64_t>(i / columns);
      d_y[i] = token >= slice.index[0].front() && token <= slice.index[0].back() ? d_y[i] : 0.0;
    }
    gate = Sum(gate, ShareOfUnits(of_rank, 4 * rank, 4)["d_gate_ED"]);
  }
  Hold(step, "d_gate_ED", {gate, gate, gate});
  EXPECT_EQ(Told(step.FindingOf("d_gate_ED")), "fail: missing_sum [etp] missing sum over etp");
}

// Rank 1's slice of the hidden units is in nobody's rows.
TEST(Diagnose, NamesTheRankWhoseSliceIsMissing) {
  Step step = FoldedStep("dp3.tp1.etp3");
  const Values rest = Sum(step.whole["y_TD"], ShareOfUnits(step, 4, 4)["y_TD"], /*factor=*/-1.0);
  Hold(step, "y_TD", {rest, rest, rest});
  EXPECT_EQ(Told(step.FindingOf("y_TD")),
            "fail: dropped_contribution [etp] the contribution of rank 1 is missing");
}

TEST(Diagnose, NamesTheExpertsOfAnotherRankInASum) {
  Step step("dp4.ep2", RoomyModel());  // ranks 0 and 1 have experts 0-2 and 3-5 of edp 0
  step.Run();
  const auto shares = SharesOfRanks(step, "d_w1_EFD");
  std::vector<Values> held;
  const auto half = static_cast<std::ptrdiff_t>(shares[0].size() / 2);
  for (std::size_t rank = 0; rank < 4; ++rank) {
    const Values of_edp = Sum(shares[rank / 2 * 2], shares[rank / 2 * 2 + 1]);
    Values mixed = of_edp;  // both halves: experts e and e + 3 added up
    for (std::ptrdiff_t i = 0; i < half; ++i) {
      const auto place = static_cast<std::size_t>(i);
      mixed[place] = mixed[place + static_cast<std::size_t>(half)] =
          of_edp[place] + of_edp[place + static_cast<std::size_t>(half)];
    }
    held.push_back(mixed);
  }
  Hold(step, "d_w1_EFD", held);
  const Finding finding = step.FindingOf("d_w1_EFD");
  EXPECT_EQ(Told(finding), "fail: wrong_group [edp] wrong group: sum over ep instead of edp");
}

TEST(Diagnose, NamesTheRankWhoseShareIsMissing) {
  Step step("dp2.tp3.ep2.etp1", RoomyModel());
  step.Run();
  const Values without = Sum(step.whole["d_gate_ED"], ShareOfRank(step, 4).at("d_gate_ED"), -1.0);
  Hold(step, "d_gate_ED", std::vector<Values>(6, without));
  const Finding finding = step.FindingOf("d_gate_ED");
  EXPECT_EQ(finding.explanation.cause, Cause::kDroppedContribution) << TextOf(finding);
  EXPECT_EQ(finding.explanation.sources, Ranks{4});
  EXPECT_EQ(TextOf(finding), "the contribution of rank 4 is missing");
}

TEST(Diagnose, NamesRanksWhoseSharesAreDoubled) {
  Step step("dp2.tp3.ep2.etp1", RoomyModel());
  step.Run();
  Values more = Sum(step.whole["d_gate_ED"], ShareOfRank(step, 1).at("d_gate_ED"));
  more = Sum(more, ShareOfRank(step, 5).at("d_gate_ED"));
  Hold(step, "d_gate_ED", std::vector<Values>(6, more));
  const Finding finding = step.FindingOf("d_gate_ED");
  EXPECT_EQ(finding.explanation.cause, Cause::kDoubledContribution) << TextOf(finding);
  EXPECT_EQ(finding.explanation.sources, (Ranks{1, 5}));
}

TEST(Diagnose, NamesThePathThatIsLost) {
  Step step("tp2", RoomyModel());
  step.Run();
  const reference::Problem problem = MakeProblem(step.manifest.model, step.problem);
  const reference::Contributions terms(step.manifest.model, problem, step.Routing(), {});
  Values without = step.whole["d_x_TD"];
  for (const reference::RowTerm& term : terms.RowsOf("d_x_TD")) {
    for (std::size_t n = 0; term.path == Path::kGate && n < term.token_N.size(); ++n) {
      const auto row = term.value_ND.row(static_cast<Eigen::Index>(n));
      const auto first = static_cast<std::size_t>(term.token_N[n] * row.size());
      for (Eigen::Index column = 0; column < row.size(); ++column) {
        without[first + static_cast<std::size_t>(column)] -= row[column];
      }
    }
  }
  Hold(step, "d_x_TD", {without, without});
  EXPECT_EQ(Told(step.FindingOf("d_x_TD")), "fail: lost_path [] nothing comes along the gate path");
}

TEST(Diagnose, NamesARanksOwnNormaliser) {
  Step step("dp2", RoomyModel());
  step.manifest.tokens = {{}, {}};
  for (std::int64_t token = 0; token < 24; ++token) {
    step.manifest.tokens[token < 18 ? 0 : 1].push_back(token);
  }
  step.Run();
  const auto shares = SharesOfRanks(step, "d_gate_ED");
  Values held(shares[0].size(), 0.0);
  held = Sum(held, shares[0], 12.0 / 18.0);  // 24 tokens on 2 ranks are 12 each
  held = Sum(held, shares[1], 12.0 / 6.0);
  Hold(step, "d_gate_ED", {held, held});
  const Finding finding = step.FindingOf("d_gate_ED");
  EXPECT_EQ(finding.explanation.cause, Cause::kLocalNormaliser) << TextOf(finding);
}

TEST(Diagnose, NamesWhatIsInAnotherOrder) {
  Step step("dp2.ep2", RoomyModel());
  step.Run();
  const auto roll = [](std::size_t by) {
    return [by](std::int64_t, Values& local) {
      std::rotate(local.begin(), local.begin() + static_cast<std::ptrdiff_t>(by), local.end());
    };
  };
  step.Tamper("d_w1_EFD", roll(6 * 8));  // an expert, of 3
  step.Tamper("d_x_TD", roll(8));        // a token, of 12
  step.Tamper("d_w3_EFD", [](std::int64_t, Values& local) {
    for (std::size_t expert = 0; expert < 3; ++expert) {  // a hidden unit, of 6
      const auto first = local.begin() + static_cast<std::ptrdiff_t>(expert * 48);
      std::rotate(first, first + 8, first + 48);
    }
  });
  EXPECT_EQ(step.FindingOf("d_w1_EFD").explanation.permuted, "experts");
  EXPECT_EQ(step.FindingOf("d_x_TD").explanation.permuted, "tokens");
  EXPECT_EQ(step.FindingOf("d_w3_EFD").explanation.permuted, "hidden units");
  EXPECT_EQ(Told(step.FindingOf("d_w3_EFD")),
            "fail: permuted [] hidden units are in another order");
}

TEST(Diagnose, NamesTheShardOfAnotherRank) {
  Step step("dp2.ep2", RoomyModel());
  step.Run();
  const Values whole = step.whole["d_w2_EDF"];
  const auto half = static_cast<std::ptrdiff_t>(whole.size() / 2);
  step.Tamper("d_w2_EDF", [=](std::int64_t rank, Values& local) {
    const auto first = whole.begin() + (rank == 0 ? half : 0);
    local.assign(first, first + half);
  });
  EXPECT_EQ(Told(step.FindingOf("d_w2_EDF")),
            "fail: misplaced_shard [ep] ranks hold one another's shard along ep");
}

TEST(Diagnose, NamesTheReplicaThatStayedBehind) {
  Step step("dp4", RoomyModel());
  step.Run().Tamper("d_gate_ED", [](std::int64_t rank, Values& local) {
    for (std::size_t i = 0; rank == 2 && i < local.size(); ++i) {
      local[i] = std::cos(static_cast<double>(i));
    }
  });
  const Finding finding = step.FindingOf("d_gate_ED");
  EXPECT_EQ(finding.explanation.cause, Cause::kStaleReplica) << TextOf(finding);
  EXPECT_EQ(finding.ranks, Ranks{2});
}

TEST(Diagnose, NamesASumThatOneRankWasLeftOutOf) {
  Step step("dp2.tp3.ep2.etp1", RoomyModel());
  step.Run();
  const auto shares = SharesOfRanks(step, "d_gate_ED");
  step.Tamper("d_gate_ED", [=](std::int64_t rank, Values& local) {
    local = rank == 1 ? Sum(shares[1], shares[4]) : local;
  });
  EXPECT_EQ(Told(step.FindingOf("d_gate_ED")),
            "fail: missing_sum [tp] missing sum over tp, on rank 1 alone");
}

TEST(Diagnose, TellsRoundingFromAWrongValue) {
  Step step("dp2", RoomyModel());
  step.Run().Tamper("d_w1_EFD", [](std::int64_t, Values& local) {
    for (double& value : local) {
      value = static_cast<double>(static_cast<float>(value));
    }
  });
  const Finding finding = step.FindingOf("d_w1_EFD");
  EXPECT_EQ(finding.explanation.cause, Cause::kPrecision) << TextOf(finding);
}

// What is added has the size of float32's rounding, and nothing else of it.
TEST(Diagnose, TakesNoFaultOfOneTensorForCoarserArithmetic) {
  Step step("dp2", RoomyModel());
  step.Run();
  const Values other = step.whole["d_w3_EFD"];
  step.Tamper("d_w1_EFD", [=](std::int64_t, Values& local) { local = Sum(local, other, 2e-8); });
  EXPECT_EQ(step.FindingOf("d_w1_EFD").explanation.cause, Cause::kUnexplained);
}

TEST(Diagnose, DoesNotSayThatEverybodysShareIsMissing) {
  Step step("dp2.tp3.ep2.etp1", RoomyModel());
  step.Run().Tamper("d_gate_ED", [](std::int64_t rank, Values& local) {
    if (rank == 2) {
      std::fill(local.begin(), local.end(), 0.0);
    }
  });
  const Finding finding = step.FindingOf("d_gate_ED");
  EXPECT_EQ(finding.explanation.cause, Cause::kStaleReplica) << TextOf(finding);
  EXPECT_EQ(finding.ranks, Ranks{2});
}

TEST(Diagnose, SaysAFactorNearOneWithItsDigitsAndWithoutSizes) {
  Step step("dp2", RoomyModel());
  step.Run().Scale("d_w1_EFD", 1.0 + 1e-7);
  EXPECT_EQ(TextOf(step.FindingOf("d_w1_EFD")), "wrong scale: (1 + 1.00e-07) times the reference");
}

TEST(Diagnose, NamesTheOptionThatIsAnotherInTheStep) {
  Step step("dp2.ep2", RoomyModel());
  step.manifest.model.score_placement = ScorePlacement::kBeforeExperts;
  step.Run();
  step.manifest.model.score_placement = ScorePlacement::kAfterExperts;
  for (const char* name : {"y_TD", "d_x_TD", "d_gate_ED", "d_w1_EFD"}) {
    const Finding finding = step.FindingOf(name);
    EXPECT_EQ(Told(finding),
              "fail: wrong_formula [] wrong formula: as if score_placement were before_experts")
        << name;
    EXPECT_EQ(finding.explanation.option, "score_placement");
  }
}

TEST(Diagnose, CountsHaveSharesToo) {
  Step step("dp4", RoomyModel());
  step.Run();
  step.manifest.tensors["tokens_per_expert_E"].placements = {{Axis::kDpShard, Partial()}};
  const reference::Routing routing = step.Routing();
  step.Tamper("tokens_per_expert_E", [=](std::int64_t rank, Values& local) {
    std::fill(local.begin(), local.end(), 0.0);
    for (Eigen::Index token = 6 * rank; rank != 3 && token < 6 * rank + 6; ++token) {
      for (Eigen::Index slot = 0; slot < 2; ++slot) {
        local[static_cast<std::size_t>(routing.topk_expert_TK(token, slot))] += 1.0;
      }
    }
  });
  const Finding finding = step.FindingOf("tokens_per_expert_E");
  EXPECT_EQ(finding.explanation.cause, Cause::kDroppedContribution) << TextOf(finding);
  EXPECT_EQ(finding.explanation.sources, Ranks{3});
}

// Two numbers cannot tell four shares apart.
TEST(Diagnose, SaysWhatIsTooSmallToTell) {
  Model model = RoomyModel();
  model.d_model = 1;
  model.experts = 2;
  model.top_k = 1;
  Step step("dp4", model);
  step.Run();
  Hold(step, "d_gate_ED", SharesOfRanks(step, "d_gate_ED"));
  const Finding finding = step.FindingOf("d_gate_ED");
  EXPECT_EQ(finding.verdict, Verdict::kFail);
  EXPECT_EQ(finding.explanation.cause, Cause::kUnexplained);
  EXPECT_EQ(
      TextOf(finding),
      "wrong, but too small to tell why: 2 numbers for the 4 shares of dp_shard; a slice of at "
      "least 4 numbers would do, or a layout with fewer ranks");
}

// A dispatch that lost the rows of one rank: no sum over ranks has just these tokens.
TEST(Diagnose, NamesTheSourceRankWhoseRowsTheExpertsLack) {
  Step step("dp4.ep2.etp1", RoomyModel());
  step.Run();
  const auto lost = ShareOfRank(step, 1);
  for (const char* name : {"d_w1_EFD", "d_w3_EFD", "d_w2_EDF"}) {
    const Values without = Sum(step.whole.at(name), lost.at(name), -1.0);
    Hold(step, name, {without, without, without, without});
  }
  for (const char* name : {"d_w1_EFD", "d_w3_EFD", "d_w2_EDF"}) {
    const Finding finding = step.FindingOf(name);
    EXPECT_EQ(finding.explanation.cause, Cause::kDroppedContribution) << TextOf(finding);
    EXPECT_EQ(finding.explanation.sources, Ranks{1});
  }
}

// ep and edp have two ranks each: doubled over edp and a factor of the size of ep are the same.
TEST(Diagnose, ListsTheFactorThatIsTheSizeOfAnotherAxisToo) {
  Step step("dp4.ep2.etp1", RoomyModel());
  step.Run().Scale("d_w1_EFD", 2.0);
  const Finding finding = step.FindingOf("d_w1_EFD");
  EXPECT_EQ(Told(finding), "fail: double_sum [edp] sum over edp counted twice");
  ASSERT_EQ(finding.candidates.size(), 1U);
  EXPECT_EQ(finding.candidates[0].cause, Cause::kWrongScale);
  EXPECT_TRUE(SaysWhy(finding, "or wrong scale: 2 times the reference, which is the size of "));
  EXPECT_TRUE(SaysWhy(finding, "the size of ep"));
}

TEST(Diagnose, NamesTheAxisOfTheOtherViewThatIsTheSameRanks) {
  Step step("tp2.ep2.etp1", RoomyModel());
  step.Run().LeaveShares("d_gate_ED", {Axis::kTp});
  const Finding finding = step.FindingOf("d_gate_ED");
  EXPECT_EQ(Told(finding), "fail: missing_sum [tp] missing sum over tp");
  EXPECT_EQ(finding.evidence.same_ranks, std::vector<Axis>{Axis::kEp});
  EXPECT_TRUE(SaysWhy(finding, "the ranks of tp are those of your ep"));
}

// Twice the reference, with the call log of the program as a witness.
class CallLogTest : public testing::Test {
 protected:
  Finding Judge(const std::vector<std::string>& more) {
    std::vector<std::string> calls;
    for (const Reduction& owed : graph_.contract().Owed()) {
      calls.push_back(ToText(owed));
    }
    calls.insert(calls.end(), more.begin(), more.end());
    return step_.FindingOf("d_gate_ED", {.graph = &graph_, .calls = {calls, calls}});
  }

  Step step_{"tp2", RoomyModel()};
  const StepGraph graph_{step_.manifest.model, step_.manifest.layout, Program()};
};

TEST_F(CallLogTest, ShowsTheSumThatWasMadeTwice) {
  step_.Run().Scale("d_gate_ED", 2.0);
  const Finding finding = Judge({"d_gate_ED@tp"});
  EXPECT_EQ(Told(finding), "fail: double_sum [tp] sum over tp counted twice");
  EXPECT_TRUE(SaysWhy(finding, "d_gate_ED@tp is once in the contract and 2 times in the call log"));
  EXPECT_TRUE(finding.candidates.empty());
}

TEST_F(CallLogTest, RefutesTheSumThatWasNot) {
  step_.Run().Scale("d_gate_ED", 2.0);
  const Finding finding = Judge({});
  EXPECT_EQ(finding.explanation.cause, Cause::kWrongScale) << TextOf(finding);
  EXPECT_EQ(finding.explanation.factor, 2.0);
}

TEST_F(CallLogTest, ShowsTheMean) {
  step_.Run().Scale("d_gate_ED", 0.5);
  EXPECT_EQ(Judge({"d_gate_ED@tp/2"}).explanation.cause, Cause::kMeanForSum);
  EXPECT_EQ(Judge({}).explanation.cause, Cause::kWrongScale);
}

// No witness, and two axes of one size: nobody can know.
TEST(Diagnose, LeavesATieATie) {
  Step step("dp2.tp2", RoomyModel());
  step.Run().Scale("d_gate_ED", 2.0);
  const Finding finding = step.FindingOf("d_gate_ED");
  EXPECT_EQ(finding.explanation.cause, Cause::kAmbiguous);
  EXPECT_EQ(finding.candidates.size(), 2U) << TextOf(finding);
}

TEST(Diagnose, TellsOneFactorOfTwoTensors) {
  Step step("dp3", RoomyModel());
  step.Run();
  for (const char* name : {"d_w1_EFD", "d_w3_EFD"}) {
    step.Scale(name, 5.0);
  }
  const auto findings = step.Judge().findings;
  for (const Finding& finding : findings) {
    if (finding.verdict == Verdict::kFail) {
      EXPECT_EQ(finding.explanation.cause, Cause::kWrongScale) << TextOf(finding);
      EXPECT_NEAR(*finding.explanation.factor, 5.0, 1e-9);
    }
  }
}

TEST(Diagnose, TakesNoNumberForAsWrongAsCanBe) {
  Step step("dp2", RoomyModel());
  step.Run().Tamper(
      "d_w1_EFD", [](std::int64_t rank, Values& local) { local[3] = rank == 1 ? NAN : local[3]; });
  step.Scale("d_gate_ED", 3.0);
  const Judgement judgement = step.Judge();
  EXPECT_EQ(judgement.verdict, Verdict::kFail);
  EXPECT_EQ(step.FindingOf("d_w1_EFD").explanation.cause, Cause::kCorruption);
  EXPECT_EQ(TextOf(step.FindingOf("d_w1_EFD")), "NaN at [0, 0, 3] on rank 1");
  EXPECT_EQ(step.FindingOf("d_gate_ED").explanation.cause, Cause::kWrongScale);
}

}  // namespace
}  // namespace moe
