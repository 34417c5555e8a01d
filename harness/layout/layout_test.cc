#include "harness/layout/layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "harness/base/error.h"

namespace moe {
namespace {

using Ranks = std::vector<std::int64_t>;

std::string ComplaintOf(std::string_view text) {
  try {
    ParseLayout(text, "here");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Layout, PrintsWhatDesignSays) {
  EXPECT_EQ(ToText(Layout{}), "dp1");
  EXPECT_EQ(ToText(Layout{.dp_shard = 2, .tp = 2, .ep = 4}), "dp2.tp2.ep4.etp1");
  EXPECT_EQ(ToText(Layout{.tp = 2, .etp = 2}), "tp2");  // the default of tp alone
  EXPECT_EQ(ToText(Layout{.tp = 2, .etp = 1}), "tp2.etp1");
  EXPECT_EQ(ToText(Layout{.dp_shard = 2, .ep = 2}), "dp2.ep2");
  EXPECT_EQ(ToText(Layout{.dp_shard = 2, .etp = 2}), "dp2.tp1.etp2");
  EXPECT_EQ(ToText(Layout{.tp = 4, .ep = 2, .etp = 2}), "tp4.ep2.etp2");
  EXPECT_EQ(ToText(Layout{.dp_replicate = 2, .dp_shard = 3, .cp = 2}), "dpr2.dp3.cp2");
  EXPECT_EQ(ToText(Layout{.tp = 2, .etp = 2, .sp = false, .local_batch = 2}), "tp2.sp0.lb2");
}

TEST(Layout, ReadsWhatItPrints) {
  for (const char* text :
       {"dp1", "dp2", "dpr2.dp2.cp2.tp2.ep4.etp2", "tp2", "tp2.etp1", "dp2.tp1.etp2",
        "dp4.tp1.ep2.etp2", "tp4.ep2.etp2", "dp2.tp2.ep4.etp1", "dp2.tp3.ep2.etp1.sp0.lb2"}) {
    EXPECT_EQ(ToText(ParseLayout(text, "here")), text);
  }
}

TEST(Layout, ReadsOtherSpellingsOfTheSame) {
  EXPECT_EQ(ToText(ParseLayout("dp2.etp2", "here")), "dp2.tp1.etp2");
  EXPECT_EQ(ToText(ParseLayout("ep2.etp1.tp2.dp1.sp1.lb1", "here")), "tp2.ep2.etp1");
}

TEST(Layout, TakesEtpFromTpOnlyWithoutExpertParallelism) {
  EXPECT_EQ(ParseLayout("tp2", "here").etp, 2);
  EXPECT_EQ(ParseLayout("tp2.ep2", "here").etp, 1);
}

TEST(Layout, RefusesWhatIsNoLayout) {
  for (const char* text : {"", ".", "tp", "2", "tp2.", ".tp2", "tp2..ep2", "tpx2", "tp2x", "tp-2",
                           "tp 2", "tp2,ep2", "TP2", "edp2", "tp99999999999999999999"}) {
    EXPECT_EQ(ComplaintOf(text).substr(0, 6), "here: ") << text;
  }
}

TEST(Layout, NamesWhatIsWrongWithASize) {
  EXPECT_EQ(ComplaintOf("tp2.tp2"), "here: layout \"tp2.tp2\" gives tp twice");
  EXPECT_EQ(ComplaintOf("tp0"), "here: layout \"tp0\": tp is 0; use 1 to 4096");
  EXPECT_EQ(ComplaintOf("tp4097"), "here: layout \"tp4097\": tp is 4097; use 1 to 4096");
  EXPECT_EQ(ComplaintOf("tp2.sp2"), "here: layout \"tp2.sp2\": sp is 2; use sp0 (off) or sp1 (on)");
  EXPECT_EQ(ComplaintOf("dp64.tp64"), "");
  EXPECT_EQ(ComplaintOf("dp64.tp65"), "here: layout \"dp64.tp65\" has more than 4096 ranks");
}

TEST(Layout, FillsItsWorldWithExperts) {
  EXPECT_EQ(
      ComplaintOf("dp3.ep2"),
      "here: layout \"dp3.ep2\" does not fill its world: ep 2 times etp 1 does not divide the "
      "3 ranks of dp * cp * tp");
  EXPECT_NE(ComplaintOf("tp1.etp2"), "");  // one rank
}

constexpr Model kModel = {.tokens = 24, .d_model = 8, .d_expert = 48, .experts = 8, .top_k = 2};

TEST(FindMisfit, NamesTheSizesThatWouldDo) {
  EXPECT_EQ(FindMisfit(kModel, ParseLayout("dp5.tp1.etp5", "here")),
            "etp 5 does not divide d_expert 48; use 1, 2, 3, 4 or 6");
  EXPECT_EQ(FindMisfit(kModel, ParseLayout("dp3.ep3", "here")),
            "ep 3 does not divide experts 8; use 1, 2 or 4");
  EXPECT_EQ(FindMisfit(kModel, ParseLayout("dp4.lb2.etp1", "here")), "");
}

TEST(FindMisfit, SharesOutTokensEvenly) {
  EXPECT_EQ(FindMisfit(kModel, ParseLayout("dp5", "here")),
            "dp * lb 5 does not divide tokens 24; use 1, 2, 3, 4 or 6");
  EXPECT_EQ(FindMisfit(kModel, ParseLayout("dp8.cp2", "here")),
            "dp * lb * cp * tp 16 does not divide tokens 24; use 1, 2, 3, 4, 6, 8, 12 or 24");
}

TEST(FindMisfit, CutsSharedExpertsOverTp) {
  Model model = kModel;
  model.d_shared = 7;
  EXPECT_EQ(FindMisfit(model, ParseLayout("tp2.etp1", "here")),
            "tp 2 does not divide d_shared 7; use 1 or 7");
}

// The groups that every rank is in along `axis`, each once.
std::vector<Ranks> GroupsOf(const Mesh& mesh, Axis axis) {
  std::vector<Ranks> groups;
  for (std::int64_t rank = 0; rank < mesh.WorldSize(); ++rank) {
    const Ranks group = mesh.GroupOf(rank, {axis});
    EXPECT_NE(std::find(group.begin(), group.end(), rank), group.end());
    if (std::find(groups.begin(), groups.end(), group) == groups.end()) {
      groups.push_back(group);
    }
  }
  return groups;
}

// torchtitan parallel_dims.py on a world of dp 2, tp 2.
TEST(Mesh, FormsTheGroupsOfTorchtitan) {
  const Meshes etp1 = MakeMeshes(ParseLayout("dp2.tp2.ep2.etp1", "here"));
  EXPECT_EQ(GroupsOf(etp1.dense, Axis::kTp), (std::vector<Ranks>{{0, 1}, {2, 3}}));
  EXPECT_EQ(GroupsOf(etp1.dense, Axis::kDpShard), (std::vector<Ranks>{{0, 2}, {1, 3}}));
  EXPECT_EQ(GroupsOf(etp1.expert, Axis::kEp), (std::vector<Ranks>{{0, 1}, {2, 3}}));
  EXPECT_EQ(GroupsOf(etp1.expert, Axis::kEdp), (std::vector<Ranks>{{0, 2}, {1, 3}}));

  const Meshes ep4 = MakeMeshes(ParseLayout("dp2.tp2.ep4.etp1", "here"));
  EXPECT_EQ(GroupsOf(ep4.expert, Axis::kEp), (std::vector<Ranks>{{0, 1, 2, 3}}));
  EXPECT_EQ(GroupsOf(ep4.expert, Axis::kEdp), (std::vector<Ranks>{{0}, {1}, {2}, {3}}));

  const Meshes etp2 = MakeMeshes(ParseLayout("dp2.tp2.ep2.etp2", "here"));
  EXPECT_EQ(GroupsOf(etp2.expert, Axis::kEp), (std::vector<Ranks>{{0, 2}, {1, 3}}));
  EXPECT_EQ(GroupsOf(etp2.expert, Axis::kEtp), (std::vector<Ranks>{{0, 1}, {2, 3}}));
}

TEST(Mesh, GroupsOverAProductOfAxes) {
  const Mesh dense = MakeMeshes(ParseLayout("dpr2.dp2.tp3", "here")).dense;
  EXPECT_EQ(dense.GroupOf(4, {Axis::kDpReplicate, Axis::kDpShard}), (Ranks{1, 4, 7, 10}));
}

TEST(Mesh, TreatsAMissingAxisAsOneOfSizeOne) {
  const Mesh dense = MakeMeshes(ParseLayout("tp2", "here")).dense;
  EXPECT_EQ(dense.SizeOf(Axis::kEp), 1);
  EXPECT_EQ(dense.Coordinate(1, Axis::kEp), 0);
  EXPECT_EQ(dense.GroupOf(1, {Axis::kEp}), (Ranks{1}));
}

TEST(TokensOf, TakesAChunkOfEverySequence) {
  // 2 data-parallel ranks with 2 sequences of 6 tokens each; cp halves a sequence, tp cuts that
  // in 3.
  const Layout layout = ParseLayout("dp2.cp2.tp3.lb2", "here");
  EXPECT_EQ(TokensOf(kModel, layout, 0, true), (Ranks{0, 6}));
  EXPECT_EQ(TokensOf(kModel, layout, 4, true), (Ranks{4, 10}));  // dp 0, cp 1, tp 1
  EXPECT_EQ(TokensOf(kModel, layout, 11, true), (Ranks{17, 23}));
  EXPECT_EQ(TokensOf(kModel, layout, 4, false), (Ranks{3, 4, 5, 9, 10, 11}));
}

TEST(TokensOf, GivesEveryTokenToExactlyOneShare) {
  Ranks all(static_cast<std::size_t>(kModel.tokens));
  std::iota(all.begin(), all.end(), 0);
  for (const char* text : {"dp1", "tp3.lb4", "dp2.cp2.tp3.lb2", "dpr2.dp3.cp2.tp2", "dp12.lb2"}) {
    for (const bool split : {true, false}) {
      const Layout layout = ParseLayout(text, "here");
      Ranks held;
      for (std::int64_t rank = 0; rank < layout.WorldSize(); rank += split ? 1 : layout.tp) {
        const Ranks tokens = TokensOf(kModel, layout, rank, split);
        held.insert(held.end(), tokens.begin(), tokens.end());
      }
      std::sort(held.begin(), held.end());
      EXPECT_EQ(held, all) << text << (split ? " split" : " whole");
    }
  }
}

}  // namespace
}  // namespace moe
