#include "harness/report/claims_text.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "harness/base/tensors.h"
#include "harness/measure/tolerance.h"

namespace moe {
namespace {

std::string ClaimText(const Placement& placement) {
  switch (placement.kind) {
    case Placement::Kind::kReplicate:
      return "R";
    case Placement::Kind::kPartial:
      return "P (summed here)";
    case Placement::Kind::kShard:
    case Placement::Kind::kStridedShard:
      return ToText(placement);
  }
  return "";
}

// "S(0) on ep, R on etp", axes of size 1 left out.
std::string ClaimsOf(const Manifest& manifest, const std::string& name) {
  const DumpedTensor& tensor = manifest.tensors.at(name);
  const Mesh& mesh = manifest.meshes.Of(tensor.mesh);
  std::vector<std::string> parts;
  if (RowsFollowTokens(manifest, name)) {
    parts.emplace_back("rows as in tokens");
  }
  for (const Axis axis : mesh.axes) {
    const Placement placement = PlacementOn(tensor.placements, axis);
    const bool is_row = RowsFollowTokens(manifest, name) && placement.IsShard() && !placement.dim;
    if (mesh.SizeOf(axis) > 1 && !is_row) {
      parts.push_back(fmt::format("{} on {}", ClaimText(placement), ToText(axis)));
    }
  }
  if (tensor.scale != 1.0) {  // exactly: the default
    parts.push_back(fmt::format("times {:g}", tensor.scale));
  }
  return parts.empty() ? "whole" : fmt::format("{}", fmt::join(parts, ", "));
}

}  // namespace

std::vector<std::string> DescribeClaims(const Manifest& manifest) {
  std::vector<std::pair<std::string, std::vector<std::string>>> groups;  // claims, tensors
  for (const TensorInfo& result : ResultsOf(manifest.model)) {
    if (!manifest.tensors.contains(result.name)) {
      continue;
    }
    const std::string claims = ClaimsOf(manifest, result.name);
    auto group = std::find_if(groups.begin(), groups.end(),
                              [&](const auto& entry) { return entry.first == claims; });
    if (group == groups.end()) {
      group = groups.insert(groups.end(), {claims, {}});
    }
    group->second.push_back(result.name);
  }
  std::vector<std::string> lines;
  for (const auto& [claims, tensors] : groups) {
    lines.push_back(fmt::format("{}: {}", fmt::join(tensors, ", "), claims));
  }
  return lines;
}

std::vector<std::string> DescribeGaps(const Manifest& manifest) {
  const auto why = [&](const std::string& name, std::string_view otherwise) {
    const auto missing = manifest.missing.find(name);
    const auto& left_out = manifest.not_dumped;
    const bool on_purpose = std::find(left_out.begin(), left_out.end(), name) != left_out.end();
    return missing != manifest.missing.end() ? missing->second
           : on_purpose                      ? "left out on purpose (not_dumped)"
                                             : std::string(otherwise);
  };
  std::vector<std::string> gaps;
  std::vector<std::string> alone;  // gradients of parameters without replicas
  for (const TensorInfo& result : ResultsOf(manifest.model)) {
    if (!manifest.tensors.contains(result.name)) {
      gaps.push_back(
          fmt::format("{}: {}", result.name, why(result.name, "not dumped, without a reason")));
    } else if (TensorOf(result.name).IsOfParameter() &&
               !IsClaimed(manifest, result.name, Placement::Kind::kReplicate)) {
      alone.push_back(result.name);
    }
  }
  if (!manifest.tensors.contains(tensor::topk_expert_TK)) {
    gaps.push_back(fmt::format("routing, but for its effects: topk_expert_TK: {}",
                               why(tensor::topk_expert_TK, "not dumped")));
  }
  if (!manifest.tensors.contains(tensor::tokens_per_expert_E)) {
    gaps.push_back(fmt::format("token counts: tokens_per_expert_E: {}",
                               why(tensor::tokens_per_expert_E, "not dumped")));
  }
  if (!alone.empty() && manifest.WorldSize() > 1) {
    gaps.push_back(
        fmt::format("replicas of {}: no two ranks hold the same slice", fmt::join(alone, ", ")));
  }
  return gaps;
}

std::string DescribeFloor(const Manifest& manifest, const std::vector<CastEffect>& effects) {
  std::vector<std::string> casts;
  for (const auto& [tensor, dtype] : CoarserCasts(manifest)) {
    casts.push_back(fmt::format("{} in {}", tensor, ToText(dtype)));
  }
  std::vector<std::string> allowed;
  std::vector<std::string> untouched;
  for (const CastEffect& effect : effects) {
    if (CastsReaching(manifest, effect.tensor).empty()) {
      untouched.push_back(effect.tensor);
    } else if (allowed.empty()) {  // said in full once
      allowed.push_back(fmt::format("{} may be off by {:.1e} ({:.1e} without)", effect.tensor,
                                    effect.with, effect.without));
    } else {
      allowed.push_back(
          fmt::format("{} {:.1e} ({:.1e})", effect.tensor, effect.with, effect.without));
    }
  }
  return fmt::format(
      "{}: {}{}", fmt::join(casts, ", "),
      allowed.empty() ? "changes nothing here" : fmt::format("{}", fmt::join(allowed, ", ")),
      untouched.empty() ? "" : fmt::format("; {} as without", fmt::join(untouched, ", ")));
}

}  // namespace moe
