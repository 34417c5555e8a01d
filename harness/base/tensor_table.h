// The one table of tensors: every tensor that a step, a dump, a fault or a report can name, and all
// that its name stands for. Who wants to know how a tensor lies, what is judged on its own in it or
// what it is made of asks here; no other place knows a tensor by its name but the texts of the two
// steps. How tensors come of one another is in harness/layout/step_graph.h.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "harness/base/model.h"

namespace moe {

enum class Role {
  kInput,      // of the problem, but no parameter
  kParameter,  // of the problem; its gradient is d_<name>
  kOutput,     // of the layer, rows of tokens
  kGradient,
  kChoice,  // whole numbers: which experts a token chose
  kCount,   // whole numbers, which ranks' shares add up to
  kStage,   // lives inside the step only; a producer may compute it in another dtype (casts)
  kInside,  // lives inside the step only; sums over ranks name it
};

// The two views of the ranks (harness/layout/layout.h) on which a tensor can lie.
enum class MeshKind { kDense, kExpert };
std::string_view ToText(MeshKind kind);  // "dense", "expert"

// What is judged on its own: the row of a token, the slice of an expert, or all that a rank holds.
enum class Unit { kToken, kExpert, kWhole };
std::string_view ToText(Unit unit);  // "token", "expert", "whole slice"

// Dimensions, by the letter that stands for them in names. Logical sizes, never a local shard.
enum class Dim : char {
  kT = 'T',  // tokens
  kD = 'D',  // d_model
  kF = 'F',  // d_expert, the hidden units of an expert
  kS = 'S',  // d_shared, those of the shared experts; names have an F for it
  kE = 'E',  // experts
  kK = 'K',  // top_k
  kN = 'N',  // T * K slots
};
std::int64_t SizeOf(Dim dim, const Model& model);

// The ways along which a result is reached: the parts that are added up in the output or in the
// gradient of the layer's input, or the one way that there is.
enum class Path { kRouted, kGate, kShared, kScores, kExperts };
std::string_view ToText(Path path);  // "routed", "gate", "shared", "scores", "experts"
std::optional<Path> PathFromText(std::string_view text);

struct TensorRow {
  std::string_view name;  // "d_w1_EFD"
  std::string_view dims;  // letters of Dim, outermost first: "EFD"; none of a scalar
  Role role = Role::kInside;
  MeshKind mesh = MeshKind::kDense;
  Unit unit = Unit::kWhole;
  std::string_view of;          // kGradient: what it is the gradient of, "w1_EFD"
  std::span<const Path> paths;  // of a result: all that can feed it, in the order of reports
  bool is_linear = false;       // in the output's cotangent
  bool (*is_in)(const Model& model) = nullptr;  // whether the model has it; null: every model

  bool IsIn(const Model& model) const { return is_in == nullptr || is_in(model); }
  bool IsInput() const { return role == Role::kInput || role == Role::kParameter; }
  // Whether a step owes it, and it is compared with the reference in floating point.
  bool IsResult() const { return role == Role::kOutput || role == Role::kGradient; }
  // Whether it is the gradient of a parameter.
  bool IsOfParameter() const;
  // Whether it has whole numbers, which are compared exactly.
  bool IsInteger() const { return role == Role::kChoice || role == Role::kCount; }
  // Where it has this dimension, if it has; whether the first is tokens, and it lies as rows do.
  std::optional<std::size_t> PlaceOf(Dim dim) const;
  bool HasRows() const { return PlaceOf(Dim::kT) == 0; }
};

// All rows: inputs and parameters, results in the order of reports, whole numbers, the rest.
std::span<const TensorRow> TensorTable();

// The row of a name; of none that there is, null, or Error("tensor", DescribeUnknown).
const TensorRow* FindTensor(std::string_view name);
const TensorRow& TensorOf(std::string_view name);

// The gradient of a parameter or of the layer's input; null where there is none.
const TensorRow* GradientOf(const TensorRow& tensor);

// "is no tensor; the nearest is d_gate_ED, and known are ..." with the names that a model has and
// a dump can hold.
std::string DescribeUnknown(std::string_view name, const Model& model);

// Tensors that there is but one of, for those who deal with that one alone.
namespace tensor {
inline constexpr char x_TD[] = "x_TD";
inline constexpr char d_y_TD[] = "d_y_TD";
inline constexpr char gate_ED[] = "gate_ED";
inline constexpr char gate_bias_E[] = "gate_bias_E";
inline constexpr char expert_bias_E[] = "expert_bias_E";
inline constexpr char y_TD[] = "y_TD";
inline constexpr char d_x_TD[] = "d_x_TD";
inline constexpr char d_gate_ED[] = "d_gate_ED";
inline constexpr char topk_expert_TK[] = "topk_expert_TK";
inline constexpr char tokens_per_expert_E[] = "tokens_per_expert_E";
inline constexpr char logits_TE[] = "logits_TE";
inline constexpr char scores_TE[] = "scores_TE";
inline constexpr char routed_in_ND[] = "routed_in_ND";
inline constexpr char routed_out_ND[] = "routed_out_ND";
}  // namespace tensor

}  // namespace moe
