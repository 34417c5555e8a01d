// Shares of the ledger against the reference, and one another.
#include "harness/explain/ledger.h"

#include <gtest/gtest.h>

#include "harness/measure/norms.h"
#include "harness/measure/problem.h"
#include "harness/step_under_test.h"

namespace moe {
namespace {

Model SharedModel() {
  Model model = SmallModel();
  model.tokens = 24;
  model.d_shared = 6;
  return model;
}

class LedgerOf {
 public:
  explicit LedgerOf(const std::string& layout)
      : step_(layout, SharedModel()),
        problem_(MakeProblem(step_.manifest.model, step_.problem)),
        routing_(step_.Routing()),
        ledger_(step_.manifest, problem_, routing_) {}

  Ledger& operator*() { return ledger_; }
  Slice WholeSlice(const std::string& tensor) const {
    return WholeOf(ShapeOf(tensor, step_.manifest.model));
  }
  std::int64_t ranks() const { return step_.manifest.WorldSize(); }

 private:
  Step step_;
  reference::Problem problem_;
  reference::Routing routing_;
  Ledger ledger_;
};

void ExpectNear(const Values& got, const Values& want, const std::string& what) {
  ASSERT_GT(Norm(want), 0.0) << what;
  EXPECT_LE(Distance(got, want), 1e-12 * Norm(want)) << what;
}

// Of the first way to spread the work every rank has another share, whatever the layout.
TEST(Ledger, SharesOfAllRanksAddUpToTheReference) {
  for (const char* layout : {"tp2", "tp2.ep2.etp1", "dp2.tp2.ep2.etp2", "dp2.tp3.ep2.etp1"}) {
    LedgerOf ledger(layout);
    const Spread spread = (*ledger).spreads().front();
    for (const std::string tensor : {"d_gate_ED", "d_x_TD", "y_TD"}) {
      const Slice slice = ledger.WholeSlice(tensor);
      for (const std::string& path : (*ledger).PathsOf(tensor)) {
        SumTable::Row all;
        for (std::int64_t rank = 0; rank < ledger.ranks(); ++rank) {
          all.push_back({rank, 1.0});
        }
        ExpectNear((*ledger).Shares(spread, tensor, path, all, slice),
                   (*ledger).Whole(tensor, path, slice),
                   fmt::format("{} {} on {}", tensor, path, layout));
      }
    }
  }
}

TEST(Ledger, AddsUpManySharesAsOneByOne) {
  LedgerOf ledger("dp2.tp2.ep2.etp1");
  const SumTable::Row some = {{0, 1.0}, {1, 2.0}, {3, 1.0}};
  for (const Spread spread : (*ledger).spreads()) {
    for (const std::string tensor : {"d_gate_ED", "d_x_TD", "d_w2_EDF", "d_shared_w1_FD"}) {
      const Slice slice = ledger.WholeSlice(tensor);
      for (const std::string& path : (*ledger).PathsOf(tensor)) {
        Values sum(static_cast<std::size_t>(NumElements(slice.LocalShape())), 0.0);
        for (const auto& [source, times] : some) {
          const Values share = (*ledger).Share(spread, tensor, path, source, slice);
          for (std::size_t i = 0; i < sum.size(); ++i) {
            sum[i] += times * share[i];
          }
        }
        ExpectNear((*ledger).Shares(spread, tensor, path, some, slice), sum,
                   fmt::format("{} {}", tensor, path));
      }
    }
  }
}

TEST(Ledger, KnowsResultsAndCountsAndNoOtherTensor) {
  LedgerOf ledger("tp2");
  EXPECT_TRUE((*ledger).Knows("d_shared_w1_FD"));
  EXPECT_TRUE((*ledger).Knows("tokens_per_expert_E"));
  EXPECT_FALSE((*ledger).Knows("d_gate_bias_E"));
  EXPECT_FALSE((*ledger).Knows("x_TD"));
}

// One token a rank: what the gate of a rank lacks is what the other ranks of its tp group had.
TEST(Ledger, IsAskedOfAThousandRanks) {
  Model model = SmallModel();
  model.tokens = 1024;
  Step step("dp128.tp8.ep4.etp1", model);
  step.Drop("d_w1_EFD").Drop("d_w3_EFD").Drop("d_w2_EDF");
  step.manifest.not_dumped = {"d_w1_EFD", "d_w3_EFD", "d_w2_EDF"};
  step.Run();
  const reference::Problem problem = MakeProblem(model, step.problem);
  const reference::Routing routing = step.Routing();
  Ledger ledger(step.manifest, problem, routing);
  const Slice slice = WholeOf(ShapeOf("d_gate_ED", model));
  std::vector<Values> held;  // by coordinate on tp
  for (std::int64_t tp = 0; tp < 8; ++tp) {
    SumTable::Row of_tp;
    for (std::int64_t dp = 0; dp < 128; ++dp) {
      of_tp.push_back({dp * 8 + tp, 1.0});
    }
    held.push_back(ledger.Shares(Spread::kTokens, "d_gate_ED", "", of_tp, slice));
  }
  step.Tamper("d_gate_ED", [&](std::int64_t rank, Values& local) {
    local = held[static_cast<std::size_t>(rank % 8)];
  });
  EXPECT_EQ(Told(step.FindingOf("d_gate_ED")), "fail: missing_sum [tp] missing sum over tp");
}

}  // namespace
}  // namespace moe
