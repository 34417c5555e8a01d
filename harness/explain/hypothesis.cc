#include "harness/explain/hypothesis.h"

#include <algorithm>
#include <utility>

#include "harness/explain/costs.h"

namespace moe {

std::vector<Fit> Test(const Suspect& suspect, std::vector<Hypothesis> hypotheses) {
  struct Trial {
    Hypothesis hypothesis;
    Misfit misfit;
    bool everywhere = true;
  };
  std::vector<Trial> trials;
  for (Hypothesis& hypothesis : hypotheses) {
    const bool everywhere =
        hypothesis.reach != Hypothesis::Reach::kWrongHolders || suspect.AllHoldersAreWrong();
    trials.push_back({std::move(hypothesis), {}, everywhere});
  }
  for (std::size_t index = 0; index < suspect.Pieces() && !trials.empty(); ++index) {
    const Piece& piece = suspect.Load(index);
    const bool is_right = !suspect.HolderIsWrong(piece.holder);
    std::erase_if(trials, [&](Trial& trial) {
      const auto add = [&](const Prediction& prediction) {
        return suspect.Add(piece, prediction, trial.misfit);
      };
      if (is_right && trial.hypothesis.reach == Hypothesis::Reach::kWrongHolders) {
        return !add({.values = piece.want});
      }
      const Misfit before = trial.misfit;
      Prediction prediction;
      if (trial.hypothesis.predict(piece, prediction) && add(prediction)) {
        return false;
      }
      if (!is_right || trial.hypothesis.reach != Hypothesis::Reach::kEither) {
        return true;
      }
      trial.everywhere = false;
      trial.misfit = before;
      return !add({.values = piece.want});
    });
  }
  std::vector<Fit> fits;
  for (Trial& trial : trials) {
    Fit fit{.explanation = std::move(trial.hypothesis.explanation),
            .cost = trial.hypothesis.cost + (trial.everywhere ? 0.0 : kLongerCost),
            .misfit = trial.misfit,
            .spread = trial.hypothesis.spread,
            .everywhere = trial.everywhere};
    if (!trial.hypothesis.finish || trial.hypothesis.finish(fit)) {
      fits.push_back(std::move(fit));
    }
  }
  return fits;
}

}  // namespace moe
