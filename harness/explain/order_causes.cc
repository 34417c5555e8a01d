#include "harness/explain/order_causes.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

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

// Whether two rows are the same up to `relative` rounding, with a floor of `absolute`.
bool Same(const Row& a, const Row& b, double relative, double absolute) {
  return Distance(a, b) <= std::max(absolute, relative * std::max(Norm(a), Norm(b)));
}

// Whether every row of `got` is one of `want`, not all in their places and none taken twice, and
// much nearer to it than to the one in its place. The place of row r is own[r].
bool IsPermutation(const std::vector<Row>& got, const std::vector<Row>& want,
                   const std::vector<std::int64_t>& own, double relative, double absolute) {
  FitQuality quality;
  std::vector<bool> taken(want.size(), false);
  bool moved = false;
  std::vector<double> norms;
  std::transform(want.begin(), want.end(), std::back_inserter(norms), Norm);
  for (std::size_t row = 0; row < got.size(); ++row) {
    const double norm = Norm(got[row]);
    const auto fits = [&](std::size_t place) {
      return !taken[place] &&
             std::abs(norms[place] - norm) <= absolute + relative * std::max(norm, norms[place]) &&
             Same(got[row], want[place], relative, absolute);
    };
    const auto own_place = static_cast<std::size_t>(own[row]);
    std::size_t place = own_place;
    if (!fits(place)) {
      place = 0;
      while (place < want.size() && !fits(place)) {
        ++place;
      }
    }
    if (place == want.size()) {
      return false;
    }
    taken[place] = true;
    moved = moved || place != own_place;
    const double left = Distance(got[row], want[place]);
    const double before = Distance(got[row], want[own_place]);
    quality.left += left * left;
    quality.before += before * before;
  }
  return moved && quality.Helps();
}

std::vector<std::int64_t> InOrder(std::size_t rows) {
  std::vector<std::int64_t> places(rows);
  std::iota(places.begin(), places.end(), 0);
  return places;
}

// What rounding may make of a row of `piece` with `rows` of them: relative and absolute.
std::pair<double, double> SlackOf(const Suspect& suspect, const Piece& piece, std::size_t rows) {
  double allowed = 0.0;
  for (const double unit : piece.allowed) {
    allowed += unit * unit;
  }
  allowed = std::sqrt(allowed);
  const double norm = Norm(piece.want);
  const double floor = 4.0 * UnitRoundoff(suspect.manifest().dtype);
  return {norm > 0.0 ? std::max(1.5 * allowed / norm, floor) : floor,
          2.0 * allowed / std::sqrt(static_cast<double>(rows))};
}

// Whether each wrong piece holds, in its places, another expert of those that its rank may hold.
bool ExpertsArePermuted(const Suspect& suspect) {
  constexpr double kMostCompared =
      1e10;  // numbers; of a real layer's experts it would take minutes
  const auto& holders = suspect.observed().holders();
  const auto experts = static_cast<double>(suspect.observed().claim().shape[0]);
  const auto held = static_cast<double>(NumElements(holders.front().slice.LocalShape()));
  if (experts * held > kMostCompared) {
    return false;
  }
  std::map<std::size_t, std::set<std::int64_t>> taken;  // by holder
  FitQuality quality;
  const bool all = suspect.ForEachWrong([&](const Piece& piece) {
    for (const std::int64_t expert : holders[piece.holder].slice.index[0]) {
      Slice slice = piece.slice;
      slice.index[0] = {expert};
      FitQuality with = quality;
      if (!taken[piece.holder].contains(expert) &&
          suspect.Explains(piece, suspect.WholeAt(slice), with)) {
        taken[piece.holder].insert(expert);
        quality = with;
        return true;
      }
    }
    return false;
  });
  return all && quality.Helps();
}

// Rows that are judged one by one in another order, within the rank or among all rows.
bool UnitsArePermuted(const Suspect& suspect) {
  const bool is_vector = suspect.observed().claim().shape.size() == 1;
  return suspect.ForEachWrong([&](const Piece& piece) {
    const std::size_t rows = is_vector ? piece.got.size() : piece.Units();
    if (rows < 2) {
      return false;
    }
    const auto [relative, absolute] = SlackOf(suspect, piece, rows);
    const auto got = RowsOf(piece.got, rows, /*by_column=*/false);
    if (IsPermutation(got, RowsOf(piece.want, rows, false), InOrder(rows), relative, absolute)) {
      return true;
    }
    Slice all = piece.slice;
    all.index[0].resize(static_cast<std::size_t>(suspect.observed().claim().shape[0]));
    std::iota(all.index[0].begin(), all.index[0].end(), 0);
    return IsPermutation(got, RowsOf(suspect.WholeAt(all), all.index[0].size(), false),
                         piece.slice.index[0], relative, absolute);
  });
}

// Rows of w1 and w3, columns of w2, within each expert.
bool HiddenUnitsArePermuted(const Suspect& suspect) {
  const std::string& name = suspect.name();
  const bool by_column = name == "d_w2_EDF" || name == "d_shared_w2_DF";
  if (!IsExpertWeight(name) && !name.starts_with("d_shared_w")) {
    return false;
  }
  bool any = false;
  const bool all = suspect.ForEachWrong([&](const Piece& piece) {
    if (!piece.is_wrong) {
      return true;
    }
    any = true;
    const std::size_t rows = piece.slice.index[piece.slice.index.size() - 2].size();
    const auto got = RowsOf(piece.got, rows, by_column);
    const auto [relative, absolute] = SlackOf(suspect, piece, got.size());
    return IsPermutation(got, RowsOf(piece.want, rows, by_column), InOrder(got.size()), relative,
                         absolute);
  });
  return any && all;
}

// Values as they come from memory that is read as if it were not transposed: element k of the
// result is element (k mod R, k / R) of what should have been read, [R, C]. Rows are read by all
// ranks that share a sum over tp, one after the other.
std::vector<double> Misread(const Suspect& suspect, const Piece& piece) {
  const std::size_t columns = piece.slice.index.back().size();
  const std::int64_t rank = suspect.observed().holders()[piece.holder].ranks.front();
  std::vector<double> all;
  std::size_t offset = 0;
  const bool is_scattered =
      (suspect.name() == "y_TD" || suspect.name() == "d_x_TD") && IsSharded(suspect, Axis::kTp);
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

bool ElementsArePermuted(const Suspect& suspect) {
  FitQuality quality;
  return suspect.observed().claim().shape.size() > 1 &&
         suspect.ForEachWrong([&](const Piece& piece) {
           return suspect.Explains(piece, Misread(suspect, piece), quality);
         }) &&
         quality.Helps();
}

}  // namespace

std::optional<Fit> FindMisplacedShard(const Suspect& suspect) {
  const Mesh& mesh = suspect.mesh();
  std::map<std::size_t, std::set<std::int64_t>> possible;  // holder -> ranks whose slice it has
  FitQuality quality;
  const bool all = suspect.ForEachWrong([&](const Piece& piece) {
    auto found = possible.find(piece.holder);
    if (found == possible.end()) {
      std::set<std::int64_t> ranks;
      for (std::int64_t rank = 0; rank < mesh.WorldSize(); ++rank) {
        ranks.insert(rank);
      }
      found = possible.emplace(piece.holder, std::move(ranks)).first;
    }
    const FitQuality before = quality;
    std::erase_if(found->second, [&](std::int64_t rank) {
      const auto places = suspect.PlacesOn(piece, rank);
      FitQuality with = before;
      if (!places || places->index == piece.slice.index ||
          !suspect.Explains(piece, suspect.WholeAt(*places), with)) {
        return true;
      }
      quality = with;
      return false;
    });
    return !found->second.empty();
  });
  if (!all || possible.empty() || !quality.Helps()) {
    return std::nullopt;
  }
  std::vector<Axis> along;
  for (const auto& [holder, ranks] : possible) {
    const std::int64_t own = suspect.observed().holders()[holder].ranks.front();
    std::optional<std::vector<Axis>> fewest;
    for (const std::int64_t rank : ranks) {
      std::vector<Axis> axes;
      for (const Axis axis : mesh.axes) {
        if (IsSharded(suspect, axis) && mesh.Coordinate(rank, axis) != mesh.Coordinate(own, axis)) {
          axes.push_back(axis);
        }
      }
      if (!fewest || axes.size() < fewest->size()) {
        fewest = axes;
      }
    }
    for (const Axis axis : *fewest) {
      if (std::find(along.begin(), along.end(), axis) == along.end()) {
        along.push_back(axis);
      }
    }
  }
  Fit fit{.explanation = {.cause = Cause::kMisplacedShard, .axes = along}};
  fit.residual = quality.residual;
  return fit;
}

std::optional<Fit> FindPermutation(const Suspect& suspect) {
  const bool rows_are_tokens = suspect.name() == "y_TD" || suspect.name() == "d_x_TD";
  const bool has_rows = suspect.observed().HasUnits() || suspect.name() == "d_gate_bias_E";
  if (IsExpertWeight(suspect.name()) ? ExpertsArePermuted(suspect)
                                     : has_rows && UnitsArePermuted(suspect)) {
    return Fit{.explanation = {.cause = Cause::kPermuted,
                               .permuted = rows_are_tokens ? "tokens" : "experts"}};
  }
  if (HiddenUnitsArePermuted(suspect)) {
    return Fit{.explanation = {.cause = Cause::kPermuted, .permuted = "hidden units"}};
  }
  if (ElementsArePermuted(suspect)) {
    return Fit{.explanation = {.cause = Cause::kPermuted, .permuted = "elements"}};
  }
  return std::nullopt;
}

}  // namespace moe
