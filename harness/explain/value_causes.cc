#include "harness/explain/value_causes.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <numeric>
#include <utility>

#include "harness/explain/costs.h"
#include "harness/measure/norms.h"
#include "harness/measure/tolerance.h"

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
  const double allowed = kSafety * piece.deviation[unit];
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

std::vector<Fit> FindLocalNormalisers(const Suspect& suspect, const SumCauses& sums) {
  using Tokens = SumCauses::Tokens;
  std::vector<Hypothesis> hypotheses;
  for (const SumCauses::Plan& plan : sums.plans()) {
    for (const auto& axes : ProductsOf(plan.sums)) {
      for (double Tokens::*count : {&Tokens::tokens, &Tokens::rows, &Tokens::slots}) {
        auto differ = std::make_shared<bool>(false);
        const auto predict = [&sums, &plan, axes, count, differ](const Piece& piece,
                                                                 Prediction& prediction) {
          const auto parts = sums.TokensAlong(piece, plan, axes);
          const auto shares = sums.SharesAlong(piece, plan, axes);
          if (shares.size() != parts.size()) {
            return false;
          }
          double total = 0.0;
          for (const Tokens& part : parts) {
            total += part.*count;
            *differ = *differ || part.*count != parts[0].*count;
          }
          prediction.values.assign(piece.got.size(), 0.0);
          for (std::size_t part = 0; part < shares.size(); ++part) {
            if (parts[part].*count == 0.0) {
              continue;  // nothing to divide
            }
            const double factor = total / (parts[part].*count * static_cast<double>(parts.size()));
            for (std::size_t i = 0; i < prediction.values.size(); ++i) {
              prediction.values[i] += factor * shares[part][i];
            }
          }
          return true;
        };
        const auto extra = static_cast<double>(axes.size() - 1);
        hypotheses.push_back(
            {.explanation = {.cause = Cause::kLocalNormaliser, .axes = axes},
             .cost = kRareCost + kLongerCost * extra + ChoiceCost(3) + ChoiceCost(plan.sums.size()),
             .predict = predict,
             .spread = plan.spread,
             .reach = Hypothesis::Reach::kWrongHolders,
             .finish = [differ](Fit&) { return *differ; }});
      }
    }
  }
  return Test(suspect, std::move(hypotheses));
}

std::vector<Fit> FindSourceShares(const Suspect& suspect) {
  const Mesh& expert = suspect.manifest().meshes.expert;
  if (!IsExpertWeight(suspect.name()) ||
      expert.SizeOf(Axis::kEp) * expert.SizeOf(Axis::kEtp) == 1) {
    return {};  // a rank that sends to itself alone loses nothing on the way
  }
  std::vector<Hypothesis> hypotheses;
  for (std::int64_t source = 0; source < expert.WorldSize(); ++source) {
    for (const double sign : {-1.0, 1.0}) {
      const auto predict = [&suspect, source, sign](const Piece& piece, Prediction& prediction) {
        const std::int64_t holder = suspect.observed().holders()[piece.holder].ranks.front();
        prediction.values = piece.want;
        if (suspect.ledger().SendsTo(source, holder)) {
          const auto share =
              suspect.ledger().Share(Spread::kSources, suspect.name(), "", source, piece.slice);
          for (std::size_t i = 0; i < share.size(); ++i) {
            prediction.values[i] += sign * share[i];
          }
        }
        return true;
      };
      hypotheses.push_back(
          {.explanation = {.cause = sign < 0.0 ? Cause::kDroppedContribution
                                               : Cause::kDoubledContribution,
                           .axes = {Axis::kEp},
                           .sources = {source}},
           .cost = kRareCost + ChoiceCost(static_cast<std::size_t>(expert.WorldSize())),
           .predict = predict,
           .spread = Spread::kSources});
    }
  }
  return Test(suspect, std::move(hypotheses));
}

std::vector<Fit> FindLeakedSlots(const Suspect& suspect) {
  if (!suspect.ledger().MayLeakSlots(suspect.name())) {
    return {};
  }
  return Test(suspect, {{.explanation = {.cause = Cause::kLeakedSlots, .axes = {Axis::kTp}},
                         .cost = kRareCost,
                         .predict = [&suspect](const Piece& piece, Prediction& prediction) {
                           prediction.values =
                               suspect.ledger().WithLeakedSlots(suspect.name(), piece.slice);
                           return true;
                         }}});
}

std::vector<Fit> FindLeftovers(const Suspect& suspect) {
  if (!suspect.observed().HasUnits() || suspect.observed().UnitsAreTokens()) {
    return {};  // of one expert; a tensor that should be zero throughout is simply wrong
  }
  bool is_zero_throughout = true;
  for (std::size_t index = 0; index < suspect.Pieces() && is_zero_throughout; ++index) {
    is_zero_throughout = Norm(suspect.Load(index).want) == 0.0;
  }
  if (is_zero_throughout) {
    return {};
  }
  auto first = std::make_shared<std::optional<UnitPlace>>();
  const auto predict = [&suspect, first](const Piece& piece, Prediction& prediction) {
    prediction.values = piece.want;
    prediction.free.assign(piece.want.size(), false);
    for (std::size_t unit = 0; unit < piece.Units(); ++unit) {
      const auto begin = piece.want.begin() + static_cast<std::ptrdiff_t>(unit * piece.unit_size);
      const auto end = begin + static_cast<std::ptrdiff_t>(piece.unit_size);
      if (!piece.unit_is_wrong[unit] ||
          std::any_of(begin, end, [](double value) { return value != 0.0; })) {
        continue;
      }
      std::fill_n(prediction.free.begin() + static_cast<std::ptrdiff_t>(unit * piece.unit_size),
                  piece.unit_size, true);
      if (!*first) {
        const bool has_units = suspect.observed().HasUnits();
        *first = UnitPlace{has_units ? "expert" : "", has_units ? piece.slice.index[0][unit] : -1,
                           suspect.observed().holders()[piece.holder].ranks};
      }
    }
    return true;
  };
  return Test(suspect, {{.explanation = {.cause = Cause::kCorruption},
                         .cost = kRareCost,
                         .predict = predict,
                         .reach = Hypothesis::Reach::kWrongHolders,
                         .finish = [first](Fit& fit) {
                           fit.not_zero = *first;
                           return first->has_value();
                         }}});
}

std::vector<Fit> FindCorruption(const Suspect& suspect) {
  struct Seen {
    std::map<std::size_t, std::size_t> outliers;  // by holder
    std::map<std::size_t, std::size_t> elements;
    std::optional<ElementPlace> first;
    double cost = 0.0;
  };
  auto seen = std::make_shared<Seen>();
  const auto predict = [&suspect, seen](const Piece& piece, Prediction& prediction) {
    seen->elements[piece.holder] += piece.got.size();
    prediction.values = piece.want;
    prediction.free.assign(piece.got.size(), false);
    for (std::size_t unit = 0; unit < piece.Units(); ++unit) {
      const std::size_t most = std::max<std::size_t>(3, piece.unit_size / 4);
      const auto found = OutliersOf(piece, unit, most);
      if (found.size() > most) {
        return false;
      }
      seen->outliers[piece.holder] += found.size();
      for (const std::size_t i : found) {
        prediction.free[i] = true;
        seen->cost += piece.weight * ChoiceCost(piece.got.size());
      }
      if (!found.empty() && !seen->first) {
        std::size_t offset = found.front();
        std::vector<std::int64_t> index;
        for (std::size_t dim = piece.slice.index.size(); dim-- > 0;) {
          const auto& held = piece.slice.index[dim];
          index.insert(index.begin(), held[offset % held.size()]);
          offset /= held.size();
        }
        seen->first = {std::move(index), suspect.observed().holders()[piece.holder].ranks,
                       piece.got[found.front()], piece.want[found.front()]};
      }
    }
    return true;
  };
  return Test(suspect, {{.explanation = {.cause = Cause::kCorruption},
                         .cost = kRareCost,
                         .predict = predict,
                         .reach = Hypothesis::Reach::kWrongHolders,
                         .finish = [seen](Fit& fit) {
                           fit.cost += seen->cost;
                           fit.element = seen->first;
                           return std::all_of(
                               seen->outliers.begin(), seen->outliers.end(),
                               [&](const auto& entry) {
                                 const std::size_t total = seen->elements[entry.first];
                                 return entry.second <= std::max<std::size_t>(3, total / 100) &&
                                        3 * entry.second <= total;
                               });
                         }}});
}

std::vector<Fit> FindStaleReplicas(const Suspect& suspect) {
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
      return {};
    }
  }
  return Test(suspect, {{.explanation = {.cause = Cause::kStaleReplica},
                         .cost = kRareCost + ChoiceCost(holders.size()),
                         .predict =
                             [](const Piece& piece, Prediction& prediction) {
                               prediction.values = piece.want;
                               prediction.free.assign(piece.got.size(), true);
                               return true;
                             },
                         .reach = Hypothesis::Reach::kWrongHolders}});
}

}  // namespace moe
