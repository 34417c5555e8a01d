#include "harness/explain/joint.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "harness/base/tensor_table.h"
#include "harness/explain/costs.h"

namespace moe {
namespace {

// Places of the step whose fault may show as this explanation in this tensor: the tensor's own sum
// or values, or one that its values come through.
std::vector<std::string> PlacesBehind(const std::string& tensor, const Explanation& e) {
  const TensorRow& row = TensorOf(tensor);
  const std::string scores(ToText(Path::kScores));
  const bool is_path = e.cause == Cause::kLostPath || e.cause == Cause::kDoubledPath;
  if (std::find(row.paths.begin(), row.paths.end(), Path::kScores) != row.paths.end()) {
    return is_path ? std::vector<std::string>{scores} : std::vector<std::string>{"own", scores};
  }
  if (row.role == Role::kOutput) {
    return {e.path.empty() ? "own" : "output of " + e.path, scores};
  }
  // What the gate gives the layer's input comes of the scores.
  return {e.path.empty() ? "own" : e.path == ToText(Path::kGate) ? scores : e.path};
}

// What is the same wherever one fault shows.
std::string FaultOf(const Explanation& e) {
  const auto names = [](const std::vector<Axis>& axes) {
    std::vector<std::string_view> texts;
    std::transform(axes.begin(), axes.end(), std::back_inserter(texts),
                   [](Axis axis) { return ToText(axis); });
    std::sort(texts.begin(), texts.end());
    return fmt::format("{}", fmt::join(texts, ","));
  };
  const std::string factor = e.factor ? fmt::format("{:.4g}", *e.factor) : "";
  return fmt::format("{}|{}|{}|{}|{}|{}|{}", ToText(e.cause), names(e.axes), names(e.used), factor,
                     e.permuted, e.option, fmt::join(e.sources, ","));
}

// Every tensor that is not understood is so for itself.
bool IsItsOwn(const Explanation& e) {
  return e.cause == Cause::kUnexplained || e.cause == Cause::kCorruption ||
         e.cause == Cause::kStaleReplica;
}

class JointSearch {
 public:
  explicit JointSearch(const std::vector<Accused>& accused) : accused_(accused) {
    for (std::size_t t = 0; t < accused.size(); ++t) {
      auto& of_tensor = options_.emplace_back();
      for (std::size_t f = 0; f < accused[t].fits.size(); ++f) {
        const Fit& fit = accused[t].fits[f];
        const std::string fault = FaultOf(fit.explanation);
        if (IsItsOwn(fit.explanation)) {
          of_tensor.push_back({f, IdOf(fmt::format("{}@{}", fault, accused[t].tensor))});
          continue;
        }
        for (const std::string& place : PlacesBehind(accused[t].tensor, fit.explanation)) {
          of_tensor.push_back({f, IdOf(fault + "@" + place)});
        }
      }
    }
  }

  JointChoice Run() {
    // From every fault as if it were behind all that it can be behind.
    std::vector<std::size_t> best = Descend(Alone(), /*fixed=*/SIZE_MAX);
    double least = CostOf(best);
    for (std::size_t fault = 0; fault < ids_.size(); ++fault) {
      std::vector<std::size_t> start = best;
      for (std::size_t t = 0; t < options_.size(); ++t) {
        start[t] = OptionWith(t, fault, start[t]);
      }
      start = Descend(start, SIZE_MAX);
      if (const double cost = CostOf(start); cost < least - 1e-9) {
        least = cost;
        best = start;
      }
    }
    JointChoice choice;
    std::map<std::size_t, bool> faults;
    for (std::size_t t = 0; t < options_.size(); ++t) {
      choice.chosen.push_back(options_[t][best[t]].fit);
      faults[options_[t][best[t]].fault] = true;
      choice.odds.push_back(OddsOf(t, best, least));
    }
    choice.faults = faults.size();
    return choice;
  }

 private:
  struct Option {
    std::size_t fit = 0;
    std::size_t fault = 0;
  };

  std::size_t IdOf(const std::string& fault) {
    return ids_.try_emplace(fault, ids_.size()).first->second;
  }

  const Fit& FitOf(std::size_t tensor, std::size_t option) const {
    return accused_[tensor].fits[options_[tensor][option].fit];
  }

  std::vector<std::size_t> Alone() const {
    std::vector<std::size_t> choice;
    for (std::size_t t = 0; t < options_.size(); ++t) {
      std::size_t best = 0;
      for (std::size_t o = 1; o < options_[t].size(); ++o) {
        best = FitOf(t, o).Score() < FitOf(t, best).Score() ? o : best;
      }
      choice.push_back(best);
    }
    return choice;
  }

  // The option of the tensor with this fault, the cheapest of several; else `otherwise`.
  std::size_t OptionWith(std::size_t tensor, std::size_t fault, std::size_t otherwise) const {
    std::size_t found = otherwise;
    double least = INFINITY;
    for (std::size_t o = 0; o < options_[tensor].size(); ++o) {
      if (options_[tensor][o].fault == fault && FitOf(tensor, o).Score() < least) {
        least = FitOf(tensor, o).Score();
        found = o;
      }
    }
    return found;
  }

  double CostOf(const std::vector<std::size_t>& choice) const {
    double cost = 0.0;
    std::map<std::size_t, double> faults;
    for (std::size_t t = 0; t < choice.size(); ++t) {
      const Fit& fit = FitOf(t, choice[t]);
      cost += fit.misfit.nats;
      double& of_fault = faults.try_emplace(options_[t][choice[t]].fault, -INFINITY).first->second;
      of_fault = std::max(of_fault, fit.cost);
    }
    for (const auto& [fault, own] : faults) {
      cost += kFaultCost + own;
    }
    return cost;
  }

  // Changes one tensor after the other, but `fixed`, as long as the whole gets cheaper.
  std::vector<std::size_t> Descend(std::vector<std::size_t> choice, std::size_t fixed) const {
    double least = CostOf(choice);
    for (bool better = true; better;) {
      better = false;
      for (std::size_t t = 0; t < choice.size(); ++t) {
        if (t == fixed) {
          continue;
        }
        for (std::size_t o = 0; o < options_[t].size(); ++o) {
          std::vector<std::size_t> other = choice;
          other[t] = o;
          if (const double cost = CostOf(other); cost < least - 1e-9) {
            least = cost;
            choice = std::move(other);
            better = true;
          }
        }
      }
    }
    return choice;
  }

  std::vector<double> OddsOf(std::size_t tensor, const std::vector<std::size_t>& best,
                             double least) const {
    const auto& fits = accused_[tensor].fits;
    std::vector<double> odds(fits.size(), INFINITY);
    const double own = FitOf(tensor, best[tensor]).Score();
    // Another fault less saves no more than what it cost.
    double saved = kAmbiguousOdds + kFaultCost;
    for (const Accused& other : accused_) {
      saved += other.fits.empty() ? 0.0 : kFaultCost;
    }
    for (std::size_t o = 0; o < options_[tensor].size(); ++o) {
      double& of_fit = odds[options_[tensor][o].fit];
      if (options_[tensor][o].fit == options_[tensor][best[tensor]].fit) {
        of_fit = 0.0;
        continue;
      }
      if (FitOf(tensor, o).Score() > own + saved) {
        continue;
      }
      std::vector<std::size_t> choice = best;
      choice[tensor] = o;
      for (std::size_t t = 0; t < choice.size(); ++t) {  // where it is behind others too
        if (t != tensor) {
          std::vector<std::size_t> other = choice;
          other[t] = OptionWith(t, options_[tensor][o].fault, other[t]);
          choice = CostOf(other) < CostOf(choice) + kFaultCost ? other : choice;
        }
      }
      choice = Descend(choice, tensor);
      of_fit = std::min(of_fit, CostOf(choice) - least);
    }
    return odds;
  }

  const std::vector<Accused>& accused_;
  std::vector<std::vector<Option>> options_;
  std::map<std::string, std::size_t> ids_;
};

}  // namespace

JointChoice ChooseJointly(const std::vector<Accused>& accused) {
  return JointSearch(accused).Run();
}

bool ShareAFault(const std::string& tensor, const Explanation& a, const std::string& other,
                 const Explanation& b) {
  if (FaultOf(a) != FaultOf(b) || IsItsOwn(a)) {
    return false;
  }
  const auto places = PlacesBehind(tensor, a);
  const auto others = PlacesBehind(other, b);
  return std::any_of(places.begin(), places.end(), [&](const std::string& place) {
    return std::find(others.begin(), others.end(), place) != others.end();
  });
}

}  // namespace moe
