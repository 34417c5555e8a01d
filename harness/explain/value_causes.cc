#include "harness/explain/value_causes.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "harness/measure/norms.h"

namespace moe {
namespace {

// Elements in which a unit differs most; their number when what is left is within what is allowed.
std::vector<std::size_t> OutliersOf(const Piece& piece, std::size_t unit, std::size_t most) {
  std::vector<std::size_t> order(piece.unit_size);
  std::iota(order.begin(), order.end(), unit * piece.unit_size);
  const auto error = [&](std::size_t i) {
    const double e = std::abs(piece.got[i] - piece.want[i]);
    return std::isfinite(e) ? e : INFINITY;
  };
  const std::size_t kept = std::min(most + 1, order.size());
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(kept), order.end(),
                    [&](std::size_t a, std::size_t b) { return error(a) > error(b); });
  // From the smallest error up: what is left after a huge one is taken away is lost in its
  // rounding.
  double left = 0.0;
  for (std::size_t i = order.size(); i-- > kept;) {
    left += error(order[i]) * error(order[i]);
  }
  const double allowed = piece.allowed[unit];
  if (std::sqrt(left) <= allowed) {
    std::size_t count = kept;
    while (count > 0) {
      const double next = error(order[count - 1]);
      if (std::sqrt(left + next * next) > allowed) {
        break;
      }
      left += next * next;
      --count;
    }
    order.resize(count);
    return order;
  }
  order.resize(kept);
  return order;
}

}  // namespace

std::optional<Fit> FindLocalNormaliser(const Suspect& suspect, const SumCauses& sums) {
  using Tokens = SumCauses::Tokens;
  for (const SumCauses::Plan& plan : sums.plans()) {
    for (const auto& axes : ProductsOf(plan.sums)) {
      for (double Tokens::*count : {&Tokens::tokens, &Tokens::rows, &Tokens::slots}) {
        FitQuality quality;
        bool differ = false;
        const bool all = suspect.ForEachWrong([&](const Piece& piece) {
          const auto parts = sums.TokensAlong(piece, plan, axes);
          const auto shares = sums.SharesAlong(piece, plan, axes);
          double total = 0.0;
          for (const Tokens& part : parts) {
            total += part.*count;
            differ = differ || part.*count != parts[0].*count;
          }
          std::vector<double> predicted(piece.got.size(), 0.0);
          for (std::size_t part = 0; part < shares.size(); ++part) {
            if (parts[part].*count == 0.0) {
              continue;  // nothing to divide
            }
            const double factor = total / (parts[part].*count * static_cast<double>(parts.size()));
            for (std::size_t i = 0; i < predicted.size(); ++i) {
              predicted[i] += factor * shares[part][i];
            }
          }
          return shares.size() == parts.size() && suspect.Explains(piece, predicted, quality);
        });
        if (all && differ && quality.Helps()) {
          Fit fit{.explanation = {.cause = Cause::kLocalNormaliser, .axes = axes}};
          fit.residual = quality.residual;
          return fit;
        }
      }
    }
  }
  return std::nullopt;
}

std::optional<Fit> FindLeftovers(const Suspect& suspect) {
  if (!IsExpertWeight(suspect.name()) && suspect.name() != "d_gate_ED") {
    return std::nullopt;  // of one expert; a tensor that should be zero throughout is simply wrong
  }
  std::optional<Fit> fit;
  const bool all = suspect.ForEachWrong([&](const Piece& piece) {
    for (std::size_t unit = 0; unit < piece.Units(); ++unit) {
      double error = 0.0;
      double want = 0.0;
      for (std::size_t i = unit * piece.unit_size; i < (unit + 1) * piece.unit_size; ++i) {
        error = std::hypot(error, piece.got[i] - piece.want[i]);
        want = std::hypot(want, piece.want[i]);
      }
      if (error <= piece.allowed[unit]) {
        continue;
      }
      if (want != 0.0) {
        return false;
      }
      if (!fit) {
        const std::string where =
            suspect.observed().HasUnits()
                ? fmt::format("expert {} on rank {}", piece.slice.index[0][unit],
                              fmt::join(suspect.observed().holders()[piece.holder].ranks, " + "))
                : "the slice";
        fit = Fit{.explanation = {.cause = Cause::kCorruption},
                  .text = "not zero where it should be: " + where};
      }
    }
    return true;
  });
  bool is_zero_throughout = true;
  for (std::size_t index = 0; all && index < suspect.Pieces() && is_zero_throughout; ++index) {
    is_zero_throughout = Norm(suspect.Load(index).want) == 0.0;
  }
  return all && !is_zero_throughout ? fit : std::nullopt;
}

std::optional<Fit> FindCorruption(const Suspect& suspect) {
  FitQuality quality;
  std::map<std::size_t, std::size_t> outliers;  // by holder
  std::map<std::size_t, std::size_t> elements;
  std::string where;  // of the first
  const bool all = suspect.ForEachWrong([&](const Piece& piece) {
    elements[piece.holder] += piece.got.size();
    for (std::size_t unit = 0; unit < piece.Units(); ++unit) {
      const std::size_t most = std::max<std::size_t>(3, piece.unit_size / 4);
      const auto found = OutliersOf(piece, unit, most);
      if (found.size() > most) {
        return false;
      }
      outliers[piece.holder] += found.size();
      std::vector<bool> is_outlier(piece.got.size(), false);
      for (const std::size_t i : found) {
        is_outlier[i] = true;
      }
      for (std::size_t i = unit * piece.unit_size; i < (unit + 1) * piece.unit_size; ++i) {
        const double error = piece.got[i] - piece.want[i];
        quality.before += piece.is_wrong ? error * error : 0.0;
        quality.left += piece.is_wrong && !is_outlier[i] ? error * error : 0.0;
      }
      if (!found.empty() && where.empty()) {
        std::size_t offset = found.front();
        std::vector<std::int64_t> index;
        for (std::size_t dim = piece.slice.index.size(); dim-- > 0;) {
          const auto& held = piece.slice.index[dim];
          index.insert(index.begin(), held[offset % held.size()]);
          offset /= held.size();
        }
        where = fmt::format("[{}] is {:.6e}, not {:.6e}, on rank {}", fmt::join(index, ", "),
                            piece.got[found.front()], piece.want[found.front()],
                            fmt::join(suspect.observed().holders()[piece.holder].ranks, " + "));
      }
    }
    return true;
  });
  const bool few = std::all_of(outliers.begin(), outliers.end(), [&](const auto& entry) {
    const std::size_t total = elements[entry.first];
    return entry.second <= std::max<std::size_t>(3, total / 100) && 3 * entry.second <= total;
  });
  if (!all || !few || !quality.Helps()) {
    return std::nullopt;
  }
  return Fit{.explanation = {.cause = Cause::kCorruption},
             .text = "a few elements are wrong: " + where};
}

std::optional<Fit> FindStaleReplica(const Suspect& suspect) {
  std::vector<Axis> replicating;
  for (const Axis axis : suspect.mesh().axes) {
    if (PlacementOn(suspect.observed().claim().placements, axis).kind ==
        Placement::Kind::kReplicate) {
      replicating.push_back(axis);
    }
  }
  const auto& holders = suspect.observed().holders();
  for (std::size_t holder = 0; holder < holders.size(); ++holder) {
    if (!suspect.HolderIsWrong(holder)) {
      continue;
    }
    const auto replicas = suspect.observed().Replicas(holder, suspect.mesh(), replicating);
    const auto wrong = std::count_if(replicas.begin(), replicas.end(), [&](std::size_t replica) {
      return suspect.HolderIsWrong(replica);
    });
    if (2 * wrong > std::ssize(replicas)) {
      return std::nullopt;
    }
  }
  return Fit{.explanation = {.cause = Cause::kStaleReplica}};
}

}  // namespace moe
