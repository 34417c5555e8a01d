#include "harness/json/model_json.h"

#include <fmt/format.h>

namespace moe {
namespace {

void Read(const JsonNode& node, std::int64_t& value) {
  value = node.Integer();
}
void Read(const JsonNode& node, double& value) {
  value = node.Number();
}
void Read(const JsonNode& node, bool& value) {
  value = node.Bool();
}

template <typename Choice>
void ReadChoice(const JsonNode& node, Choice first, Choice second, Choice& value) {
  const std::string text = node.String();
  if (text != ToText(first) && text != ToText(second)) {
    node.Fail(fmt::format("is \"{}\"; use {} or {}", text, ToText(first), ToText(second)));
  }
  value = text == ToText(first) ? first : second;
}

void Read(const JsonNode& node, ScoreFunction& value) {
  ReadChoice(node, ScoreFunction::kSoftmax, ScoreFunction::kSigmoid, value);
}

void Read(const JsonNode& node, ScorePlacement& value) {
  ReadChoice(node, ScorePlacement::kBeforeExperts, ScorePlacement::kAfterExperts, value);
}

// Leaves the default where the key is missing.
template <typename Value>
void ReadOptional(const JsonNode& node, std::string_view key, Value& value) {
  if (const auto child = node.Find(key)) {
    Read(*child, value);
  }
}

}  // namespace

Model ParseModel(const JsonNode& node) {
  node.OnlyKeys({"tokens", "d_model", "d_expert", "experts", "top_k", "score_function",
                 "score_placement", "route_norm", "route_scale", "gate_bias", "expert_bias",
                 "expert_groups", "limited_groups", "d_shared", "shared_gate"});
  Model model;
  Read(node.At("tokens"), model.tokens);
  Read(node.At("d_model"), model.d_model);
  Read(node.At("d_expert"), model.d_expert);
  Read(node.At("experts"), model.experts);
  Read(node.At("top_k"), model.top_k);
  ReadOptional(node, "score_function", model.score_function);
  ReadOptional(node, "score_placement", model.score_placement);
  ReadOptional(node, "route_norm", model.route_norm);
  ReadOptional(node, "route_scale", model.route_scale);
  ReadOptional(node, "gate_bias", model.gate_bias);
  ReadOptional(node, "expert_bias", model.expert_bias);
  ReadOptional(node, "expert_groups", model.expert_groups);
  ReadOptional(node, "limited_groups", model.limited_groups);
  ReadOptional(node, "d_shared", model.d_shared);
  ReadOptional(node, "shared_gate", model.shared_gate);
  if (const auto fault = FindFault(model)) {
    node.Find(fault->key).value_or(node).Fail(fault->what);
  }
  return model;
}

Json ToJson(const Model& model) {
  Json json = {{"tokens", model.tokens},
               {"d_model", model.d_model},
               {"d_expert", model.d_expert},
               {"experts", model.experts},
               {"top_k", model.top_k}};
  const Model defaults;
  const auto write = [&](const char* key, const auto& value, const auto& default_value) {
    if (value != default_value) {
      json[key] = value;
    }
  };
  write("score_function", ToText(model.score_function), ToText(defaults.score_function));
  write("score_placement", ToText(model.score_placement), ToText(defaults.score_placement));
  write("route_norm", model.route_norm, defaults.route_norm);
  write("route_scale", model.route_scale, defaults.route_scale);
  write("gate_bias", model.gate_bias, defaults.gate_bias);
  write("expert_bias", model.expert_bias, defaults.expert_bias);
  write("expert_groups", model.expert_groups, defaults.expert_groups);
  write("limited_groups", model.limited_groups, defaults.limited_groups);
  write("d_shared", model.d_shared, defaults.d_shared);
  write("shared_gate", model.shared_gate, defaults.shared_gate);
  return json;
}

}  // namespace moe
