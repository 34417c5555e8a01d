#include "harness/explain/sum_causes.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <utility>

#include "harness/base/tensor_table.h"
#include "harness/explain/costs.h"
#include "harness/layout/step_graph.h"
#include "harness/measure/norms.h"

namespace moe {
namespace {

bool Contains(const std::vector<Axis>& axes, Axis axis) {
  return std::find(axes.begin(), axes.end(), axis) != axes.end();
}

std::int64_t RankAt(const Mesh& mesh, const std::vector<std::int64_t>& coordinates) {
  std::int64_t rank = 0;
  for (std::size_t i = 0; i < mesh.axes.size(); ++i) {
    rank = rank * mesh.sizes[i] + coordinates[i];
  }
  return rank;
}

// Some of `count` paths, neither none nor all: every such choice.
std::vector<std::vector<bool>> ProperSubsetsOf(std::size_t count) {
  std::vector<std::vector<bool>> subsets;
  for (std::uint32_t chosen = 1; chosen + 1 < (1U << count); ++chosen) {
    std::vector<bool>& subset = subsets.emplace_back();
    for (std::size_t path = 0; path < count; ++path) {
      subset.push_back((chosen >> path & 1U) != 0);
    }
  }
  return subsets;
}

// Whether the work that the tensor comes of is cut along `dim` on some path.
bool HasTermsAlong(const Suspect& suspect, Dim dim) {
  const auto paths = TensorOf(suspect.name()).paths;
  return std::any_of(paths.begin(), paths.end(), [&](Path path) {
    const auto terms = TermsOf(suspect.name(), path, suspect.manifest().model);
    return std::find(terms.begin(), terms.end(), dim) != terms.end();
  });
}

bool IsOfSlices(Spread spread) {
  return spread == Spread::kEtpSlices || spread == Spread::kUngatheredSlices;
}

// Whether the shares of all ranks are the whole.
bool AddsUpByItself(Spread spread) {
  return spread != Spread::kUngatheredTokens && spread != Spread::kUngatheredOwners &&
         spread != Spread::kUngatheredSlices;
}

// What the one row holds more often than the other.
SumTable::Row Difference(const SumTable::Row& held, const SumTable::Row& right) {
  std::map<std::int64_t, double> times;
  for (const auto& [source, of_source] : held) {
    times[source] += of_source;
  }
  for (const auto& [source, of_source] : right) {
    times[source] -= of_source;
  }
  SumTable::Row difference;
  for (const auto& [source, of_source] : times) {
    if (of_source != 0.0) {
      difference.push_back({source, of_source});
    }
  }
  return difference;
}

}  // namespace

SumCauses::SumCauses(const Suspect& suspect, const StepContract* contract)
    : suspect_(suspect), contract_(contract), paths_(suspect.ledger().PathsOf(suspect.name())) {
  FindPlans();
}

// Spreads whose shares add up to the whole over some axes; of several such sets the one with the
// fewest axes that cut the tensor, since rows of other ranks add nothing, and of these the largest,
// since a sum over an axis that shares do not differ on would have counted them twice. A spread of
// shares that never add up goes with the sums of the first that does.
void SumCauses::FindPlans() {
  const bool has_owners = HasTermsAlong(suspect_, Dim::kE);
  for (const Spread spread : suspect_.ledger().spreads()) {
    if (IsOfSlices(spread)) {
      FindPlanOfSlices(spread);
      continue;
    }
    const bool is_of_owners = spread == Spread::kOwners || spread == Spread::kUngatheredOwners;
    if (is_of_owners && !has_owners) {
      continue;
    }
    if (spread == Spread::kUngatheredTokens || spread == Spread::kUngatheredOwners) {
      if (!plans_.empty()) {
        plans_.push_back({spread, plans_.front().sums});
      }
      continue;
    }
    std::vector<Axis> candidates;
    for (const Axis axis : suspect_.mesh().axes) {
      if (suspect_.mesh().SizeOf(axis) > 1) {
        candidates.push_back(axis);
      }
    }
    if (spread == Spread::kOwners && !Contains(candidates, Axis::kEp)) {
      candidates.push_back(Axis::kEp);
    }
    auto sets = ProductsOf(candidates);
    sets.emplace_back();
    const auto cuts = [&](const std::vector<Axis>& sums) {
      return std::count_if(sums.begin(), sums.end(), [&](Axis axis) { return Cuts(axis); });
    };
    std::stable_sort(sets.begin(), sets.end(), [&](const auto& a, const auto& b) {
      return cuts(a) != cuts(b) ? cuts(a) < cuts(b) : a.size() > b.size();
    });
    const auto set = std::find_if(sets.begin(), sets.end(), [&](const std::vector<Axis>& sums) {
      return AddsUp({spread, sums});
    });
    if (set != sets.end()) {
      plans_.push_back({spread, InOrder(*set)});
    }
  }
}

// The tokens of an etp group lie anywhere on the dense mesh, and other ranks have no share of a
// row: a sum over that whole mesh reaches every slice of it once.
void SumCauses::FindPlanOfSlices(Spread spread) {
  if (PathSubsetsOfEtp(suspect_).empty() || plans_.empty()) {
    return;
  }
  if (spread == Spread::kUngatheredSlices) {
    plans_.push_back({spread, plans_.front().sums});
    return;
  }
  const Plan plan{spread, suspect_.mesh().axes};
  if (AddsUp(plan)) {
    plans_.push_back(plan);
  }
}

// Whether ranks along the axis hold different parts of the tensor for good. Rows are cut along tp
// only by the reduce-scatter that ends their sum.
bool SumCauses::Cuts(Axis axis) const {
  const bool has_rows = TensorOf(suspect_.name()).HasRows();
  return PlacementOn(suspect_.observed().claim().placements, axis).IsShard() &&
         !(has_rows && axis == Axis::kTp);
}

bool SumCauses::AddsUp(const Plan& plan) const {
  constexpr std::size_t kEnough = 8;  // pieces that are not all zero
  const SumTable right = AfterSums(suspect_.manifest().meshes, plan.sums);
  const std::vector<bool> all(paths_.size(), true);
  std::size_t tried = 0;
  for (std::size_t index = 0; index < suspect_.Pieces() && tried < kEnough; ++index) {
    const Piece& piece = suspect_.Load(index);
    const double norm = Norm(piece.want);
    Shares shares{.piece = &piece, .spread = plan.spread};
    const SumTable::Row row = right.RowOf(HolderOf(piece));
    const auto predicted = Predict(shares, plan, row, row, all);
    if (!predicted || Distance(*predicted, piece.want) > 1e-9 * norm) {
      return false;
    }
    tried += norm > 0.0 ? 1 : 0;
  }
  return tried > 0;
}

// The order in which a step makes them: the contract's, else innermost axis first.
std::vector<Axis> SumCauses::InOrder(std::vector<Axis> sums) const {
  std::vector<Axis> order;
  if (const ContractTensor* known = contract_ ? contract_->Find(suspect_.name()) : nullptr) {
    order = known->settled;  // summed inside the step, before the tensor's own sums
    order.insert(order.end(), known->owed.begin(), known->owed.end());
  }
  for (auto axis = suspect_.mesh().axes.rbegin(); axis != suspect_.mesh().axes.rend(); ++axis) {
    order.push_back(*axis);
  }
  // What is claimed to be owed is summed last, by the judge.
  const auto place = [&](Axis axis) {
    const auto kind = PlacementOn(suspect_.observed().claim().placements, axis).kind;
    return std::pair(kind == Placement::Kind::kPartial,
                     std::find(order.begin(), order.end(), axis));
  };
  std::stable_sort(sums.begin(), sums.end(), [&](Axis a, Axis b) { return place(a) < place(b); });
  return sums;
}

std::vector<std::vector<bool>> PathSubsetsOf(const Suspect& suspect, const StepContract* contract) {
  const std::size_t paths = suspect.ledger().PathsOf(suspect.name()).size();
  std::vector<std::vector<bool>> subsets = {std::vector<bool>(paths, true)};
  // A known program that sums nothing inside the step, on the mesh of the rows, has whole sums
  // only.
  const bool only_whole = contract != nullptr &&
                          std::none_of(contract->tensors.begin(), contract->tensors.end(),
                                       [](const ContractTensor& inside) {
                                         return !inside.result && inside.mesh == MeshKind::kDense;
                                       });
  if (suspect.name() != tensor::d_x_TD || only_whole) {
    return subsets;
  }
  for (std::vector<bool>& subset : ProperSubsetsOf(paths)) {
    subsets.push_back(std::move(subset));
  }
  return subsets;
}

std::vector<std::vector<bool>> PathSubsetsOfEtp(const Suspect& suspect) {
  const std::string& name = suspect.name();
  if (!suspect.manifest().layout.IsFolded() || !HasTermsAlong(suspect, Dim::kF)) {
    return {};
  }
  const std::vector<std::string> paths = suspect.ledger().PathsOf(name);
  std::vector<std::vector<bool>> subsets = {std::vector<bool>(paths.size(), true)};
  for (std::vector<bool>& subset : ProperSubsetsOf(paths.size())) {
    subsets.push_back(std::move(subset));
  }
  std::erase_if(subsets, [&](const std::vector<bool>& subset) {
    const auto shared = std::find(paths.begin(), paths.end(), ToText(Path::kShared));
    return shared != paths.end() && subset[static_cast<std::size_t>(shared - paths.begin())];
  });
  return subsets;
}

// Those that one sum can reach: a known program that has summed the parts of d_x before they meet
// has no sum of all of them, unless there are only those that meet at the experts' input.
std::vector<std::vector<bool>> SumCauses::SumSubsets(Spread spread) const {
  if (IsOfSlices(spread)) {
    return PathSubsetsOfEtp(suspect_);
  }
  auto subsets = PathSubsetsOf(suspect_, contract_);
  const ContractTensor* d_x = contract_ ? contract_->Find(tensor::d_x_TD) : nullptr;
  const bool has_shared = suspect_.manifest().model.d_shared > 0;
  if (suspect_.name() == tensor::d_x_TD && d_x != nullptr && !d_x->settled.empty() && has_shared) {
    subsets.erase(subsets.begin());
  }
  return subsets;
}

std::string PathText(const std::vector<std::string>& paths, const std::vector<bool>& affected) {
  std::vector<std::string> names;
  for (std::size_t path = 0; path < paths.size(); ++path) {
    if (affected[path]) {
      names.push_back(paths[path]);
    }
  }
  return names.size() == paths.size() ? "" : fmt::format("{}", fmt::join(names, " and "));
}

// The rank of whose slice of the global tensor a sum finds rank `source`'s part of what ends up at
// the holder's places: sums add up what lies at the same local place. Along axes that cut the
// tensor that is the source's own slice; along a summed one, whose result is cut afterwards, the
// holder's.
std::int64_t SumCauses::SliceRankOf(const Plan& plan, std::int64_t holder,
                                    std::int64_t source) const {
  const Mesh& mesh = suspect_.mesh();
  std::vector<std::int64_t> coordinates;
  for (const Axis axis : mesh.axes) {
    const bool is_cut = PlacementOn(suspect_.observed().claim().placements, axis).IsShard();
    coordinates.push_back(
        mesh.Coordinate(is_cut && !Contains(plan.sums, axis) ? source : holder, axis));
  }
  return RankAt(mesh, coordinates);
}

const std::vector<double>* SumCauses::ShareOf(Shares& shares, const Plan& plan, std::size_t path,
                                              std::int64_t source) const {
  if (shares.of.empty()) {
    const auto world = static_cast<std::size_t>(suspect_.manifest().WorldSize());
    shares.of.assign(paths_.size(), std::vector<std::optional<std::vector<double>>>(world));
  }
  auto& share = shares.of[path][static_cast<std::size_t>(source)];
  if (!share) {
    const std::int64_t holder = HolderOf(*shares.piece);
    const std::int64_t rank = SliceRankOf(plan, holder, source);
    const auto places =
        rank == holder ? shares.piece->slice : suspect_.PlacesOn(*shares.piece, rank);
    share = places ? suspect_.ledger().Share(shares.spread, suspect_.name(), paths_[path], source,
                                             *places)
                   : std::vector<double>();
  }
  return share->empty() ? nullptr : &*share;
}

// A holder of several ranks has the judge's sum over a P axis behind it: one of the sums.
std::int64_t SumCauses::HolderOf(const Piece& piece) const {
  return suspect_.observed().holders()[piece.holder].ranks.front();
}

// Shares of many ranks are added up in the ledger: one by one they would neither fit nor be asked
// for again.
bool SumCauses::AddShares(Shares& shares, const Plan& plan, std::size_t path,
                          const SumTable::Row& held, std::vector<double>& values) const {
  constexpr std::size_t kMostKept = 64;
  const auto add = [&](const std::vector<double>& part, double times) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] += times * part[i];
    }
  };
  if (held.size() <= kMostKept) {
    for (const auto& [source, times] : held) {
      const std::vector<double>* share = ShareOf(shares, plan, path, source);
      if (share == nullptr) {
        return false;
      }
      add(*share, times);
    }
    return true;
  }
  const std::int64_t holder = HolderOf(*shares.piece);
  std::map<std::int64_t, SumTable::Row> by_slice;
  for (const SumTable::Held& one : held) {
    by_slice[SliceRankOf(plan, holder, one.source)].push_back(one);
  }
  for (const auto& [rank, row] : by_slice) {
    const auto places =
        rank == holder ? shares.piece->slice : suspect_.PlacesOn(*shares.piece, rank);
    if (!places) {
      return false;
    }
    add(suspect_.ledger().Shares(shares.spread, suspect_.name(), paths_[path], row, *places), 1.0);
  }
  return true;
}

std::optional<std::vector<double>> SumCauses::Predict(Shares& shares, const Plan& plan,
                                                      const SumTable::Row& held,
                                                      const SumTable::Row& right,
                                                      const std::vector<bool>& affected,
                                                      std::vector<bool>* changed) const {
  std::vector<double> values(shares.piece->got.size(), 0.0);
  for (std::size_t path = 0; path < paths_.size(); ++path) {
    if (!AddShares(shares, plan, path, affected[path] ? held : right, values)) {
      return std::nullopt;
    }
    if (changed != nullptr && affected[path] && !(*changed)[path]) {
      std::vector<double> more(values.size(), 0.0);
      (*changed)[path] =
          AddShares(shares, plan, path, Difference(held, right), more) && Norm(more) > 0.0;
    }
  }
  return values;
}

// Each axis is a choice, and each after the first a longer story; so are an axis of the other view,
// and other axes instead of the right ones. A rank is a choice among ranks.
double SumCauses::CostOf(const Plan& plan, const Explanation& explanation) const {
  const bool is_of_etp = IsOfSlices(plan.spread);
  double cost = 0.0;
  for (const Axis axis : explanation.axes) {
    cost += kAxisCost;
    const bool is_own = suspect_.mesh().Has(axis) || (is_of_etp && axis == Axis::kEtp);
    cost += is_own ? 0.0 : kOtherViewCost;
  }
  cost += kLongerCost * static_cast<double>(std::max<std::size_t>(1, explanation.axes.size()) - 1);
  if (!explanation.used.empty()) {
    cost += kRareCost + kLongerCost + kAxisCost;
  }
  if (!explanation.sources.empty()) {
    cost += ChoiceCost(static_cast<std::size_t>(suspect_.manifest().WorldSize()));
  }
  // Of shares that do not add up nothing says that the tensor was made of them.
  return cost + (AddsUpByItself(plan.spread) ? 0.0 : kRareCost) +
         (explanation.path.empty() ? 0.0 : kLongerCost);
}

std::vector<Fit> SumCauses::Try(const Plan& plan, const std::vector<SumHypothesis>& hypotheses,
                                const SumTable& right) const {
  // Of shares that do not add up, the paths that are right hold what the reference says.
  const bool adds_up = plan.spread != Spread::kUngatheredSlices;
  const auto shares = std::make_shared<Shares>();  // of the piece that is being looked at
  std::vector<Hypothesis> list;
  const auto subsets = SumSubsets(plan.spread);
  for (const std::vector<bool>& affected : subsets) {
    for (const SumHypothesis& hypothesis : hypotheses) {
      Explanation explanation = hypothesis.explanation;
      explanation.path = PathText(paths_, affected);
      const bool may_be_partial = explanation.cause == Cause::kMissingSum;
      Hypothesis one{.explanation = std::move(explanation), .spread = plan.spread};
      one.cost = CostOf(plan, one.explanation);
      one.reach = may_be_partial ? Hypothesis::Reach::kEither : Hypothesis::Reach::kAll;
      // Of paths that may be hit alone, those are named on which it shows.
      const bool must_change = AddsUpByItself(plan.spread) && subsets.size() > 1;
      const auto changed = std::make_shared<std::vector<bool>>(affected.size(), false);
      one.finish = [changed, affected, must_change](Fit&) {
        return !must_change || *changed == affected;
      };
      one.predict = [&, affected, table = &hypothesis.table, shares, changed, must_change,
                     path = one.explanation.path](const Piece& piece, Prediction& prediction) {
        if (shares->piece == nullptr || shares->index != piece.index) {
          *shares = {.piece = &piece, .index = piece.index, .spread = plan.spread};
        }
        const std::int64_t holder = HolderOf(piece);
        auto predicted = Predict(*shares, plan, table->RowOf(holder),
                                 adds_up ? right.RowOf(holder) : SumTable::Row(), affected,
                                 must_change ? changed.get() : nullptr);
        if (!predicted) {
          return false;
        }
        prediction.values = std::move(*predicted);
        if (!adds_up) {
          const auto rest = RestOf(piece, path);
          std::transform(rest.begin(), rest.end(), prediction.values.begin(),
                         prediction.values.begin(), std::plus<>());
        }
        return true;
      };
      list.push_back(std::move(one));
    }
  }
  return Test(suspect_, std::move(list));
}

std::vector<Fit> SumCauses::Find() {
  std::vector<Fit> fits;
  const auto add = [&](std::vector<Fit> more) {
    std::move(more.begin(), more.end(), std::back_inserter(fits));
  };
  const bool is_alone = IsExpertWeight(suspect_.name()) && suspect_.mesh().SizeOf(Axis::kEdp) == 1;
  for (const Plan& plan : plans_) {
    const Meshes& meshes = suspect_.manifest().meshes;
    const SumTable right = AfterSums(meshes, plan.sums);
    switch (plan.spread) {
      case Spread::kSources:
        break;  // of value_causes.h
      case Spread::kEtpSlices:
        add(Try(plan, RankHypothesesOf(right, Axis::kEtp), right));
        break;
      case Spread::kUngatheredSlices: {
        std::vector<Fit> more =
            Try(plan, {{{.cause = Cause::kMissingSum, .axes = {Axis::kEtp}}, right}}, right);
        for (Fit& fit : more) {
          fit.spread = Spread::kEtpSlices;  // of which each rank holds its own
        }
        add(std::move(more));
        break;
      }
      case Spread::kUngatheredTokens:
        add(Try(plan, {{{.cause = Cause::kMissingSum, .axes = {Axis::kTp}}, right}}, right));
        break;
      case Spread::kUngatheredOwners:
        add(Try(plan, {{{.cause = Cause::kMissingSum, .axes = {Axis::kEp}}, right}}, right));
        break;
      case Spread::kTokens:
      case Spread::kFlatTokens:
      case Spread::kHiddenUnits:
      case Spread::kOwners: {
        const SumQuestion question{
            .meshes = &meshes,
            .own = suspect_.observed().claim().mesh,
            .sums = plan.sums,
            .order_is_known = contract_ != nullptr,
            .judged = suspect_.observed().PartialAxes(),
            .alone = is_alone ? std::vector{Axis::kEdp} : std::vector<Axis>()};
        add(Try(plan, SumHypothesesOf(question), right));
        break;
      }
    }
  }
  return fits;
}

std::vector<bool> SumCauses::AffectedBy(const std::string& path) const {
  for (const auto& subsets : {PathSubsetsOf(suspect_, nullptr), PathSubsetsOfEtp(suspect_)}) {
    for (const auto& subset : subsets) {
      if (PathText(paths_, subset) == path) {
        return subset;
      }
    }
  }
  return std::vector<bool>(paths_.size(), true);
}

std::vector<std::vector<double>> SumCauses::SharesAlong(const Piece& piece, const Plan& plan,
                                                        const std::vector<Axis>& axes,
                                                        const std::string& path) const {
  const Meshes& meshes = suspect_.manifest().meshes;
  std::vector<Axis> sums = plan.sums;
  for (const Axis axis : axes) {
    if (!Contains(sums, axis)) {
      sums.push_back(axis);
    }
  }
  const std::int64_t holder = HolderOf(piece);
  const Mesh& mesh = meshes.With(axes.front());
  // The reach, by coordinates along the axes.
  std::map<std::vector<std::int64_t>, SumTable::Row> reach;
  const auto coordinates = [&](std::int64_t rank) {
    std::vector<std::int64_t> at;
    for (const Axis axis : axes) {
      at.push_back(mesh.Coordinate(rank, axis));
    }
    return at;
  };
  for (const SumTable::Held& held : AfterSums(meshes, sums).Once().RowOf(holder)) {
    reach[coordinates(held.source)].push_back(held);
  }
  std::vector<std::vector<double>> along;
  Shares shares{.piece = &piece, .spread = plan.spread};
  for (const std::int64_t member : mesh.GroupOf(holder, axes)) {
    if (auto values = Predict(shares, plan, reach[coordinates(member)], {}, AffectedBy(path))) {
      along.push_back(std::move(*values));
    }
  }
  return along;
}

std::vector<double> SumCauses::RestOf(const Piece& piece, const std::string& path) const {
  std::vector<double> rest(piece.got.size(), 0.0);
  const std::vector<bool> affected = AffectedBy(path);
  for (std::size_t i = 0; i < paths_.size(); ++i) {
    if (!affected[i]) {
      const auto whole = suspect_.ledger().Whole(suspect_.name(), paths_[i], piece.slice);
      std::transform(rest.begin(), rest.end(), whole.begin(), rest.begin(), std::plus<>());
    }
  }
  return rest;
}

std::vector<SumCauses::Tokens> SumCauses::TokensAlong(const Piece& piece, const Plan& plan,
                                                      const std::vector<Axis>& axes) const {
  const Meshes& meshes = suspect_.manifest().meshes;
  const Mesh& mesh = meshes.With(axes.front());
  const SumTable::Row right = AfterSums(meshes, plan.sums).RowOf(HolderOf(piece));
  const auto& experts = suspect_.observed().holders()[piece.holder].slice.index[0];
  std::vector<Tokens> counts;
  for (const std::int64_t member : mesh.GroupOf(HolderOf(piece), axes)) {
    std::vector<std::int64_t> sources;
    for (const SumTable::Held& held : right) {
      if (std::all_of(axes.begin(), axes.end(), [&](Axis axis) {
            return mesh.Coordinate(held.source, axis) == mesh.Coordinate(member, axis);
          })) {
        sources.push_back(held.source);
      }
    }
    const auto in_T = suspect_.ledger().TokensOf(plan.spread, suspect_.name(), sources);
    Tokens& count = counts.emplace_back();
    count.tokens = static_cast<double>(std::count(in_T.begin(), in_T.end(), true));
    if (piece.local_expert >= 0) {
      count.rows = suspect_.ledger().SlotsOf(in_T, experts);
      count.slots = suspect_.ledger().SlotsOf(in_T, piece.slice.index[0]);
    }
  }
  return counts;
}

}  // namespace moe
