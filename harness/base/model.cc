#include "harness/base/model.h"

#include <fmt/format.h>

#include <cmath>

namespace moe {
namespace {

// Large enough for every model in use; small enough that no product of three sizes overflows.
constexpr std::int64_t kLargestSize = 1 << 20;

}  // namespace

std::string_view ToText(ScoreFunction function) {
  return function == ScoreFunction::kSoftmax ? "softmax" : "sigmoid";
}

std::string_view ToText(ScorePlacement placement) {
  return placement == ScorePlacement::kBeforeExperts ? "before_experts" : "after_experts";
}

std::optional<ModelFault> FindFault(const Model& m) {
  struct Size {
    std::string_view key;
    std::int64_t value;
    std::int64_t smallest;
  };
  for (const Size& size :
       {Size{"tokens", m.tokens, 1}, Size{"d_model", m.d_model, 1}, Size{"d_expert", m.d_expert, 1},
        Size{"experts", m.experts, 1}, Size{"top_k", m.top_k, 1},
        Size{"expert_groups", m.expert_groups, 1}, Size{"limited_groups", m.limited_groups, 1},
        Size{"d_shared", m.d_shared, 0}}) {
    if (size.value < size.smallest || size.value > kLargestSize) {
      return ModelFault{size.key, fmt::format("{} is {}; use {} to {}", size.key, size.value,
                                              size.smallest, kLargestSize)};
    }
  }
  if (m.top_k > m.experts) {
    return ModelFault{"top_k", fmt::format("top_k {} is more than experts {}; use 1 to {}", m.top_k,
                                           m.experts, m.experts)};
  }
  if (!std::isfinite(m.route_scale) || m.route_scale == 0.0) {
    return ModelFault{
        "route_scale",
        fmt::format("route_scale is {}; use a finite number other than 0", m.route_scale)};
  }
  if (m.experts % m.expert_groups != 0) {
    return ModelFault{"expert_groups", fmt::format("expert_groups {} does not divide experts {}",
                                                   m.expert_groups, m.experts)};
  }
  if (m.limited_groups > m.expert_groups) {
    return ModelFault{"limited_groups",
                      fmt::format("limited_groups {} is more than expert_groups {}; use 1 to {}",
                                  m.limited_groups, m.expert_groups, m.expert_groups)};
  }
  const std::int64_t choosable = m.experts / m.expert_groups * m.limited_groups;
  if (m.top_k > choosable) {
    return ModelFault{"top_k",
                      fmt::format("top_k {} is more than the {} experts of {} groups; use 1 to {}",
                                  m.top_k, choosable, m.limited_groups, choosable)};
  }
  if (m.shared_gate && m.d_shared == 0) {
    return ModelFault{"shared_gate", "shared_gate needs shared experts; set d_shared"};
  }
  return std::nullopt;
}

}  // namespace moe
