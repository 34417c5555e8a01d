#include "harness/explain/share_fit.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <utility>

#include "harness/explain/costs.h"
#include "harness/measure/norms.h"

namespace moe {
namespace {

// Of the other mesh's axes a rank has no coordinate here.
std::vector<Coordinate> PlaceOf(const Mesh& mesh, std::int64_t rank,
                                const std::vector<Axis>& axes) {
  std::vector<Coordinate> place;
  for (const Axis axis : axes) {
    if (mesh.Has(axis)) {
      place.push_back({axis, mesh.Coordinate(rank, axis)});
    }
  }
  return place;
}

ShareKind KindOf(Spread spread) {
  switch (spread) {
    case Spread::kHiddenUnits:
    case Spread::kEtpSlices:
    case Spread::kUngatheredSlices:
      return ShareKind::kHiddenUnits;
    case Spread::kOwners:
    case Spread::kUngatheredOwners:
      return ShareKind::kExperts;
    case Spread::kTokens:
    case Spread::kFlatTokens:
    case Spread::kUngatheredTokens:
    case Spread::kSources:
      return ShareKind::kTokens;
  }
  return ShareKind::kTokens;
}

}  // namespace

std::optional<TooSmall> TooFewElements(const Piece& piece) {
  const auto telling = std::count_if(piece.want.begin(), piece.want.end(),
                                     [](double value) { return value != 0.0; });
  if (telling >= 2) {
    return std::nullopt;
  }
  return TooSmall{
      .kind = TooSmall::Kind::kOneNumber, .numbers = telling, .of = std::ssize(piece.want)};
}

ShareFit FitShares(const SumCauses& sums, const Suspect& suspect, const Piece& piece,
                   const SumCauses::Plan& plan, const std::vector<Axis>& axes,
                   const std::string& path) {
  const std::int64_t rank = suspect.observed().holders()[piece.holder].ranks.front();
  const auto group = suspect.manifest().meshes.With(axes.front()).GroupOf(rank, axes);
  const auto shares = sums.SharesAlong(piece, plan, axes, path);
  ShareFit fit;
  if (shares.size() != group.size()) {
    return fit;  // some cannot be known
  }
  const auto elements = static_cast<Eigen::Index>(piece.got.size());
  const auto count = static_cast<Eigen::Index>(shares.size());
  if (elements < count) {
    fit.obstacle = {
        .kind = TooSmall::Kind::kFewNumbers, .numbers = elements, .of = count, .axes = axes};
    return fit;
  }
  Eigen::MatrixXd design(elements, count);
  for (Eigen::Index share = 0; share < count; ++share) {
    design.col(share) =
        Eigen::Map<const Eigen::VectorXd>(shares[static_cast<std::size_t>(share)].data(), elements);
  }
  const std::vector<double> rest = sums.RestOf(piece, path);
  const Eigen::VectorXd got = Eigen::Map<const Eigen::VectorXd>(piece.got.data(), elements) -
                              Eigen::Map<const Eigen::VectorXd>(rest.data(), elements);
  // A rank without a token of its own has no share in this slice, and is asked for nothing.
  std::vector<Eigen::Index> kept;
  for (Eigen::Index share = 0; share < count; ++share) {
    if (design.col(share).norm() > 0.0) {
      kept.push_back(share);
    }
  }
  if (!kept.empty()) {
    const Eigen::MatrixXd some = design(Eigen::all, kept);
    const Eigen::VectorXd singular = some.jacobiSvd().singularValues();
    fit.condition = singular(0) / singular(singular.size() - 1);
  }
  if (kept.empty() || !(fit.condition <= kLargestCondition)) {
    fit.obstacle = {.kind = TooSmall::Kind::kAlikeShares,
                    .of = count,
                    .axes = axes,
                    .condition = fit.condition};
    return fit;
  }
  const Eigen::VectorXd times = Eigen::ColPivHouseholderQR<Eigen::MatrixXd>(design).solve(got);
  fit.times.assign(times.data(), times.data() + count);
  fit.residual = (design * times - got).norm() / std::max(got.norm(), Norm(piece.want));
  return fit;
}

std::optional<HeldShares> SharesHeldAt(const SumCauses& sums, const Suspect& suspect,
                                       const Piece& piece, const SumCauses::Plan& plan,
                                       const std::vector<Axis>& axes, const std::string& path) {
  const ShareFit fit = FitShares(sums, suspect, piece, plan, axes, path);
  if (fit.times.empty()) {
    return std::nullopt;
  }
  const Mesh& mesh = suspect.manifest().meshes.With(axes.front());
  const auto& ranks = suspect.observed().holders()[piece.holder].ranks;
  const auto group = mesh.GroupOf(ranks.front(), axes);
  HeldShares held{.ranks = ranks,
                  .at = PlaceOf(mesh, ranks.front(), axes),
                  .kind = KindOf(plan.spread),
                  .residual = fit.residual,
                  .condition = fit.condition};
  for (std::size_t i = 0; i < group.size(); ++i) {
    held.shares.push_back({PlaceOf(mesh, group[i], axes), fit.times[i]});
  }
  return held;
}

std::vector<HeldShares> SharesHeld(const SumCauses& sums, const Suspect& suspect,
                                   const SumCauses::Plan& plan, const Explanation& explanation) {
  std::vector<Axis> axes = explanation.axes;
  const Mesh& mesh = suspect.manifest().meshes.With(axes.front());
  for (const Axis axis : explanation.used) {
    if (mesh.Has(axis)) {
      axes.push_back(axis);
    }
  }
  std::vector<HeldShares> told;
  std::vector<std::vector<std::int64_t>> places;  // along the axes: ranks at one of them are alike
  constexpr std::size_t kMostTold = 2;
  constexpr double kLargestResidual = 0.1;  // a combination that is further off says nothing
  for (std::size_t index = 0; index < suspect.Pieces() && places.size() < kMostTold; ++index) {
    const std::int64_t rank = suspect.observed().holders()[suspect.HolderOf(index)].ranks.front();
    std::vector<std::int64_t> place;
    for (const Coordinate& coordinate : PlaceOf(mesh, rank, axes)) {
      place.push_back(coordinate.at);
    }
    if (!suspect.IsWrong(index) || std::find(places.begin(), places.end(), place) != places.end()) {
      continue;
    }
    auto held = SharesHeldAt(sums, suspect, suspect.Load(index), plan, axes, explanation.path);
    if (held && held->residual < kLargestResidual) {
      told.push_back(std::move(*held));
    }
    places.push_back(std::move(place));
  }
  return told;
}

std::vector<Fit> FindRanksOfShares(const SumCauses& sums, const Suspect& suspect) {
  std::vector<Hypothesis> hypotheses;
  for (const SumCauses::Plan& plan : sums.plans()) {
    if (plan.sums.empty() || suspect.Pieces() == 0) {
      continue;
    }
    const Piece& worst = suspect.Load(0);
    const ShareFit fit = FitShares(sums, suspect, worst, plan, plan.sums);
    const Mesh& mesh = suspect.manifest().meshes.With(plan.sums.front());
    const auto group_of = [&](const Piece& piece) {
      return mesh.GroupOf(suspect.observed().holders()[piece.holder].ranks.front(), plan.sums);
    };
    const auto group = group_of(worst);
    if (fit.times.size() != group.size() || 2 * group.size() > worst.got.size()) {
      continue;
    }
    const auto shares = sums.SharesAlong(worst, plan, plan.sums);
    std::vector<std::int64_t> dropped;
    std::vector<std::int64_t> doubled;
    bool fits = true;
    std::size_t known = 0;
    for (std::size_t i = 0; i < group.size(); ++i) {
      const double times = std::round(fit.times[i]);
      if (Norm(shares[i]) == 0.0) {
        continue;
      }
      ++known;
      fits = fits && (times == 0.0 || times == 1.0 || times == 2.0);
      if (times != 1.0) {
        (times == 0.0 ? dropped : doubled).push_back(group[i]);
      }
    }
    // Who lacks all has something else.
    if (!fits || dropped.empty() == doubled.empty() || dropped.size() + doubled.size() >= known) {
      continue;
    }
    const bool is_dropped = doubled.empty();
    const std::vector<std::int64_t> sources = is_dropped ? dropped : doubled;
    hypotheses.push_back(
        {.explanation = {.cause =
                             is_dropped ? Cause::kDroppedContribution : Cause::kDoubledContribution,
                         .axes = plan.sums,
                         .sources = sources},
         // Each rank of the group is one of them or not.
         .cost = kRareCost + std::log(2.0) * static_cast<double>(group.size()),
         .predict =
             [&, sources, is_dropped, group_of](const Piece& piece, Prediction& prediction) {
               const auto of_piece = sums.SharesAlong(piece, plan, plan.sums);
               const auto ranks = group_of(piece);
               if (of_piece.size() != ranks.size()) {
                 return false;
               }
               prediction.values = piece.want;
               for (std::size_t i = 0; i < ranks.size(); ++i) {
                 if (std::find(sources.begin(), sources.end(), ranks[i]) == sources.end()) {
                   continue;
                 }
                 for (std::size_t k = 0; k < prediction.values.size(); ++k) {
                   prediction.values[k] += (is_dropped ? -1.0 : 1.0) * of_piece[i][k];
                 }
               }
               return true;
             },
         .spread = plan.spread,
         .reach = Hypothesis::Reach::kWrongHolders});
  }
  return Test(suspect, std::move(hypotheses));
}

}  // namespace moe
