#include "harness/explain/order_causes.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <numeric>
#include <set>
#include <utility>

#include "harness/base/tensor_table.h"
#include "harness/explain/costs.h"
#include "harness/measure/norms.h"
#include "harness/measure/tolerance.h"

namespace moe {
namespace {

using Row = std::vector<double>;

bool IsSharded(const Suspect& suspect, Axis axis) {
  return PlacementOn(suspect.observed().claim().placements, axis).IsShard();
}

// Rows of a piece along one of its dimensions: units (experts, tokens) or hidden units.
std::vector<Row> RowsOf(const std::vector<double>& values, std::size_t rows, bool by_column) {
  const std::size_t columns = values.size() / rows;
  std::vector<Row> result(by_column ? columns : rows);
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t c = 0; c < columns; ++c) {
      result[by_column ? c : r].push_back(values[r * columns + c]);
    }
  }
  return result;
}

// Which row of `want` each row of `got` is nearest to, none taken twice: its own place, own[r],
// where it is as near to that as rounding allows. Adds what so many choices cost.
std::vector<std::size_t> MatchRows(const std::vector<Row>& got, const std::vector<Row>& want,
                                   const std::vector<std::int64_t>& own,
                                   const std::vector<double>& slack, double& cost) {
  std::vector<bool> taken(want.size(), false);
  std::vector<std::size_t> places(got.size(), want.size());
  for (std::size_t row = 0; row < got.size(); ++row) {
    const auto own_place = static_cast<std::size_t>(own[row]);
    if (Distance(got[row], want[own_place]) <= slack[row]) {
      places[row] = own_place;
      taken[own_place] = true;
    }
  }
  for (std::size_t row = 0; row < got.size(); ++row) {
    if (places[row] < want.size()) {
      continue;
    }
    double nearest = INFINITY;
    for (std::size_t place = 0; place < want.size(); ++place) {
      const double distance = taken[place] ? INFINITY : Distance(got[row], want[place]);
      if (distance < nearest) {
        nearest = distance;
        places[row] = place;
      }
    }
    if (places[row] == want.size()) {
      places[row] = static_cast<std::size_t>(own[row]);
    }
    taken[places[row]] = true;
    cost += ChoiceCost(want.size());
  }
  return places;
}

std::vector<std::int64_t> InOrder(std::size_t rows) {
  std::vector<std::int64_t> places(rows);
  std::iota(places.begin(), places.end(), 0);
  return places;
}

// What rounding may make of each of so many rows of `piece`, which are its units or in one of them.
std::vector<double> SlackOf(const Piece& piece, std::size_t rows) {
  std::vector<double> slack = piece.deviation;
  if (rows != piece.Units()) {
    slack.assign(rows, Norm(piece.deviation) / std::sqrt(static_cast<double>(rows)));
  }
  std::for_each(slack.begin(), slack.end(), [](double& row) { row *= 2.0 * kSafety; });
  return slack;
}

std::vector<double> InPlaces(const std::vector<Row>& rows, const std::vector<std::size_t>& places,
                             bool by_column) {
  const std::size_t columns = rows.front().size();
  std::vector<double> values(places.size() * columns);
  for (std::size_t r = 0; r < places.size(); ++r) {
    for (std::size_t c = 0; c < columns; ++c) {
      values[by_column ? c * places.size() + r : r * columns + c] = rows[places[r]][c];
    }
  }
  return values;
}

// A hypothesis whose order is read off the values: `cost` is what that came to.
Hypothesis Permuted(std::string permuted, std::shared_ptr<double> cost,
                    std::function<bool(const Piece&, Prediction&)> predict) {
  return {.explanation = {.cause = Cause::kPermuted, .permuted = std::move(permuted)},
          .cost = kRareCost,
          .predict = std::move(predict),
          .reach = Hypothesis::Reach::kWrongHolders,
          .finish = [cost = std::move(cost)](Fit& fit) {
            fit.cost += *cost;
            return *cost > 0.0;  // nothing moved
          }};
}

// Each wrong piece holds, in its places, another expert of those that its rank has.
void AddExperts(const Suspect& suspect, std::vector<Hypothesis>& hypotheses) {
  constexpr double kMostCompared =
      1e10;  // numbers; of a real layer's experts it would take minutes
  const auto& holders = suspect.observed().holders();
  const auto experts = static_cast<double>(suspect.observed().claim().shape[0]);
  const auto held = static_cast<double>(NumElements(holders.front().slice.LocalShape()));
  if (experts * held > kMostCompared) {
    return;
  }
  auto cost = std::make_shared<double>(0.0);
  auto taken = std::make_shared<std::map<std::size_t, std::set<std::int64_t>>>();  // by holder
  hypotheses.push_back(
      Permuted("experts", cost,
               [&suspect, &holders, cost, taken](const Piece& piece, Prediction& prediction) {
                 if (!piece.is_wrong) {
                   prediction.values = piece.want;
                   return true;
                 }
                 std::optional<std::int64_t> nearest;
                 double least = INFINITY;
                 const auto& own = holders[piece.holder].slice.index[0];
                 for (const std::int64_t expert : own) {
                   Slice slice = piece.slice;
                   slice.index[0] = {expert};
                   std::vector<double> values = suspect.WholeAt(slice);
                   const double distance = Distance(piece.got, values);
                   if (expert != piece.slice.index[0].front() &&
                       !(*taken)[piece.holder].contains(expert) && distance < least) {
                     least = distance;
                     nearest = expert;
                     prediction.values = std::move(values);
                   }
                 }
                 if (!nearest) {
                   return false;
                 }
                 (*taken)[piece.holder].insert(*nearest);
                 *cost += piece.weight * ChoiceCost(own.size());
                 return true;
               }));
}

// Rows that are judged one by one in another order, within the rank or among all rows.
void AddUnits(const Suspect& suspect, const std::string& permuted, bool among_all,
              std::vector<Hypothesis>& hypotheses) {
  auto cost = std::make_shared<double>(0.0);
  const bool is_vector = suspect.observed().claim().shape.size() == 1;
  hypotheses.push_back(Permuted(
      permuted, cost,
      [&suspect, cost, is_vector, among_all](const Piece& piece, Prediction& prediction) {
        const std::size_t rows = is_vector ? piece.got.size() : piece.Units();
        if (rows < 2) {
          return false;
        }
        const auto got = RowsOf(piece.got, rows, /*by_column=*/false);
        std::vector<Row> want = RowsOf(piece.want, rows, false);
        std::vector<std::int64_t> own = InOrder(rows);
        if (among_all) {
          Slice all = piece.slice;
          all.index[0] = InOrder(static_cast<std::size_t>(suspect.observed().claim().shape[0]));
          want = RowsOf(suspect.WholeAt(all), all.index[0].size(), false);
          own = piece.slice.index[0];
        }
        double own_cost = 0.0;
        const auto places = MatchRows(got, want, own, SlackOf(piece, rows), own_cost);
        *cost += piece.weight * own_cost;
        prediction.values = InPlaces(want, places, /*by_column=*/false);
        return true;
      }));
}

// Rows of w1 and w3, columns of w2, within each expert.
void AddHiddenUnits(const Suspect& suspect, std::vector<Hypothesis>& hypotheses) {
  const TensorRow& row = TensorOf(suspect.name());
  const auto place = row.PlaceOf(Dim::kF) ? row.PlaceOf(Dim::kF) : row.PlaceOf(Dim::kS);
  const bool by_column = place == row.dims.size() - 1;
  auto cost = std::make_shared<double>(0.0);
  hypotheses.push_back(
      Permuted("hidden units", cost, [cost, by_column](const Piece& piece, Prediction& prediction) {
        if (!piece.is_wrong) {
          prediction.values = piece.want;
          return true;
        }
        const std::size_t rows = piece.slice.index[piece.slice.index.size() - 2].size();
        const auto got = RowsOf(piece.got, rows, by_column);
        const auto want = RowsOf(piece.want, rows, by_column);
        double own_cost = 0.0;
        const auto places =
            MatchRows(got, want, InOrder(got.size()), SlackOf(piece, got.size()), own_cost);
        *cost += piece.weight * own_cost;
        prediction.values = InPlaces(want, places, by_column);
        return true;
      }));
}

// Values as they come from memory that is read as if it were not transposed: element k of the
// result is element (k mod R, k / R) of what should have been read, [R, C]. Rows are read by all
// ranks that share a sum over tp, one after the other.
std::vector<double> Misread(const Suspect& suspect, const Piece& piece) {
  const std::size_t columns = piece.slice.index.back().size();
  const std::int64_t rank = suspect.observed().holders()[piece.holder].ranks.front();
  std::vector<double> all;
  std::size_t offset = 0;
  const bool is_scattered = TensorOf(suspect.name()).HasRows() && IsSharded(suspect, Axis::kTp);
  for (const std::int64_t other :
       is_scattered ? suspect.mesh().GroupOf(rank, {Axis::kTp}) : std::vector{rank}) {
    offset = other == rank ? all.size() : offset;
    const auto places = suspect.PlacesOn(piece, other);
    const std::vector<double> part = places ? suspect.WholeAt(*places) : std::vector<double>();
    all.insert(all.end(), part.begin(), part.end());
  }
  const std::size_t rows = all.size() / columns;
  std::vector<double> values(piece.got.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::size_t k = offset + i;
    values[i] = k < all.size() ? all[k % rows * columns + k / rows] : 0.0;
  }
  return values;
}

}  // namespace

std::vector<Fit> FindMisplacedShards(const Suspect& suspect) {
  const Mesh& mesh = suspect.mesh();
  // Ranks whose slice a holder may have, by holder; narrowed by each of its pieces.
  auto possible = std::make_shared<std::map<std::size_t, std::vector<std::int64_t>>>();
  const auto predict = [&suspect, &mesh, possible](const Piece& piece, Prediction& prediction) {
    auto found = possible->find(piece.holder);
    if (found == possible->end()) {
      found = possible->emplace(piece.holder, InOrder(static_cast<std::size_t>(mesh.WorldSize())))
                  .first;
    }
    bool has_values = false;
    std::erase_if(found->second, [&](std::int64_t rank) {
      const auto places = suspect.PlacesOn(piece, rank);
      if (!places || places->index == piece.slice.index) {
        return true;
      }
      Prediction of_rank{.values = suspect.WholeAt(*places)};
      Misfit alone;
      if (!suspect.Add(piece, of_rank, alone)) {
        return true;
      }
      prediction.values = std::move(of_rank.values);
      has_values = true;
      return false;
    });
    return has_values;
  };
  const auto finish = [&suspect, &mesh, possible](Fit& fit) {
    for (const auto& [holder, ranks] : *possible) {
      const std::int64_t own = suspect.observed().holders()[holder].ranks.front();
      std::optional<std::vector<Axis>> fewest;
      for (const std::int64_t rank : ranks) {
        std::vector<Axis> axes;
        for (const Axis axis : mesh.axes) {
          if (IsSharded(suspect, axis) &&
              mesh.Coordinate(rank, axis) != mesh.Coordinate(own, axis)) {
            axes.push_back(axis);
          }
        }
        if (!fewest || axes.size() < fewest->size()) {
          fewest = axes;
        }
      }
      for (const Axis axis : fewest.value_or(std::vector<Axis>())) {
        if (std::find(fit.explanation.axes.begin(), fit.explanation.axes.end(), axis) ==
            fit.explanation.axes.end()) {
          fit.explanation.axes.push_back(axis);
        }
      }
    }
    return !possible->empty();
  };
  return Test(suspect, {{.explanation = {.cause = Cause::kMisplacedShard},
                         .cost = kRareCost + ChoiceCost(static_cast<std::size_t>(mesh.WorldSize())),
                         .predict = predict,
                         .reach = Hypothesis::Reach::kWrongHolders,
                         .finish = finish}});
}

std::vector<Fit> FindPermutations(const Suspect& suspect) {
  const std::string& name = suspect.name();
  std::vector<Hypothesis> hypotheses;
  // A vector over experts is judged as a whole, and may be in another order all the same.
  const TensorRow& row = TensorOf(name);
  const bool has_rows = suspect.observed().HasUnits() || (row.IsResult() && row.PlaceOf(Dim::kE));
  if (IsExpertWeight(name)) {
    AddExperts(suspect, hypotheses);
  } else if (has_rows) {
    const char* rows = suspect.observed().UnitsAreTokens() ? "tokens" : "experts";
    AddUnits(suspect, rows, /*among_all=*/false, hypotheses);
    AddUnits(suspect, rows, /*among_all=*/true, hypotheses);
  }
  const bool has_hidden_units = row.PlaceOf(Dim::kF) || row.PlaceOf(Dim::kS);
  if (row.IsResult() && has_hidden_units) {
    AddHiddenUnits(suspect, hypotheses);
  }
  if (suspect.observed().claim().shape.size() > 1) {
    hypotheses.push_back({.explanation = {.cause = Cause::kPermuted, .permuted = "elements"},
                          .cost = kRareCost,
                          .predict =
                              [&suspect](const Piece& piece, Prediction& prediction) {
                                prediction.values = Misread(suspect, piece);
                                return true;
                              },
                          .reach = Hypothesis::Reach::kWrongHolders});
  }
  return Test(suspect, std::move(hypotheses));
}

}  // namespace moe
