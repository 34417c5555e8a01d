#include "harness/layout/step_contract.h"

#include <fmt/format.h>

#include <algorithm>

namespace moe {
namespace {

const std::vector<Axis> kBatchAxes = {Axis::kCp, Axis::kDpShard, Axis::kDpReplicate};

// Collects tensors and leaves out axes of size 1, on which nothing can be owed.
class ContractBuilder {
 public:
  explicit ContractBuilder(const Layout& layout) { contract_.meshes = MakeMeshes(layout); }

  void Add(ContractTensor tensor) {
    const Mesh& mesh = contract_.meshes.Of(tensor.mesh);
    const auto is_trivial = [&](Axis axis) { return mesh.SizeOf(axis) == 1; };
    const bool is_spread = tensor.mesh == MeshKind::kExpert && tensor.result;
    if (is_spread && mesh.WorldSize() > 1 && is_trivial(Axis::kEdp)) {
      tensor.alone = {Axis::kEdp};
    }
    std::erase_if(tensor.owed, is_trivial);
    std::erase_if(tensor.settled, is_trivial);
    std::erase_if(tensor.placements, [&](const auto& entry) { return is_trivial(entry.first); });
    for (const Axis axis : mesh.axes) {
      if (!is_trivial(axis)) {
        tensor.placements.try_emplace(axis, Replicate());
      }
    }
    contract_.tensors.push_back(std::move(tensor));
  }

  StepContract Build() { return std::move(contract_); }

 private:
  StepContract contract_;
};

std::vector<Axis> TpAnd(std::vector<Axis> axes) {
  axes.insert(axes.begin(), Axis::kTp);
  return axes;
}

void AddActivations(const Model& model, const Layout& layout, const Program& program,
                    ContractBuilder& builder) {
  const bool inside = program.tp_backward == TpBackward::kSumInside;
  Placements rows = {
      {Axis::kDpReplicate, Shard(0)}, {Axis::kDpShard, Shard(0)}, {Axis::kCp, Shard(0)}};
  if (layout.sp) {
    rows[Axis::kTp] = Shard(0);
  }
  builder.Add(
      {.name = "y_TD", .shape = ShapeOf("y_TD", model), .placements = rows, .owed = {Axis::kTp}});
  ContractTensor d_x{.name = "d_x_TD", .shape = ShapeOf("d_x_TD", model), .placements = rows};
  (inside ? d_x.settled : d_x.owed) = {Axis::kTp};
  builder.Add(d_x);
  if (layout.IsFolded()) {
    // Each etp rank's hidden units give a share of the outputs of the rows that they all gathered,
    // and of the gradient of these rows.
    for (const char* rows_of_etp : {"y_routed_ND", "d_routed_ND"}) {
      builder.Add(
          {.name = rows_of_etp, .mesh = MeshKind::kExpert, .result = false, .owed = {Axis::kEtp}});
    }
  }
  if (!inside) {
    return;
  }
  const bool hidden_sharded = layout.etp > 1 && !layout.IsFolded();
  if (hidden_sharded) {
    builder.Add({.name = "d_routed_ND", .result = false, .owed = {Axis::kTp}});
  }
  ContractTensor d_routed{.name = "d_routed_TD", .result = false};
  (hidden_sharded ? d_routed.settled : d_routed.owed) = {Axis::kTp};
  builder.Add(d_routed);
  // The score's gradient <d_routed, x> is whole once d_routed_ND is summed; <d_y, expert output> is
  // a share while the expert output is partial; and with split tokens each rank has its own only.
  ContractTensor d_logits{.name = "d_logits_TE", .result = false};
  const bool whole = hidden_sharded && model.score_placement == ScorePlacement::kBeforeExperts;
  (whole ? d_logits.settled : d_logits.owed) = {Axis::kTp};
  builder.Add(d_logits);
  if (model.d_shared > 0) {
    builder.Add({.name = "d_shared_TD", .result = false, .owed = {Axis::kTp}});
  }
}

void AddParameters(const Model& model, const Program& program, ContractBuilder& builder) {
  for (const TensorInfo& result : ResultsOf(model)) {
    ContractTensor tensor{.name = result.name, .shape = result.shape};
    if (result.name == "y_TD" || result.name == "d_x_TD") {
      continue;
    }
    if (IsExpertWeight(result.name)) {
      tensor.mesh = MeshKind::kExpert;
      tensor.placements = {{Axis::kEp, Shard(0)},
                           {Axis::kEtp, Shard(result.name == "d_w2_EDF" ? 2 : 1)}};
      tensor.owed = {Axis::kEdp};
    } else if (result.name.starts_with("d_shared_w")) {
      tensor.placements = {{Axis::kTp, Shard(result.name == "d_shared_w2_DF" ? 1 : 0)}};
      tensor.owed = kBatchAxes;
    } else if (result.name.starts_with("d_gate") && program.tp_backward == TpBackward::kSumInside) {
      tensor.owed = kBatchAxes;
      tensor.settled = {Axis::kTp};
    } else {
      tensor.owed = TpAnd(kBatchAxes);
    }
    builder.Add(std::move(tensor));
  }
}

}  // namespace

std::string ToText(const Reduction& reduction) {
  return fmt::format("{}@{}", reduction.tensor, ToText(reduction.axis));
}

std::string_view ToText(TpBackward backward) {
  return backward == TpBackward::kSumAtBoundary ? "sum_at_boundary" : "sum_inside";
}

std::string_view ToText(DpReduction reduction) {
  return reduction == DpReduction::kSum ? "sum" : "mean";
}

const ContractTensor* StepContract::Find(std::string_view tensor) const {
  const auto found = std::find_if(tensors.begin(), tensors.end(),
                                  [&](const ContractTensor& t) { return t.name == tensor; });
  return found == tensors.end() ? nullptr : &*found;
}

std::vector<Reduction> StepContract::Owed() const {
  std::vector<Reduction> reductions;
  for (const ContractTensor& tensor : tensors) {
    for (const Axis axis : tensor.owed) {
      reductions.push_back({tensor.name, axis});
    }
  }
  return reductions;
}

std::vector<Reduction> StepContract::Settled() const {
  std::vector<Reduction> reductions;
  for (const ContractTensor& tensor : tensors) {
    for (const Axis axis : tensor.settled) {
      reductions.push_back({tensor.name, axis});
    }
  }
  return reductions;
}

bool StepContract::Owes(const Reduction& reduction) const {
  const ContractTensor* tensor = Find(reduction.tensor);
  return tensor != nullptr &&
         std::find(tensor->owed.begin(), tensor->owed.end(), reduction.axis) != tensor->owed.end();
}

bool StepContract::IsAlone(const Reduction& reduction) const {
  const ContractTensor* tensor = Find(reduction.tensor);
  return tensor != nullptr && std::find(tensor->alone.begin(), tensor->alone.end(),
                                        reduction.axis) != tensor->alone.end();
}

StepContract MakeContract(const Model& model, const Layout& layout, const Program& program) {
  ContractBuilder builder(layout);
  AddActivations(model, layout, program, builder);
  AddParameters(model, program, builder);
  StepContract contract = builder.Build();
  contract.dp_reduction = program.dp_reduction;
  return contract;
}

}  // namespace moe
