#include "harness/explain/share_fit.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <map>

#include "harness/explain/explanation_text.h"
#include "harness/measure/norms.h"

namespace moe {
namespace {

std::string TimesText(double times) {
  if (std::abs(times) < 5e-3) {
    return "not at all";
  }
  if (std::abs(times - 1.0) < 5e-3) {
    return "once";
  }
  if (std::abs(times - 2.0) < 5e-3) {
    return "twice";
  }
  return fmt::format("{:.3g} times", times);
}

std::string PlaceText(const Mesh& mesh, std::int64_t rank, const std::vector<Axis>& axes) {
  std::vector<std::string> parts;
  for (const Axis axis : axes) {
    if (mesh.Has(axis)) {  // of the other mesh's axes the rank has no coordinate here
      parts.push_back(fmt::format("{}={}", ToText(axis), mesh.Coordinate(rank, axis)));
    }
  }
  return fmt::format("{}", fmt::join(parts, " "));
}

// "of tp=1 once", "of tp=0, tp=2 not at all": parts that are held equally often stand together.
std::vector<std::string> PartsHeld(const Mesh& mesh, const std::vector<std::int64_t>& group,
                                   const std::vector<Axis>& axes,
                                   const std::vector<double>& times) {
  constexpr std::size_t kMostNamed = 6;
  std::vector<std::pair<std::string, std::vector<std::string>>> held;
  for (std::size_t i = 0; i < group.size(); ++i) {
    const std::string often = TimesText(times[i]);
    auto same = std::find_if(held.begin(), held.end(),
                             [&](const auto& entry) { return entry.first == often; });
    if (same == held.end()) {
      same = held.insert(often == "once" ? held.begin() : held.end(), {often, {}});
    }
    same->second.push_back(PlaceText(mesh, group[i], axes));
  }
  std::vector<std::string> parts;
  for (auto& [often, places] : held) {
    const std::size_t more = places.size() > kMostNamed ? places.size() - kMostNamed : 0;
    places.resize(places.size() - more);
    parts.push_back(fmt::format("of {}{} {}", fmt::join(places, ", "),
                                more > 0 ? fmt::format(" and {} more", more) : "", often));
  }
  return parts;
}

std::string SpreadText(Spread spread) {
  switch (spread) {
    case Spread::kHiddenUnits:
    case Spread::kEtpSlices:
    case Spread::kUngatheredSlices:
      return "a share is what a slice of the hidden units gives";
    case Spread::kOwners:
    case Spread::kUngatheredOwners:
      return "a share is what an ep rank's experts give";
    default:
      return "a share is what a rank's tokens give";
  }
}

}  // namespace

std::string TooFewElements(const Piece& piece) {
  const auto telling = std::count_if(piece.want.begin(), piece.want.end(),
                                     [](double value) { return value != 0.0; });
  return telling >= 2 ? ""
                      : fmt::format(
                            "{} of its {} numbers are other than zero, and one number fits "
                            "every factor; a slice with two or more would do",
                            telling, piece.want.size());
}

ShareFit FitShares(const SumCauses& sums, const Suspect& suspect, const Piece& piece,
                   const SumCauses::Plan& plan, const std::vector<Axis>& axes,
                   const std::string& path) {
  const std::int64_t rank = suspect.observed().holders()[piece.holder].ranks.front();
  const Mesh& mesh = suspect.manifest().meshes.With(axes.front());
  const auto group = mesh.GroupOf(rank, axes);
  const auto shares = sums.SharesAlong(piece, plan, axes, path);
  ShareFit fit;
  if (shares.size() != group.size()) {
    return fit;  // some cannot be known
  }
  const auto elements = static_cast<Eigen::Index>(piece.got.size());
  const auto count = static_cast<Eigen::Index>(shares.size());
  if (elements < count) {
    fit.obstacle = fmt::format(
        "{} numbers for the {} shares of {}; a slice of at least {} numbers would do, or a layout "
        "with fewer ranks",
        elements, count, AxesText(axes), count);
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
    fit.obstacle = fmt::format(
        "the {} shares of {} are too nearly the same to be told apart (condition {:.1e}, at most "
        "{:.0e}); more tokens, or other ones, would do",
        count, AxesText(axes), fit.condition, kLargestCondition);
    return fit;
  }
  const Eigen::VectorXd times = Eigen::ColPivHouseholderQR<Eigen::MatrixXd>(design).solve(got);
  fit.times.assign(times.data(), times.data() + count);
  fit.residual = (design * times - got).norm() / std::max(got.norm(), Norm(piece.want));
  const std::vector<std::string> parts = PartsHeld(mesh, group, axes, fit.times);
  fit.text =
      fmt::format("rank {} ({}) holds the share {} (fit residual {:.1e}, condition {:.1f})",
                  fmt::join(suspect.observed().holders()[piece.holder].ranks, " + "),
                  PlaceText(mesh, rank, axes), fmt::join(parts, ", "), fit.residual, fit.condition);
  return fit;
}

std::vector<std::string> DescribeShares(const SumCauses& sums, const Suspect& suspect,
                                        const SumCauses::Plan& plan,
                                        const Explanation& explanation) {
  std::vector<Axis> axes = explanation.axes;
  for (const Axis axis : explanation.used) {
    if (suspect.manifest().meshes.With(axes.front()).Has(axis)) {
      axes.push_back(axis);
    }
  }
  std::vector<std::string> sentences;
  std::vector<std::string> told;  // places along the axes: ranks at the same one hold the same
  constexpr std::size_t kMostTold = 2;
  constexpr double kLargestResidual = 0.1;  // a combination that is further off says nothing
  for (std::size_t index = 0; index < suspect.Pieces() && told.size() < kMostTold; ++index) {
    const std::string place =
        PlaceText(suspect.manifest().meshes.With(axes.front()),
                  suspect.observed().holders()[suspect.HolderOf(index)].ranks.front(), axes);
    if (!suspect.IsWrong(index) || std::find(told.begin(), told.end(), place) != told.end()) {
      continue;
    }
    const ShareFit fit =
        FitShares(sums, suspect, suspect.Load(index), plan, axes, explanation.path);
    if (!fit.text.empty() && fit.residual < kLargestResidual) {
      sentences.push_back(fit.text);
    }
    told.push_back(place);
  }
  if (!sentences.empty()) {
    sentences.back() += "; " + SpreadText(plan.spread);
  }
  return sentences;
}

std::optional<Fit> FindRanksOfShares(const SumCauses& sums, const Suspect& suspect) {
  for (const SumCauses::Plan& plan : sums.plans()) {
    if (plan.sums.empty()) {
      continue;
    }
    std::optional<std::map<std::int64_t, double>>
        common;  // rank -> how often, where it is not once
    FitQuality quality;
    bool fits = true;
    for (std::size_t index = 0; index < suspect.Pieces() && fits; ++index) {
      if (!suspect.HolderIsWrong(suspect.HolderOf(index))) {
        continue;
      }
      const Piece piece = suspect.Load(index);
      const ShareFit fit = FitShares(sums, suspect, piece, plan, plan.sums);
      const auto shares = sums.SharesAlong(piece, plan, plan.sums);
      const auto group =
          suspect.manifest()
              .meshes.With(plan.sums.front())
              .GroupOf(suspect.observed().holders()[piece.holder].ranks.front(), plan.sums);
      fits = fit.times.size() == group.size() && 2 * group.size() <= piece.got.size();
      std::map<std::int64_t, double> odd;
      std::size_t known = 0;
      std::vector<double> predicted(piece.got.size(), 0.0);
      for (std::size_t i = 0; fits && i < group.size(); ++i) {
        const double times = std::round(fit.times[i]);
        if (Norm(shares[i]) > 0.0) {
          ++known;
          if (times != 1.0) {
            odd[group[i]] = times;
          }
        }
        for (std::size_t k = 0; k < predicted.size(); ++k) {
          predicted[k] += times * shares[i][k];
        }
      }
      // All ranks lack the same ones, in every slice; who lacks all has something else.
      const bool is_some = odd.size() < known;
      fits = fits && is_some && (!common || *common == odd) &&
             suspect.Explains(piece, predicted, quality);
      common = odd;
    }
    std::vector<std::int64_t> dropped;
    std::vector<std::int64_t> doubled;
    for (const auto& [rank, times] : common.value_or(std::map<std::int64_t, double>())) {
      fits = fits && (times == 0.0 || times == 2.0);
      (times == 0.0 ? dropped : doubled).push_back(rank);
    }
    if (fits && quality.Helps() && dropped.empty() != doubled.empty()) {
      auto& ranks = dropped.empty() ? doubled : dropped;
      return Fit{.explanation = {.cause = dropped.empty() ? Cause::kDoubledContribution
                                                          : Cause::kDroppedContribution,
                                 .axes = plan.sums,
                                 .sources = ranks},
                 .residual = quality.residual,
                 .spread = plan.spread};
    }
  }
  return std::nullopt;
}

}  // namespace moe
