#include "harness/explain/factor_causes.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <map>

#include "harness/base/tensor_table.h"
#include "harness/explain/costs.h"
#include "harness/measure/norms.h"
#include "harness/measure/tolerance.h"

namespace moe {
namespace {

bool Contains(const std::vector<Axis>& axes, Axis axis) {
  return std::find(axes.begin(), axes.end(), axis) != axes.end();
}

// Axes over which somebody may sum a finished value once more, as far as the paths `affected` are
// concerned: those of the tensor's own mesh that the contract speaks of; of a foreign program those
// that do not cut the tensor, and tp for rows, which may be reduce-scattered; and etp where folding
// sums over it inside the step.
std::vector<Axis> RepeatableAxes(const Suspect& suspect, const StepContract* contract,
                                 const std::vector<bool>& affected) {
  const auto reaches = [&](const std::vector<std::vector<bool>>& subsets) {
    return std::find(subsets.begin(), subsets.end(), affected) != subsets.end();
  };
  const bool reaches_mesh = reaches(PathSubsetsOf(suspect, contract));
  const ContractTensor* known = contract ? contract->Find(suspect.name()) : nullptr;
  const bool has_rows = TensorOf(suspect.name()).HasRows();
  std::vector<Axis> axes;
  for (const Axis axis : suspect.mesh().axes) {
    const bool is_cut = PlacementOn(suspect.observed().claim().placements, axis).IsShard();
    const bool may_be_summed = known != nullptr
                                   ? Contains(known->owed, axis) || Contains(known->settled, axis)
                                   : !is_cut || (has_rows && axis == Axis::kTp);
    if (suspect.mesh().SizeOf(axis) > 1 && may_be_summed && reaches_mesh) {
      axes.push_back(axis);
    }
  }
  if (reaches(PathSubsetsOfEtp(suspect))) {
    axes.push_back(Axis::kEtp);
  }
  return axes;
}

// What a tensor with one path alone is lost along.
std::string OnlyPathOf(const std::string& tensor) {
  const auto paths = TensorOf(tensor).paths;
  return paths.size() == 1 ? std::string(ToText(paths.front())) : "";
}

// In extended precision: of thousands of terms the rounding would be seen in a float64 factor.
long double LongDot(const std::vector<double>& x, const std::vector<double>& y) {
  long double sum = 0.0L;
  for (std::size_t i = 0; i < x.size(); ++i) {
    sum += static_cast<long double>(x[i]) * static_cast<long double>(y[i]);
  }
  return sum;
}

struct PathFactors {
  Eigen::VectorXd factor;
  Eigen::VectorXd uncertainty;
};

// Least squares over all pieces of one holder. Normal equations: there are at most three unknowns,
// and the result is checked against the values afterwards.
std::map<std::size_t, PathFactors> FitHolders(const Suspect& suspect,
                                              const std::vector<std::string>& paths) {
  struct Sums {
    Eigen::Matrix<long double, Eigen::Dynamic, Eigen::Dynamic> gram;
    Eigen::Matrix<long double, Eigen::Dynamic, 1> right;
    double allowed = 0.0;
  };
  const auto count = static_cast<Eigen::Index>(paths.size());
  std::map<std::size_t, Sums> sums;
  for (std::size_t index = 0; index < suspect.Pieces(); ++index) {
    if (!suspect.HolderIsWrong(suspect.HolderOf(index))) {
      continue;
    }
    const Piece& piece = suspect.Load(index);
    Sums& sum = sums[piece.holder];
    if (sum.gram.size() == 0) {
      sum.gram.setZero(count, count);
      sum.right.setZero(count);
    }
    std::vector<std::vector<double>> parts;
    for (const std::string& path : paths) {
      parts.push_back(path.empty() ? piece.want
                                   : suspect.ledger().Whole(suspect.name(), path, piece.slice));
    }
    for (Eigen::Index i = 0; i < count; ++i) {
      const auto& part = parts[static_cast<std::size_t>(i)];
      sum.right(i) += LongDot(part, piece.got);
      for (Eigen::Index j = 0; j < count; ++j) {
        sum.gram(i, j) += LongDot(part, parts[static_cast<std::size_t>(j)]);
      }
    }
    for (const double deviation : piece.deviation) {
      sum.allowed += kSafety * kSafety * deviation * deviation;
    }
  }
  std::map<std::size_t, PathFactors> fits;
  for (const auto& [holder, sum] : sums) {
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> eigen(sum.gram.cast<double>());
    const double smallest = eigen.eigenvalues().minCoeff();
    if (smallest <= 1e-10 * eigen.eigenvalues().maxCoeff()) {
      continue;  // the paths cannot be told apart here
    }
    const Eigen::VectorXd factor = sum.gram.ldlt().solve(sum.right).cast<double>();
    const Eigen::VectorXd uncertainty =
        (2.0 * std::sqrt(sum.allowed) * factor.cwiseAbs().cwiseMax(1.0)) / std::sqrt(smallest);
    fits[holder] = {factor, uncertainty};
  }
  return fits;
}

// The nearest whole number or one over a whole number, if it is within the factor's uncertainty.
std::optional<double> Snap(double factor, double uncertainty, double largest_divisor) {
  double nearest = std::round(factor);
  const double inverse = std::round(1.0 / factor);
  if (inverse != 0.0 && std::abs(inverse) <= largest_divisor &&
      std::abs(factor - 1.0 / inverse) < std::abs(factor - nearest)) {
    nearest = 1.0 / inverse;
  }
  return std::abs(factor - nearest) <= uncertainty + 1e-9 ? std::optional(nearest) : std::nullopt;
}

std::vector<double> PredictionOf(const Suspect& suspect, const Piece& piece,
                                 const std::vector<std::string>& paths,
                                 const std::vector<double>& factors) {
  std::vector<double> predicted(piece.got.size(), 0.0);
  for (std::size_t path = 0; path < paths.size(); ++path) {
    const std::vector<double> part =
        paths[path].empty() ? piece.want
                            : suspect.ledger().Whole(suspect.name(), paths[path], piece.slice);
    for (std::size_t i = 0; i < predicted.size(); ++i) {
      predicted[i] += factors[path] * part[i];
    }
  }
  return predicted;
}

// What is said of a factor on some of the paths.
struct Meaning {
  Explanation explanation;
  double cost = 0.0;
  bool must_reach_d_x = false;
};

// A path of its own is a longer story; a factor that no place of the step gives is rare.
std::vector<Meaning> CausesOf(const Suspect& suspect, const StepContract* contract, double factor,
                              double cost_of_factor, const std::vector<bool>& affected,
                              const std::vector<std::string>& paths) {
  const std::string path = PathText(paths, affected);
  const std::string only = path.empty() && paths.size() == 1 ? OnlyPathOf(suspect.name()) : path;
  const double cost_of_path = path.empty() ? 0.0 : kLongerCost;
  if (factor == 0.0) {
    return {{{.cause = Cause::kLostPath,
              .path = only.empty() ? fmt::format("{}", fmt::join(paths, " and ")) : only},
             kLongerCost + ChoiceCost(paths.size())}};
  }
  std::vector<Meaning> causes;
  const std::vector<Axis> axes = RepeatableAxes(suspect, contract, affected);
  const auto products = ProductsOf(axes);
  for (const auto& product : products) {
    double size = 1.0;
    for (const Axis axis : product) {
      size *= static_cast<double>(suspect.manifest().meshes.With(axis).SizeOf(axis));
    }
    if (factor == size || factor == 1.0 / size) {
      causes.push_back({{.cause = factor > 1.0 ? Cause::kDoubleSum : Cause::kMeanForSum,
                         .axes = product,
                         .path = path},
                        ChoiceCost(products.size()) + cost_of_path});
    }
  }
  const bool is_of_scores = only == ToText(Path::kScores);
  if (factor == 2.0 && (!path.empty() || is_of_scores)) {
    causes.push_back({{.cause = Cause::kDoubledPath, .path = only},
                      (path.empty() ? 0.0 : kLongerCost) + ChoiceCost(paths.size()),
                      is_of_scores});
  }
  causes.push_back({{.cause = Cause::kWrongScale, .factor = factor, .path = path},
                    kRareCost + cost_of_factor + cost_of_path});
  return causes;
}

// A factor along each path; 1 where it is right.
struct Factors {
  std::vector<double> of;
  double cost = 0.0;
};

// Those that the holder with the smallest uncertainty gives: as they are, and as the whole numbers,
// or parts, that they are nearest to.
std::vector<Factors> FactorsOf(const Suspect& suspect, const std::vector<std::string>& paths) {
  const auto holders = FitHolders(suspect, paths);
  if (holders.empty()) {
    return {};
  }
  const auto best =
      std::min_element(holders.begin(), holders.end(), [](const auto& a, const auto& b) {
        return a.second.uncertainty.norm() < b.second.uncertainty.norm();
      });
  const PathFactors& fit = best->second;
  const auto ranks = static_cast<std::size_t>(suspect.manifest().WorldSize());
  std::size_t values = 0;
  for (std::size_t index = 0; index < suspect.Pieces(); ++index) {
    values += suspect.HolderOf(index) == best->first ? suspect.Load(index).got.size() : 0;
  }
  Factors raw;
  Factors snapped;
  for (Eigen::Index path = 0; path < fit.factor.size(); ++path) {
    const double factor = fit.factor(path);
    const auto whole = Snap(factor, fit.uncertainty(path), static_cast<double>(ranks));
    const double fitted = FittedCost(values, factor, fit.uncertainty(path) / kSafety);
    raw.of.push_back(factor);
    raw.cost = std::max(raw.cost, fitted);
    snapped.of.push_back(whole.value_or(factor));
    // Whole numbers up to the number of ranks, and one over them.
    snapped.cost =
        std::max(snapped.cost, whole ? ChoiceCost(2 * std::max<std::size_t>(5, ranks)) : fitted);
  }
  std::vector<Factors> all = {snapped};
  if (raw.of != snapped.of) {
    all.push_back(std::move(raw));
  }
  return all;
}

// Nothing of what all paths bring; a little of something else is not nothing.
bool HoldsNothing(const Suspect& suspect) {
  for (std::size_t index = 0; index < suspect.Pieces(); ++index) {
    if (Norm(suspect.Load(index).got) != 0.0) {
      return false;
    }
  }
  return true;
}

void AddHypotheses(const Suspect& suspect, const StepContract* contract,
                   const std::vector<std::string>& own_paths, const std::vector<std::string>& paths,
                   const Factors& factors, std::vector<Hypothesis>& hypotheses) {
  const bool is_whole = paths.size() != own_paths.size() || own_paths.size() == 1;
  std::vector<bool> affected;
  double factor = 1.0;
  for (const double of_path : factors.of) {
    // Snapped to 1 where it can be; what is near it without being it was not.
    affected.push_back(std::abs(of_path - 1.0) > 1e-6);
    if (!affected.back()) {
      continue;
    }
    if (factor != 1.0 && std::abs(of_path - factor) > 1e-6 * std::abs(of_path)) {
      return;  // two causes at once
    }
    factor = of_path;
  }
  if (factor == 1.0 && !is_whole) {
    return;
  }
  if (is_whole) {
    factor = factors.of.front();
    affected.assign(own_paths.size(), true);
  }
  const bool is_all = std::find(affected.begin(), affected.end(), false) == affected.end();
  if (factor == 0.0 && ((is_all && !HoldsNothing(suspect)) || !suspect.AllHoldersAreWrong())) {
    return;  // One rank that has nothing has lost no path.
  }
  for (Meaning& meaning : CausesOf(suspect, contract, factor, factors.cost, affected, own_paths)) {
    hypotheses.push_back(
        {.explanation = std::move(meaning.explanation),
         .cost = meaning.cost,
         .predict =
             [&suspect, paths, of = factors.of](const Piece& piece, Prediction& prediction) {
               prediction.values = PredictionOf(suspect, piece, paths, of);
               return true;
             },
         .reach = Hypothesis::Reach::kWrongHolders,
         .finish =
             [must_reach = meaning.must_reach_d_x](Fit& fit) {
               fit.must_reach_d_x = must_reach;
               fit.names_a_factor = fit.explanation.cause == Cause::kWrongScale;
               // Whole groups sum, and a path is lost or doubled for all ranks alike.
               fit.cost += !fit.names_a_factor && !fit.everywhere ? kRareCost : 0.0;
               return true;
             }});
  }
}

}  // namespace

std::vector<Fit> FindFactorCauses(const Suspect& suspect, const StepContract* contract) {
  const std::vector<std::string> own_paths = suspect.ledger().PathsOf(suspect.name());
  std::vector<std::vector<std::string>> choices = {{""}};
  if (own_paths.size() > 1) {
    choices.push_back(own_paths);
  }
  std::vector<Fit> fits;
  for (const std::vector<std::string>& paths : choices) {
    for (const Factors& factors : FactorsOf(suspect, paths)) {
      std::vector<Hypothesis> hypotheses;
      AddHypotheses(suspect, contract, own_paths, paths, factors, hypotheses);
      std::vector<Fit> more = Test(suspect, std::move(hypotheses));
      const bool is_quiet =
          std::any_of(more.begin(), more.end(), [](const Fit& fit) { return fit.misfit.is_quiet; });
      std::move(more.begin(), more.end(), std::back_inserter(fits));
      if (is_quiet) {
        break;  // Of whole numbers that leave rounding alone, rounding could fit no better ones.
      }
    }
  }
  return fits;
}

double ErrorLeftByFactors(const Suspect& suspect) {
  const std::vector<std::string> paths = suspect.ledger().PathsOf(suspect.name());
  double squares_left = 0.0;
  double squares = 0.0;
  for (const auto& [holder, fit] : FitHolders(suspect, paths)) {
    const std::vector<double> factors(fit.factor.data(), fit.factor.data() + fit.factor.size());
    for (std::size_t index = 0; index < suspect.Pieces(); ++index) {
      if (suspect.HolderOf(index) == holder) {
        const Piece& piece = suspect.Load(index);
        const double left = Distance(piece.got, PredictionOf(suspect, piece, paths, factors));
        const double before = Distance(piece.got, piece.want);
        squares_left += left * left;
        squares += before * before;
      }
    }
  }
  return squares > 0.0 ? squares_left / squares : 1.0;
}

std::vector<std::string> MeaningsOf(double factor, const Manifest& manifest) {
  if (std::abs(factor - 1.0) < 0.05) {
    return {};  // no size is so near to 1
  }
  std::map<std::string, double> sizes;
  for (const Mesh* mesh : {&manifest.meshes.dense, &manifest.meshes.expert}) {
    for (const Axis axis : mesh->axes) {
      sizes[fmt::format("the size of {}", ToText(axis))] = static_cast<double>(mesh->SizeOf(axis));
    }
  }
  sizes["top_k"] = static_cast<double>(manifest.model.top_k);
  sizes["the local batch"] = static_cast<double>(manifest.layout.local_batch);
  sizes["the number of ranks"] = static_cast<double>(manifest.WorldSize());
  sizes["the number of experts"] = static_cast<double>(manifest.model.experts);
  sizes["the number of tokens"] = static_cast<double>(manifest.model.tokens);
  if (!manifest.tokens.empty()) {
    sizes["a rank's number of tokens"] = static_cast<double>(manifest.tokens.front().size());
  }
  sizes["route_scale"] = manifest.model.route_scale;
  std::erase_if(sizes, [](const auto& size) { return size.second == 1.0; });
  const auto is = [&](double value) { return std::abs(factor / value - 1.0) < 1e-2; };
  std::vector<std::string> found;
  for (const auto& [name, size] : sizes) {
    if (is(size)) {
      found.push_back(name);
    } else if (is(1.0 / size)) {
      found.push_back("1 over " + name);
    }
  }
  if (found.empty()) {
    for (const auto& [name, size] : sizes) {
      for (const auto& [other, divisor] : sizes) {
        if (name != other && size != divisor && is(size / divisor)) {
          found.push_back(fmt::format("{} over {}", name, other));
        }
        if (name < other && (is(size * divisor) || is(1.0 / (size * divisor)))) {
          found.push_back(fmt::format("{}{} times {}", factor > 1.0 ? "" : "1 over ", name, other));
        }
      }
    }
  }
  constexpr std::size_t kMostNamed = 3;
  if (found.size() > kMostNamed) {
    found.resize(kMostNamed);
  }
  return found;
}

}  // namespace moe
