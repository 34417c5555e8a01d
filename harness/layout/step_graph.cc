#include "harness/layout/step_graph.h"

#include <algorithm>
#include <array>
#include <set>

namespace moe {
namespace {

constexpr std::array kBatchAxes = {Axis::kDpReplicate, Axis::kDpShard, Axis::kCp};

using Names = std::set<std::string_view>;

// All that is made of `of`, these among it.
Names MadeOf(const std::vector<Product>& products, Names of) {
  for (const Product& product : products) {  // in an order in which they can be made
    if (std::any_of(product.reads.begin(), product.reads.end(),
                    [&](const Read& read) { return of.contains(read.tensor); })) {
      of.insert(product.writes);
    }
  }
  return of;
}

// The dimensions summed over in all that `tensor` is made of, slots as the tokens that they are of.
void AddSums(const std::vector<Product>& products, std::string_view tensor,
             std::optional<Path> path, std::set<Dim>& sums) {
  for (const Product& product : products) {
    if (product.writes != tensor) {
      continue;
    }
    for (const Dim dim : product.sums) {
      sums.insert(dim == Dim::kN ? Dim::kT : dim);
    }
    for (const Read& read : product.reads) {
      if (!path || !read.path || read.path == path) {
        AddSums(products, read.tensor, std::nullopt, sums);
      }
    }
  }
}

// How what a step is given lies before it begins, and a result when the step is over: rows by
// tokens, experts by owner, hidden units by slice.
Placements PlacementsOf(const TensorRow& row, const Layout& layout) {
  Placements placements;
  const auto cut = [&](Axis axis, Dim dim) {
    if (const auto place = row.PlaceOf(dim)) {
      placements[axis] = Shard(static_cast<std::int64_t>(*place));
    }
  };
  if (row.mesh == MeshKind::kExpert) {
    cut(Axis::kEp, Dim::kE);
    cut(Axis::kEtp, Dim::kF);
    return placements;
  }
  for (const Axis axis : kBatchAxes) {
    cut(axis, Dim::kT);
  }
  cut(Axis::kTp, Dim::kS);
  if (layout.sp) {
    cut(Axis::kTp, Dim::kT);
  }
  return placements;
}

Lies LiesOfPlacements(const TensorRow& row, const Placements& placements, const Mesh& mesh) {
  Lies lies;
  for (const auto& [axis, placement] : placements) {
    if (mesh.SizeOf(axis) > 1) {
      const char letter = row.dims[static_cast<std::size_t>(placement.dim)];
      lies[axis] = {Lie::Kind::kCut, static_cast<Dim>(letter)};
    }
  }
  return lies;
}

// How the result of a product lies: where an operand is a share it is one too, since it is linear
// in that; where operands are cut it is cut alike, and along a dimension that is summed over, a
// share.
Lies LiesOfProduct(const Product& product, const std::map<std::string_view, Lies>& of) {
  Lies lies;
  for (const Read& read : product.reads) {
    for (const auto& [axis, lie] : of.at(read.tensor)) {
      const auto is_same = [&](Dim dim) {
        return dim == lie.dim || (dim == Dim::kN && lie.dim == Dim::kT);
      };
      const bool is_summed = std::any_of(product.sums.begin(), product.sums.end(), is_same);
      const Lie::Kind kind = is_summed ? Lie::Kind::kShare : lie.kind;
      const auto known = lies.find(axis);
      const bool is_told = known != lies.end() && known->second.kind == Lie::Kind::kShare &&
                           (kind != Lie::Kind::kShare || known->second.dim != Dim::kT);
      if (!is_told) {
        lies[axis] = {kind, lie.dim};
      }
    }
  }
  return lies;
}

class Propagation {
 public:
  Propagation(const Layout& layout, const Meshes& meshes) : layout_(layout), meshes_(meshes) {}

  Lies Move(enum Move move, Lies lies) const {
    switch (move) {
      case Move::kNone:
        return lies;
      case Move::kGather:
        lies.erase(Axis::kTp);
        return lies;
      case Move::kDispatch:
        return Dispatched();
      case Move::kCombine:
        return Combined(lies);
      case Move::kPad:
        if (const auto tp = lies.find(Axis::kTp); tp != lies.end()) {
          tp->second.kind = Lie::Kind::kShare;
        }
        return lies;
    }
    return lies;
  }

 private:
  // Rows of other tokens on every rank of edp, for other experts on every rank of ep. The ranks of
  // etp have the same rows, as they had from the start or once they gathered one another's.
  Lies Dispatched() const {
    Lies lies;
    if (meshes_.expert.SizeOf(Axis::kEdp) > 1) {
      lies[Axis::kEdp] = {Lie::Kind::kCut, Dim::kT};
    }
    if (meshes_.expert.SizeOf(Axis::kEp) > 1) {
      lies[Axis::kEp] = {Lie::Kind::kCut, Dim::kE};
    }
    return lies;
  }

  // Rows come back to where they were sent from: other ones on every rank of tp that had sent its
  // own; else shares where the ranks of etp, which are those of tp, have slices of hidden units.
  Lies Combined(const Lies& at_experts) const {
    Lies lies;
    for (const Axis axis : kBatchAxes) {
      if (meshes_.dense.SizeOf(axis) > 1) {
        lies[axis] = {Lie::Kind::kCut, Dim::kT};
      }
    }
    const auto etp = at_experts.find(Axis::kEtp);
    if (layout_.SplitsTokensOverTp()) {
      lies[Axis::kTp] = {Lie::Kind::kCut, Dim::kT};
    } else if (etp != at_experts.end()) {
      lies[Axis::kTp] = etp->second;
    }
    return lies;
  }

  const Layout& layout_;
  const Meshes& meshes_;
};

// Where a program may sum, by what it writes there, and how the contract calls it.
struct SumPlace {
  std::string_view at;
  std::string_view name;
  std::vector<Axis> axes;  // in the order in which they are summed over
};

std::vector<SumPlace> SumPlacesOf(const Layout& layout, const Program& program) {
  std::vector<SumPlace> places = {{"y_TD", "y_TD", {Axis::kTp}}, {"d_x_TD", "d_x_TD", {Axis::kTp}}};
  if (layout.IsFolded()) {
    // Each etp rank's hidden units give a share of the outputs of the rows that they all gathered,
    // and of the gradient of these rows.
    places.push_back({"y_routed_ND", "y_routed_ND", {Axis::kEtp}});
    places.push_back({"d_routed_ND", "d_routed_ND", {Axis::kEtp}});
  }
  if (program.tp_backward == TpBackward::kSumInside) {
    places.push_back({"d_rows_ND", "d_routed_ND", {Axis::kTp}});
    places.push_back({"d_routed_TD", "d_routed_TD", {Axis::kTp}});
    places.push_back({"d_logits_TE", "d_logits_TE", {Axis::kTp}});
    places.push_back({"d_shared_TD", "d_shared_TD", {Axis::kTp}});
  }
  for (const TensorRow& row : TensorTable()) {
    if (row.IsOfParameter()) {
      places.push_back(
          {row.name, row.name,
           row.mesh == MeshKind::kExpert
               ? std::vector{Axis::kEtp, Axis::kEp, Axis::kEdp}
               : std::vector{Axis::kTp, Axis::kCp, Axis::kDpShard, Axis::kDpReplicate}});
    }
  }
  return places;
}

// The tensor of a contract at which a place sums, without its sums.
ContractTensor TensorAt(const SumPlace& place, const Model& model, const Layout& layout,
                        const Meshes& meshes) {
  const TensorRow& row = TensorOf(place.name);
  ContractTensor tensor{
      .name = std::string(place.name),
      .mesh = meshes.dense.Has(place.axes.front()) ? MeshKind::kDense : MeshKind::kExpert,
      .result = row.IsResult()};
  const Mesh& mesh = meshes.Of(tensor.mesh);
  if (tensor.result) {
    tensor.shape = ShapeOf(row, model);
    tensor.placements = PlacementsOf(row, layout);
  }
  std::erase_if(tensor.placements,
                [&](const auto& entry) { return mesh.SizeOf(entry.first) == 1; });
  for (const Axis axis : mesh.axes) {
    if (mesh.SizeOf(axis) > 1) {
      tensor.placements.try_emplace(axis, Replicate());
    }
  }
  const bool is_spread = tensor.mesh == MeshKind::kExpert && tensor.result;
  if (is_spread && mesh.WorldSize() > 1 && mesh.SizeOf(Axis::kEdp) == 1) {
    tensor.alone = {Axis::kEdp};
  }
  return tensor;
}

}  // namespace

std::vector<Product> ProductsOf(const Model& model) {
  const bool before = model.score_placement == ScorePlacement::kBeforeExperts;
  const auto scored = [](std::vector<Read> reads, bool is_scored) {
    if (is_scored) {
      reads.push_back({"topk_score_TK"});
    }
    return reads;
  };
  std::vector<Product> products = {
      {"enter", "x_all_TD", {{"x_TD"}}, {}, Move::kGather},
      {"router", "logits_TE", {{"x_all_TD"}, {"gate_ED"}}, {Dim::kD}},
      {"router", "scores_TE", {{"logits_TE"}}},
      {"router", "topk_score_TK", {{"scores_TE"}}},
      {"dispatch", "routed_in_ND", scored({{"x_all_TD"}}, before), {}, Move::kDispatch},
      {"experts", "y_routed_ND", {{"routed_in_ND"}, {"w1_EFD"}, {"w3_EFD"}, {"w2_EDF"}}, {Dim::kF}},
      {"experts", "routed_out_ND", {{"y_routed_ND"}}},
      {"combine", "y_rows_ND", {{"routed_out_ND"}}, {Dim::kE}, Move::kCombine},
      {"combine", "y_routed_TD", scored({{"y_rows_ND"}}, !before), {}, Move::kPad},
      {"shared",
       "y_shared_TD",
       {{"x_all_TD"}, {"shared_w1_FD"}, {"shared_w3_FD"}, {"shared_w2_DF"}, {"shared_gate_D"}},
       {Dim::kS}},
      {"leave", "y_TD", {{"y_routed_TD", Path::kRouted}, {"y_shared_TD", Path::kShared}}},

      {"leave, backward", "d_y_all_TD", {{"d_y_TD"}}, {}, Move::kGather},
      {"combine, backward",
       "d_routed_out_ND",
       scored({{"d_y_all_TD"}}, !before),
       {},
       Move::kDispatch},
      {"experts, backward",
       "d_routed_ND",
       {{"d_routed_out_ND"}, {"routed_in_ND"}, {"w1_EFD"}, {"w3_EFD"}, {"w2_EDF"}},
       {Dim::kF}},
      {"experts, backward", "d_routed_in_ND", {{"d_routed_ND"}}},
      {"dispatch, backward", "d_rows_ND", {{"d_routed_in_ND"}}, {Dim::kE}, Move::kCombine},
      {"dispatch, backward", "d_routed_TD", scored({{"d_rows_ND"}}, before), {}, Move::kPad},
      before ? Product{"dispatch, backward",
                       "d_scores_TE",
                       {{"d_rows_ND"}, {"x_all_TD"}},
                       {},
                       Move::kPad}
             : Product{"combine, backward",
                       "d_scores_TE",
                       {{"d_y_all_TD"}, {"y_rows_ND"}},
                       {},
                       Move::kPad},
      {"router, backward", "d_logits_TE", {{"d_scores_TE"}, {"scores_TE"}}},
      {"shared, backward",
       "d_shared_TD",
       {{"d_y_all_TD"},
        {"x_all_TD"},
        {"shared_w1_FD"},
        {"shared_w3_FD"},
        {"shared_w2_DF"},
        {"shared_gate_D"}},
       {Dim::kS}},
      {"enter, backward",
       "d_x_TD",
       {{"d_routed_TD", Path::kRouted},
        {"d_logits_TE", Path::kGate},
        {"d_shared_TD", Path::kShared}}},

      {"router, backward", "d_gate_ED", {{"d_logits_TE"}, {"x_all_TD"}}, {Dim::kT}},
      {"router, backward", "d_gate_bias_E", {{"d_logits_TE"}}, {Dim::kT}},
      {"shared, backward",
       "d_shared_gate_D",
       {{"d_y_all_TD"}, {"y_shared_TD"}, {"x_all_TD"}},
       {Dim::kT}},
  };
  for (const char* gradient : {"d_w1_EFD", "d_w3_EFD", "d_w2_EDF"}) {
    products.push_back({"experts, backward",
                        gradient,
                        {{"d_routed_out_ND"}, {"routed_in_ND"}, {"w1_EFD"}, {"w3_EFD"}, {"w2_EDF"}},
                        {Dim::kN}});
  }
  for (const char* gradient : {"d_shared_w1_FD", "d_shared_w3_FD", "d_shared_w2_DF"}) {
    products.push_back(
        {"shared, backward",
         gradient,
         {{"d_y_all_TD"}, {"x_all_TD"}, {"shared_w1_FD"}, {"shared_w3_FD"}, {"shared_w2_DF"}},
         {Dim::kT}});
  }
  const auto is_missing = [&](std::string_view tensor) { return !TensorOf(tensor).IsIn(model); };
  for (Product& product : products) {
    std::erase_if(product.reads, [&](const Read& read) { return is_missing(read.tensor); });
  }
  std::erase_if(products, [&](const Product& product) { return is_missing(product.writes); });
  return products;
}

StepGraph::StepGraph(const Model& model, const Layout& layout, const Program& program)
    : model_(model), layout_(layout), program_(program), products_(ProductsOf(model)) {
  contract_.meshes = MakeMeshes(layout);
  contract_.dp_reduction = program.dp_reduction;
  const Meshes& meshes = contract_.meshes;
  const Propagation propagation(layout, meshes);
  const std::vector<SumPlace> places = SumPlacesOf(layout, program);

  // As they lie for those who read them: after the sums.
  std::map<std::string_view, Lies> read;
  for (const TensorRow& row : TensorTable()) {
    if (row.IsInput()) {
      read[row.name] = LiesOfPlacements(row, PlacementsOf(row, layout), meshes.Of(row.mesh));
    }
  }
  std::map<std::string_view, ContractTensor> summed;  // by what is written at the place
  for (const Product& product : products_) {
    Lies lies = propagation.Move(product.move, LiesOfProduct(product, read));
    lies_[product.writes] = lies;
    if (product.move == Move::kGather &&
        read.at(product.reads.front().tensor).contains(Axis::kTp)) {
      gathers_.push_back({std::string(product.reads.front().tensor), Axis::kTp});
    }
    for (const SumPlace& place : places) {
      if (place.at != product.writes) {
        continue;
      }
      ContractTensor tensor = TensorAt(place, model, layout, meshes);
      for (const Axis axis : place.axes) {
        const auto lie = lies.find(axis);
        if (meshes.Of(tensor.mesh).SizeOf(axis) == 1 ||
            (lie != lies.end() && lie->second.kind == Lie::Kind::kCut)) {
          continue;
        }
        (lie == lies.end() ? tensor.settled : tensor.owed).push_back(axis);
        lies.erase(axis);
      }
      summed[product.writes] = std::move(tensor);
    }
    read[product.writes] = std::move(lies);
  }
  for (const SumPlace& place : places) {
    const auto tensor = summed.find(place.at);
    const bool has_sums =
        tensor != summed.end() &&
        (tensor->second.result || !tensor->second.owed.empty() || !tensor->second.settled.empty());
    if (has_sums) {
      contract_.tensors.push_back(tensor->second);
    }
  }
}

const Lies& StepGraph::LiesOf(std::string_view tensor) const {
  return lies_.at(tensor);
}

bool StepGraph::HasPath(Path path) const {
  return std::any_of(products_.begin(), products_.end(), [&](const Product& product) {
    const TensorRow& row = TensorOf(product.writes);
    const bool is_only_way = row.paths.size() == 1 && row.paths.front() == path;
    return is_only_way || std::any_of(product.reads.begin(), product.reads.end(),
                                      [&](const Read& read) { return read.path == path; });
  });
}

std::vector<Reach> StepGraph::ReachOf(std::string_view tensor) const {
  const bool is_result = TensorOf(tensor).IsResult();
  const Names reached = is_result ? Names{tensor} : MadeOf(products_, {tensor});
  std::vector<Reach> reach;
  for (const TensorRow& row : TensorTable()) {
    if (!row.IsResult() || !row.IsIn(model_) || !reached.contains(row.name)) {
      continue;
    }
    Reach of_row{.result = row.name};
    for (const Product& product : products_) {
      for (const Read& read : product.reads) {
        if (product.writes == row.name && read.path &&
            (is_result || reached.contains(read.tensor))) {
          of_row.paths.push_back(*read.path);
        }
      }
    }
    reach.push_back(std::move(of_row));
  }
  return reach;
}

std::vector<Reduction> StepGraph::SumsBehind(std::string_view result) const {
  std::vector<Reduction> sums;
  for (const ContractTensor& tensor : contract_.tensors) {
    const auto reach = ReachOf(tensor.name);
    if (std::none_of(reach.begin(), reach.end(),
                     [&](const Reach& r) { return r.result == result; })) {
      continue;
    }
    for (const auto* axes : {&tensor.owed, &tensor.settled, &tensor.alone}) {
      for (const Axis axis : *axes) {
        sums.push_back({tensor.name, axis});
      }
    }
  }
  return sums;
}

bool IsReachedBy(std::string_view stage, std::string_view result, const Model& model) {
  const std::vector<Product> products = ProductsOf(model);
  const std::string gradient = "d_" + std::string(stage);
  return MadeOf(products, {stage, gradient}).contains(result);
}

std::vector<Dim> TermsOf(std::string_view result, Path path, const Model& model) {
  const TensorRow& row = TensorOf(result);
  std::set<Dim> sums;
  AddSums(ProductsOf(model), result, path, sums);
  const bool is_cut_by_experts = row.mesh == MeshKind::kExpert;
  std::vector<Dim> terms;
  for (const Dim dim : {Dim::kT, Dim::kE, Dim::kF, Dim::kS}) {
    const bool is_own = row.PlaceOf(dim) && (is_cut_by_experts || dim == Dim::kT || dim == Dim::kS);
    if (sums.contains(dim) && !is_own) {
      terms.push_back(dim);
    }
  }
  return terms;
}

}  // namespace moe
