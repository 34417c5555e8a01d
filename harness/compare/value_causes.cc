#include "harness/compare/value_causes.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "harness/compare/factor_causes.h"
#include "harness/compare/norms.h"
#include "harness/compare/tolerance.h"

namespace moe {
namespace {

using Row = std::vector<double>;

bool IsSharded(const Suspect& suspect, Axis axis) {
  const auto kind = PlacementOn(suspect.observed().claim().placements, axis).kind;
  return kind == Placement::Kind::kShard || kind == Placement::Kind::kStridedShard;
}

// The wrong pieces, one after the other, until `visit` says false.
template <typename Visit>
bool ForEachWrong(const Suspect& suspect, const Visit& visit) {
  for (std::size_t index = 0; index < suspect.Pieces(); ++index) {
    if (suspect.HolderIsWrong(suspect.HolderOf(index)) && !visit(suspect.Load(index))) {
      return false;
    }
  }
  return true;
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
  const bool all = ForEachWrong(suspect, [&](const Piece& piece) {
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
  return ForEachWrong(suspect, [&](const Piece& piece) {
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
  const bool all = ForEachWrong(suspect, [&](const Piece& piece) {
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
         ForEachWrong(suspect,
                      [&](const Piece& piece) {
                        return suspect.Explains(piece, Misread(suspect, piece), quality);
                      }) &&
         quality.Helps();
}

int SignificantBits(double value) {
  int exponent = 0;
  const double mantissa = std::frexp(value, &exponent);
  auto whole = static_cast<std::int64_t>(std::ldexp(std::abs(mantissa), 53));
  if (whole == 0) {
    return 0;
  }
  int bits = 53;
  for (; (whole & 1) == 0; whole >>= 1) {
    --bits;
  }
  return bits;
}

Fit FitOf(Explanation explanation) {
  return {.explanation = std::move(explanation)};
}

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

std::optional<Fit> FindMisplacedShard(const Suspect& suspect) {
  const Mesh& mesh = suspect.mesh();
  std::map<std::size_t, std::set<std::int64_t>> possible;  // holder -> ranks whose slice it has
  FitQuality quality;
  const bool all = ForEachWrong(suspect, [&](const Piece& piece) {
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
  Fit fit = FitOf({.cause = Cause::kMisplacedShard, .axes = along});
  fit.residual = quality.residual;
  return fit;
}

std::optional<Fit> FindPermutation(const Suspect& suspect) {
  const bool rows_are_tokens = suspect.name() == "y_TD" || suspect.name() == "d_x_TD";
  const bool has_rows = suspect.observed().HasUnits() || suspect.name() == "d_gate_bias_E";
  if (IsExpertWeight(suspect.name()) ? ExpertsArePermuted(suspect)
                                     : has_rows && UnitsArePermuted(suspect)) {
    return FitOf({.cause = Cause::kPermuted, .permuted = rows_are_tokens ? "tokens" : "experts"});
  }
  if (HiddenUnitsArePermuted(suspect)) {
    return FitOf({.cause = Cause::kPermuted, .permuted = "hidden units"});
  }
  if (ElementsArePermuted(suspect)) {
    return FitOf({.cause = Cause::kPermuted, .permuted = "elements"});
  }
  return std::nullopt;
}

std::optional<Fit> FindLocalNormaliser(const Suspect& suspect, const SumCauses& sums) {
  using Tokens = SumCauses::Tokens;
  for (const SumCauses::Plan& plan : sums.plans()) {
    for (const auto& axes : ProductsOf(plan.sums)) {
      for (double Tokens::*count : {&Tokens::tokens, &Tokens::rows, &Tokens::slots}) {
        FitQuality quality;
        bool differ = false;
        const bool all = ForEachWrong(suspect, [&](const Piece& piece) {
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
          Fit fit = FitOf({.cause = Cause::kLocalNormaliser, .axes = axes});
          fit.residual = quality.residual;
          return fit;
        }
      }
    }
  }
  return std::nullopt;
}

std::optional<Fit> FindLeftovers(const Suspect& suspect, std::string& where) {
  if (!IsExpertWeight(suspect.name()) && suspect.name() != "d_gate_ED") {
    return std::nullopt;  // of one expert; a tensor that should be zero throughout is simply wrong
  }
  std::optional<Fit> fit;
  const bool all = ForEachWrong(suspect, [&](const Piece& piece) {
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
        where =
            suspect.observed().HasUnits()
                ? fmt::format("expert {} on rank {}", piece.slice.index[0][unit],
                              fmt::join(suspect.observed().holders()[piece.holder].ranks, " + "))
                : "the slice";
        fit = FitOf({.cause = Cause::kCorruption});
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

std::optional<Fit> FindCorruption(const Suspect& suspect, std::string& where) {
  FitQuality quality;
  std::map<std::size_t, std::size_t> outliers;  // by holder
  std::map<std::size_t, std::size_t> elements;
  const bool all = ForEachWrong(suspect, [&](const Piece& piece) {
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
  return FitOf({.cause = Cause::kCorruption});
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
  return FitOf({.cause = Cause::kStaleReplica});
}

std::optional<Fit> FindCoarseStorage(const Suspect& suspect) {
  const double dtype_bits = -std::log2(UnitRoundoff(suspect.manifest().dtype));
  int bits = 0;
  ForEachWrong(suspect, [&](const Piece& piece) {
    for (const double value : piece.got) {
      bits = std::max(bits, SignificantBits(value));
    }
    return true;
  });
  // A little fewer bits than the dtype has may be chance.
  if (bits == 0 || bits > 0.75 * dtype_bits) {
    return std::nullopt;
  }
  const double unit = std::ldexp(1.0, -bits);
  FitQuality quality;
  const bool all = ForEachWrong(suspect, [&](const Piece& piece) {
    const double slack =
        Norm(piece.allowed) / std::sqrt(static_cast<double>(piece.got.size())) * 4.0;
    for (std::size_t i = 0; i < piece.got.size(); ++i) {
      const double error = std::abs(piece.got[i] - piece.want[i]);
      if (error > unit * std::abs(piece.want[i]) + slack) {
        return false;
      }
      quality.residual =
          std::max(quality.residual, piece.want[i] == 0.0 ? 0.0 : error / std::abs(piece.want[i]));
    }
    return true;
  });
  // Of many roundings some are off by nearly half a step.
  if (!all || quality.residual < 0.25 * unit) {
    return std::nullopt;
  }
  Fit fit = FitOf({.cause = Cause::kPrecision, .option = fmt::format("{} bits", bits)});
  fit.residual = quality.residual;
  return fit;
}

std::optional<Fit> FindCoarseArithmetic(const Suspect& suspect) {
  constexpr double kLeastLeft = 0.8;           // of the squared error, by factors of paths
  constexpr double kFewestIndependent = 30.0;  // with fewer, any error may lie across the reference
  double along = 0.0;                          // error along the reference,
  double wants = 0.0;
  double squares = 0.0;
  std::set<std::size_t> holders;
  double fourths = 0.0;  // of the reference
  std::int64_t units = 0;
  std::int64_t coarse = 0;        // units that are off by what no rounding of the dtype often does
  std::vector<double> relatives;  // errors of elements over their size
  std::vector<double> units_of_bound;  // errors of units over what rounding in the dtype gives them
  double largest = 0.0;                // of a unit
  const bool all = ForEachWrong(suspect, [&](const Piece& piece) {
    for (std::size_t unit = 0; unit < piece.Units(); ++unit) {
      double unit_squares = 0.0;
      double unit_wants = 0.0;
      for (std::size_t i = unit * piece.unit_size; i < (unit + 1) * piece.unit_size; ++i) {
        const double error = piece.got[i] - piece.want[i];
        along += error * piece.want[i];
        unit_squares += error * error;
        unit_wants += piece.want[i] * piece.want[i];
        fourths += std::pow(piece.want[i], 4);
        if (piece.want[i] != 0.0) {
          relatives.push_back(std::abs(error / piece.want[i]));
        }
      }
      ++units;
      coarse += std::sqrt(unit_squares) > 0.5 * piece.allowed[unit] ? 1 : 0;
      if (piece.allowed[unit] > 0.0) {
        units_of_bound.push_back(kSafety * std::sqrt(unit_squares) / piece.allowed[unit]);
      }
      largest = std::max(largest, unit_wants > 0.0 ? unit_squares / unit_wants : 0.0);
      squares += unit_squares;
      wants += unit_wants;
    }
    holders.insert(piece.holder);
    return true;
  });
  if (!all || wants == 0.0 || squares == 0.0) {
    return std::nullopt;
  }
  // Independent errors, each in proportion to its element, have along the reference a part of their
  // size of 1/sqrt(n), where large elements count for more than small ones and replicas, which make
  // the same errors, once; and no unit stands out.
  const double independent = wants * wants / fourths / static_cast<double>(holders.size());
  const double relative = std::sqrt(squares / wants);
  const bool has_no_direction = std::abs(along) / wants <= 3.5 * relative / std::sqrt(independent);
  // Errors of rounding lie on all elements in proportion, not on a few alone.
  const auto hit = std::count_if(relatives.begin(), relatives.end(),
                                 [&](double error) { return error >= 0.05 * relative; });
  // Nor in a few slices alone.
  if (2 * coarse < units || independent < kFewestIndependent ||
      10 * hit < 3 * std::ssize(relatives) || !has_no_direction ||
      ErrorLeftByFactors(suspect) < kLeastLeft || std::sqrt(largest) > 30.0 * relative) {
    return std::nullopt;
  }
  // Arithmetic in a coarser dtype is off by as many times the bound as its unit is larger, in every
  // unit; errors of correct runs are 0.05 to 1.5 of their bound.
  std::nth_element(units_of_bound.begin(), units_of_bound.begin() + std::ssize(units_of_bound) / 2,
                   units_of_bound.end());
  const double own_unit = UnitRoundoff(suspect.manifest().dtype);
  const double middle =
      units_of_bound.empty() ? 0.0 : units_of_bound[units_of_bound.size() / 2] * own_unit;
  std::string dtype;
  for (const Dtype coarser : {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBfloat16}) {
    const double unit = UnitRoundoff(coarser);
    if (unit > 4.0 * own_unit && middle >= 0.05 * unit && middle <= 1.5 * unit) {
      dtype = ToText(coarser);
    }
  }
  if (dtype.empty()) {
    return std::nullopt;
  }
  Fit fit = FitOf({.cause = Cause::kPrecision, .option = dtype});
  fit.residual = relative;
  return fit;
}

}  // namespace moe
