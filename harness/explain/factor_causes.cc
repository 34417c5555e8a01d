#include "harness/explain/factor_causes.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <map>

#include "harness/measure/norms.h"

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
  const bool has_rows = suspect.name() == "y_TD" || suspect.name() == "d_x_TD";
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
  return tensor.starts_with("d_gate")     ? "scores"
         : tensor.starts_with("d_shared") ? "shared"
         : IsExpertWeight(tensor)         ? "experts"
                                          : "";
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
    const Piece piece = suspect.Load(index);
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
    for (const double allowed : piece.allowed) {
      sum.allowed += allowed * allowed;
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
double Snap(double factor, double uncertainty, double largest_divisor) {
  double nearest = std::round(factor);
  const double inverse = std::round(1.0 / factor);
  if (inverse != 0.0 && std::abs(inverse) <= largest_divisor &&
      std::abs(factor - 1.0 / inverse) < std::abs(factor - nearest)) {
    nearest = 1.0 / inverse;
  }
  return std::abs(factor - nearest) <= uncertainty + 1e-9 ? nearest : factor;
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

bool Explains(const Suspect& suspect, const std::vector<std::string>& paths,
              const std::vector<double>& factors, FitQuality& quality) {
  return suspect.ForEachWrong([&](const Piece& piece) {
    return suspect.Explains(piece, PredictionOf(suspect, piece, paths, factors), quality);
  });
}

std::vector<Explanation> CausesOf(const Suspect& suspect, const StepContract* contract,
                                  double factor, const std::vector<bool>& affected,
                                  const std::vector<std::string>& paths) {
  const std::string path = PathText(paths, affected);
  if (factor == 0.0) {
    const std::string lost = path.empty() && paths.size() == 1 ? OnlyPathOf(suspect.name()) : path;
    return {{.cause = Cause::kLostPath,
             .path = lost.empty() ? fmt::format("{}", fmt::join(paths, " and ")) : lost}};
  }
  std::vector<Explanation> causes;
  for (const auto& product : ProductsOf(RepeatableAxes(suspect, contract, affected))) {
    double size = 1.0;
    for (const Axis axis : product) {
      size *= static_cast<double>(suspect.manifest().meshes.With(axis).SizeOf(axis));
    }
    if (factor == size || factor == 1.0 / size) {
      causes.push_back({.cause = factor > 1.0 ? Cause::kDoubleSum : Cause::kMeanForSum,
                        .axes = product,
                        .path = path});
    }
  }
  if (factor == 2.0 && !path.empty()) {
    causes.push_back({.cause = Cause::kDoubledPath, .path = path});
  }
  if (causes.empty()) {
    causes.push_back({.cause = Cause::kWrongScale, .factor = factor, .path = path});
  }
  return causes;
}

// One factor, on the paths that are affected.
struct FactorFit {
  double factor = 1.0;
  std::vector<bool> affected;
  FitQuality quality;
};

// The factors that the holder with the smallest uncertainty gives, if they explain all holders.
std::optional<std::vector<double>> CommonFactors(const Suspect& suspect,
                                                 const std::vector<std::string>& paths,
                                                 FitQuality& quality) {
  const auto holders = FitHolders(suspect, paths);
  if (holders.empty()) {
    return std::nullopt;
  }
  const auto best =
      std::min_element(holders.begin(), holders.end(), [](const auto& a, const auto& b) {
        return a.second.uncertainty.norm() < b.second.uncertainty.norm();
      });
  const PathFactors& fit = best->second;
  std::vector<double> snapped;
  for (Eigen::Index path = 0; path < fit.factor.size(); ++path) {
    snapped.push_back(Snap(fit.factor(path), fit.uncertainty(path),
                           static_cast<double>(suspect.manifest().WorldSize())));
  }
  const bool snapped_fits = Explains(suspect, paths, snapped, quality) && quality.Helps();
  const FitQuality of_snapped = quality;
  quality = {};
  const std::vector<double> raw(fit.factor.data(), fit.factor.data() + fit.factor.size());
  // A fitted factor takes away some of any error, so it must take away nearly all.
  const double smallest = fit.factor.cwiseAbs().minCoeff();
  const bool fits = Explains(suspect, paths, raw, quality) && quality.before > 0.0 &&
                    quality.left <= 0.05 * quality.before && quality.residual <= 0.5 * smallest;
  // 1/1000 is near 0 and yet not 0, which shows in what is left.
  const bool is_near_zero = std::count(snapped.begin(), snapped.end(), 0.0) > 0 && fits &&
                            16.0 * quality.left < of_snapped.left;
  if (snapped_fits && !is_near_zero) {
    quality = of_snapped;
    return snapped;
  }
  return fits ? std::optional(raw) : std::nullopt;
}

// One factor of the whole tensor, as if it had one path.
std::optional<FactorFit> FindFactorOfAll(const Suspect& suspect, std::size_t paths) {
  FactorFit fit;
  const auto factor = CommonFactors(suspect, {""}, fit.quality);
  if (!factor) {
    return std::nullopt;
  }
  fit.factor = factor->front();
  fit.affected.assign(paths, true);
  return fit;
}

// One factor along some of the paths.
std::optional<FactorFit> FindFactorOfPaths(const Suspect& suspect,
                                           const std::vector<std::string>& paths) {
  FactorFit fit;
  const auto factors = CommonFactors(suspect, paths, fit.quality);
  if (!factors) {
    return std::nullopt;
  }
  for (const double factor : *factors) {
    // Snapped to 1 where it can be; what is near it without being it was not.
    fit.affected.push_back(std::abs(factor - 1.0) > 1e-6);
    if (!fit.affected.back()) {
      continue;
    }
    if (fit.factor != 1.0 && std::abs(factor - fit.factor) > 1e-6 * std::abs(factor)) {
      return std::nullopt;  // two causes at once
    }
    fit.factor = factor;
  }
  return fit.factor == 1.0 ? std::nullopt : std::optional(fit);
}

// The simpler one, unless it is much the worse: where one path is far larger than the others, what
// happens to it happens to nearly all.
std::optional<FactorFit> FindFactor(const Suspect& suspect, const std::vector<std::string>& paths) {
  const auto of_all = FindFactorOfAll(suspect, paths.size());
  const auto of_paths = paths.size() > 1 ? FindFactorOfPaths(suspect, paths) : std::nullopt;
  const bool paths_win =
      of_paths && (!of_all || 16.0 * of_paths->quality.left < of_all->quality.left);
  return paths_win ? of_paths : of_all;
}

}  // namespace

std::vector<Fit> FindFactorCauses(const Suspect& suspect, const StepContract* contract) {
  const std::vector<std::string> paths = suspect.ledger().PathsOf(suspect.name());
  const auto found = FindFactor(suspect, paths);
  if (!found) {
    return {};
  }
  bool everywhere = true;
  bool is_zero = true;
  for (std::size_t index = 0; index < suspect.Pieces(); ++index) {
    everywhere = everywhere && suspect.HolderIsWrong(suspect.HolderOf(index));
    is_zero = is_zero && (found->factor != 0.0 || Norm(suspect.Load(index).got) == 0.0);
  }
  const bool is_all =
      std::find(found->affected.begin(), found->affected.end(), false) == found->affected.end();
  if (is_all && !is_zero) {
    return {};  // A little of something else is not nothing.
  }
  if (found->factor == 0.0 && !everywhere) {
    return {};  // One rank that has nothing has lost no path.
  }
  std::vector<Fit> fits;
  for (Explanation& cause : CausesOf(suspect, contract, found->factor, found->affected, paths)) {
    fits.push_back({.explanation = std::move(cause),
                    .residual = found->quality.residual,
                    .everywhere = everywhere});
  }
  return fits;
}

double ErrorLeftByFactors(const Suspect& suspect) {
  const std::vector<std::string> paths = suspect.ledger().PathsOf(suspect.name());
  FitQuality quality;
  for (const auto& [holder, fit] : FitHolders(suspect, paths)) {
    const std::vector<double> factors(fit.factor.data(), fit.factor.data() + fit.factor.size());
    for (std::size_t index = 0; index < suspect.Pieces(); ++index) {
      if (suspect.HolderOf(index) == holder) {
        const Piece piece = suspect.Load(index);
        const double left = Distance(piece.got, PredictionOf(suspect, piece, paths, factors));
        const double before = Distance(piece.got, piece.want);
        quality.left += left * left;
        quality.before += before * before;
      }
    }
  }
  return quality.before > 0.0 ? quality.left / quality.before : 1.0;
}

std::string DescribeFactor(double factor, const Manifest& manifest) {
  if (std::abs(factor - 1.0) < 0.05) {
    return "";  // no size is so near to 1
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
  return fmt::format("{}", fmt::join(found, ", or "));
}

}  // namespace moe
