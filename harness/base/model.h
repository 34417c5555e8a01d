// What the MoE layer computes, apart from how ranks share the work: sizes and router options.
//
// Shape letters, used as suffixes of tensor names everywhere (logical sizes, never a local shard):
//   T tokens   D d_model   F d_expert (in shared_*: d_shared)   E experts   K top_k   N = T*K slots
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace moe {

enum class ScoreFunction { kSoftmax, kSigmoid };
enum class ScorePlacement { kBeforeExperts, kAfterExperts };

struct Model {
  std::int64_t tokens = 0;
  std::int64_t d_model = 0;
  std::int64_t d_expert = 0;
  std::int64_t experts = 0;
  std::int64_t top_k = 0;
  ScoreFunction score_function = ScoreFunction::kSoftmax;
  ScorePlacement score_placement = ScorePlacement::kAfterExperts;
  bool route_norm = false;         // divide the K chosen scores by their sum (+ 1e-20)
  double route_scale = 1.0;        // then multiply them by this
  bool gate_bias = false;          // gate_bias_E, added to the logits; has a gradient
  bool expert_bias = false;        // expert_bias_E, added to the scores for selection only
  std::int64_t expert_groups = 1;  // group-limited selection: equal groups of neighbouring experts,
  std::int64_t limited_groups = 1;  // of which only these many best ones may be chosen from
  std::int64_t d_shared = 0;        // hidden size of the shared experts; 0: none
  bool shared_gate = false;         // shared output times sigmoid(x . shared_gate_D)
};

// "softmax", "sigmoid"; "before_experts", "after_experts".
std::string_view ToText(ScoreFunction function);
std::string_view ToText(ScorePlacement placement);

// Something about a model that cannot be: the JSON key at fault, and a sentence that says what
// would be right ("top_k 9 is more than experts 8; use 1 to 8").
struct ModelFault {
  std::string_view key;
  std::string what;
};

// The first such thing, in the order of the keys above; nothing when all is well.
std::optional<ModelFault> FindFault(const Model& model);

}  // namespace moe
