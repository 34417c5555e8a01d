#include "harness/explain/model_variants.h"

namespace moe {

std::vector<ModelVariant> VariantsOf(const Model& model) {
  std::vector<ModelVariant> variants;
  const auto add = [&](const char* option, std::string_view value, auto change) {
    Model other = model;
    change(other);
    variants.push_back({option, std::string(value), other});
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
  return variants;
}

}  // namespace moe
