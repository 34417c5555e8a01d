#include "harness/explain/formula_causes.h"

#include <utility>

#include "harness/explain/costs.h"

namespace moe {
namespace {

struct Option {
  const char* name;
  std::string value;
  Model model;
};

std::vector<Option> OtherOptions(const Model& model) {
  std::vector<Option> options;
  const auto add = [&](const char* name, std::string_view value, auto change) {
    Model other = model;
    change(other);
    options.push_back({name, std::string(value), other});
  };
  const ScorePlacement placement = model.score_placement == ScorePlacement::kBeforeExperts
                                       ? ScorePlacement::kAfterExperts
                                       : ScorePlacement::kBeforeExperts;
  const ScoreFunction function = model.score_function == ScoreFunction::kSoftmax
                                     ? ScoreFunction::kSigmoid
                                     : ScoreFunction::kSoftmax;
  add("score_placement", ToText(placement), [&](Model& m) { m.score_placement = placement; });
  add("score_function", ToText(function), [&](Model& m) { m.score_function = function; });
  add("route_norm", model.route_norm ? "false" : "true",
      [](Model& m) { m.route_norm = !m.route_norm; });
  if (model.route_scale != 1.0) {
    add("route_scale", "1", [](Model& m) { m.route_scale = 1.0; });
  }
  if (model.gate_bias) {
    add("gate_bias", "false", [](Model& m) { m.gate_bias = false; });
  }
  if (model.shared_gate) {
    add("shared_gate", "false", [](Model& m) { m.shared_gate = false; });
  }
  return options;
}

}  // namespace

FormulaCauses::FormulaCauses(const Manifest& manifest, const reference::Problem& problem,
                             const reference::Routing& routing) {
  for (const Option& option : OtherOptions(manifest.model)) {
    auto variant = std::make_unique<Variant>(Variant{option.name, option.value, manifest, nullptr});
    variant->manifest.model = option.model;
    variant->ledger = std::make_unique<Ledger>(variant->manifest, problem, routing);
    variants_.push_back(std::move(variant));
  }
}

void FormulaCauses::Require(const Suspect& right) {
  std::erase_if(variants_, [&](const auto& variant) {
    Misfit misfit;
    if (!variant->ledger->Knows(right.name())) {
      return false;
    }
    for (std::size_t index = 0; index < right.Pieces(); ++index) {
      const Piece& piece = right.Load(index);
      if (!right.Add(piece, {.values = WholeOf(*variant->ledger, right.name(), piece.slice)},
                     misfit)) {
        return true;
      }
    }
    return false;
  });
}

std::vector<Fit> FormulaCauses::Find(const Suspect& suspect) const {
  std::vector<Hypothesis> hypotheses;
  for (const auto& variant : variants_) {
    if (!variant->ledger->Knows(suspect.name())) {
      continue;  // not a result of that model
    }
    hypotheses.push_back({.explanation = {.cause = Cause::kWrongFormula, .option = variant->option},
                          .cost = kRareCost + ChoiceCost(variants_.size()),
                          .predict =
                              [&suspect, ledger = variant->ledger.get()](const Piece& piece,
                                                                         Prediction& prediction) {
                                prediction.values = WholeOf(*ledger, suspect.name(), piece.slice);
                                return true;
                              },
                          .finish =
                              [value = variant->value](Fit& fit) {
                                fit.option_value = value;
                                return true;
                              }});
  }
  return Test(suspect, std::move(hypotheses));
}

}  // namespace moe
