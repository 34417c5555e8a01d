#include "harness/base/tensor_table.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "harness/base/error.h"
#include "harness/base/text.h"

namespace moe {
namespace {

bool HasGateBias(const Model& model) {
  return model.gate_bias;
}
bool HasExpertBias(const Model& model) {
  return model.expert_bias;
}
bool HasShared(const Model& model) {
  return model.d_shared > 0;
}
bool HasSharedGate(const Model& model) {
  return model.shared_gate;
}

constexpr std::array kOfOutput = {Path::kRouted, Path::kShared};
constexpr std::array kOfInput = {Path::kRouted, Path::kGate, Path::kShared};
constexpr std::array kOfRouter = {Path::kScores};
constexpr std::array kOfShared = {Path::kShared};
constexpr std::array kOfExperts = {Path::kExperts};

// Rows of tokens and slices of experts are judged one by one. A vector over experts is one slice: a
// single number has no norm to speak of.
constexpr Unit UnitOf(std::string_view dims) {
  return dims.starts_with('T')                      ? Unit::kToken
         : dims.starts_with('E') && dims.size() > 1 ? Unit::kExpert
                                                    : Unit::kWhole;
}

constexpr TensorRow Input(std::string_view name, std::string_view dims,
                          bool (*is_in)(const Model&) = nullptr) {
  return {.name = name, .dims = dims, .role = Role::kInput, .unit = UnitOf(dims), .is_in = is_in};
}

constexpr TensorRow Parameter(std::string_view name, std::string_view dims, MeshKind mesh,
                              bool (*is_in)(const Model&) = nullptr) {
  return {.name = name,
          .dims = dims,
          .role = Role::kParameter,
          .mesh = mesh,
          .unit = UnitOf(dims),
          .is_in = is_in};
}

constexpr TensorRow Gradient(std::string_view name, std::string_view dims,
                             std::span<const Path> paths, MeshKind mesh,
                             bool (*is_in)(const Model&) = nullptr) {
  return {.name = name,
          .dims = dims,
          .role = Role::kGradient,
          .mesh = mesh,
          .unit = UnitOf(dims),
          .of = name.substr(2),
          .paths = paths,
          .is_linear = true,
          .is_in = is_in};
}

constexpr TensorRow Inside(std::string_view name, std::string_view dims,
                           MeshKind mesh = MeshKind::kDense,
                           bool (*is_in)(const Model&) = nullptr) {
  return {.name = name, .dims = dims, .mesh = mesh, .is_in = is_in};
}

constexpr MeshKind kDense = MeshKind::kDense;
constexpr MeshKind kExpert = MeshKind::kExpert;

constexpr std::array kTable = {
    Input("x_TD", "TD"),
    Input("d_y_TD", "TD"),
    Parameter("gate_ED", "ED", kDense),
    Parameter("w1_EFD", "EFD", kExpert),
    Parameter("w3_EFD", "EFD", kExpert),
    Parameter("w2_EDF", "EDF", kExpert),
    Parameter("gate_bias_E", "E", kDense, HasGateBias),
    Input("expert_bias_E", "E", HasExpertBias),
    Parameter("shared_w1_FD", "SD", kDense, HasShared),
    Parameter("shared_w3_FD", "SD", kDense, HasShared),
    Parameter("shared_w2_DF", "DS", kDense, HasShared),
    Parameter("shared_gate_D", "D", kDense, HasSharedGate),

    TensorRow{.name = "y_TD",
              .dims = "TD",
              .role = Role::kOutput,
              .unit = Unit::kToken,
              .paths = kOfOutput},
    Gradient("d_x_TD", "TD", kOfInput, kDense),
    Gradient("d_gate_ED", "ED", kOfRouter, kDense),
    Gradient("d_w1_EFD", "EFD", kOfExperts, kExpert),
    Gradient("d_w3_EFD", "EFD", kOfExperts, kExpert),
    Gradient("d_w2_EDF", "EDF", kOfExperts, kExpert),
    Gradient("d_gate_bias_E", "E", kOfRouter, kDense, HasGateBias),
    Gradient("d_shared_w1_FD", "SD", kOfShared, kDense, HasShared),
    Gradient("d_shared_w3_FD", "SD", kOfShared, kDense, HasShared),
    Gradient("d_shared_w2_DF", "DS", kOfShared, kDense, HasShared),
    Gradient("d_shared_gate_D", "D", kOfShared, kDense, HasSharedGate),

    TensorRow{.name = "topk_expert_TK", .dims = "TK", .role = Role::kChoice, .unit = Unit::kToken},
    TensorRow{.name = "tokens_per_expert_E", .dims = "E", .role = Role::kCount},

    TensorRow{.name = "logits_TE", .dims = "TE", .role = Role::kStage},
    TensorRow{.name = "scores_TE", .dims = "TE", .role = Role::kStage},
    TensorRow{.name = "routed_in_ND", .dims = "ND", .role = Role::kStage, .mesh = kExpert},
    TensorRow{.name = "routed_out_ND", .dims = "ND", .role = Role::kStage, .mesh = kExpert},
    Inside("x_all_TD", "TD"),  // of all ranks of tp
    Inside("topk_score_TK", "TK"),
    Inside("y_routed_ND", "ND", kExpert),
    Inside("y_rows_ND", "ND"),  // back with the tokens that the rows are of
    Inside("y_routed_TD", "TD"),
    Inside("y_shared_TD", "TD", kDense, HasShared),
    Inside("d_y_all_TD", "TD"),
    Inside("d_routed_out_ND", "ND", kExpert),
    Inside("d_routed_ND", "ND", kExpert),
    Inside("d_routed_in_ND", "ND", kExpert),
    Inside("d_rows_ND", "ND"),
    Inside("d_routed_TD", "TD"),
    Inside("d_scores_TE", "TE"),
    Inside("d_logits_TE", "TE"),
    Inside("d_shared_TD", "TD", kDense, HasShared),
};

}  // namespace

std::string_view ToText(MeshKind kind) {
  return kind == MeshKind::kDense ? "dense" : "expert";
}

std::string_view ToText(Unit unit) {
  switch (unit) {
    case Unit::kToken:
      return "token";
    case Unit::kExpert:
      return "expert";
    case Unit::kWhole:
      return "whole slice";
  }
  return "";
}

std::int64_t SizeOf(Dim dim, const Model& model) {
  switch (dim) {
    case Dim::kT:
      return model.tokens;
    case Dim::kD:
      return model.d_model;
    case Dim::kF:
      return model.d_expert;
    case Dim::kS:
      return model.d_shared;
    case Dim::kE:
      return model.experts;
    case Dim::kK:
      return model.top_k;
    case Dim::kN:
      return model.tokens * model.top_k;
  }
  return 0;
}

std::string_view ToText(Path path) {
  switch (path) {
    case Path::kRouted:
      return "routed";
    case Path::kGate:
      return "gate";
    case Path::kShared:
      return "shared";
    case Path::kScores:
      return "scores";
    case Path::kExperts:
      return "experts";
  }
  return "";
}

std::optional<Path> PathFromText(std::string_view text) {
  for (const Path path :
       {Path::kRouted, Path::kGate, Path::kShared, Path::kScores, Path::kExperts}) {
    if (ToText(path) == text) {
      return path;
    }
  }
  return std::nullopt;
}

bool TensorRow::IsOfParameter() const {
  return role == Role::kGradient && TensorOf(of).role == Role::kParameter;
}

std::optional<std::size_t> TensorRow::PlaceOf(Dim dim) const {
  const std::size_t place = dims.find(static_cast<char>(dim));
  return place == std::string_view::npos ? std::nullopt : std::optional(place);
}

std::span<const TensorRow> TensorTable() {
  return kTable;
}

const TensorRow* FindTensor(std::string_view name) {
  const auto* const row = std::find_if(kTable.begin(), kTable.end(),
                                       [&](const TensorRow& r) { return r.name == name; });
  return row == kTable.end() ? nullptr : &*row;
}

const TensorRow& TensorOf(std::string_view name) {
  const TensorRow* row = FindTensor(name);
  if (row == nullptr) {
    throw Error("tensor", fmt::format("\"{}\" is none that a step has", Printable(name)));
  }
  return *row;
}

const TensorRow* GradientOf(const TensorRow& tensor) {
  const auto* const row = std::find_if(kTable.begin(), kTable.end(),
                                       [&](const TensorRow& r) { return r.of == tensor.name; });
  return row == kTable.end() ? nullptr : &*row;
}

std::string DescribeUnknown(std::string_view name, const Model& model) {
  std::vector<std::string_view> known;
  for (const TensorRow& row : kTable) {
    const bool is_inside = row.role == Role::kStage || row.role == Role::kInside;
    if (!is_inside && row.IsIn(model)) {
      known.push_back(row.name);
    }
  }
  return fmt::format("\"{}\" is not a tensor of this model; the nearest is {}, and known are {}",
                     Printable(name), NearestOf(name, known), fmt::join(known, ", "));
}

}  // namespace moe
