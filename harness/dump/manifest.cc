#include "harness/dump/manifest.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>
#include <utility>

#include "harness/base/text.h"
#include "harness/json/model_json.h"

namespace moe {
namespace {

constexpr std::int64_t kSchema = 1;
constexpr std::int64_t kLargestWorld = 4096;
constexpr const char* kLossKind = "dot_with_cotangent";
constexpr const char* kLossReduction = "sum";
constexpr std::size_t kMostVersions = 32;

using TensorShapes = std::map<std::string, Shape>;

// Every tensor that a manifest may list: what no step keeps inside.
TensorShapes KnownTensors(const Model& model) {
  TensorShapes known;
  for (const TensorRow& row : TensorTable()) {
    if (row.role != Role::kStage && row.role != Role::kInside && row.IsIn(model)) {
      known.emplace(row.name, ShapeOf(row, model));
    }
  }
  return known;
}

bool IsChoice(std::string_view name) {
  return TensorOf(name).role == Role::kChoice;
}

std::vector<std::string_view> Stages() {
  std::vector<std::string_view> stages;
  for (const TensorRow& row : TensorTable()) {
    if (row.role == Role::kStage) {
      stages.push_back(row.name);
    }
  }
  return stages;
}

std::string NamesOf(const std::vector<Axis>& axes) {
  std::vector<std::string_view> names;
  for (const Axis axis : axes) {
    names.push_back(ToText(axis));
  }
  return names.empty() ? "no axes" : fmt::format("{}", fmt::join(names, ", "));
}

// Of an array whose length is checked before anything is made of its elements.
std::vector<JsonNode> Items(const JsonNode& node, std::size_t most) {
  if (node.value().is_array() && node.value().size() > most) {
    node.Fail(fmt::format("has {} entries; at most {} make sense", node.value().size(), most));
  }
  return node.Items();
}

Dtype ParseFloatDtype(const JsonNode& node) {
  const std::string text = node.String();
  const std::optional<Dtype> dtype = DtypeFromText(text);
  if (!dtype || !IsFloat(*dtype)) {
    node.Fail(fmt::format("is \"{}\"; use float64, float32, bfloat16 or float16", text));
  }
  return *dtype;
}

void RequireText(const JsonNode& node, std::string_view required) {
  if (const std::string text = node.String(); text != required) {
    node.Fail(fmt::format("is \"{}\"; must be {}", text, required));
  }
}

std::vector<Axis> AxesOf(MeshKind kind) {
  if (kind == MeshKind::kDense) {
    return {Axis::kDpReplicate, Axis::kDpShard, Axis::kCp, Axis::kTp};
  }
  return {Axis::kEdp, Axis::kEp, Axis::kEtp};
}

Mesh ParseMesh(const JsonNode& node, MeshKind kind) {
  node.OnlyKeys({"axes", "sizes"});
  const std::vector<Axis> allowed = AxesOf(kind);
  Mesh mesh;
  for (const JsonNode& item : Items(node.At("axes"), allowed.size())) {
    const std::string text = item.String();
    const std::optional<Axis> axis = AxisFromText(text);
    if (!axis || std::find(allowed.begin(), allowed.end(), *axis) == allowed.end()) {
      item.Fail(fmt::format("\"{}\" is not an axis of the {} mesh; use {}", text, ToText(kind),
                            NamesOf(allowed)));
    }
    if (mesh.Has(*axis)) {
      item.Fail(fmt::format("axis {} stands twice", text));
    }
    mesh.axes.push_back(*axis);
  }
  for (const JsonNode& item : Items(node.At("sizes"), allowed.size())) {
    mesh.sizes.push_back(item.Integer(1, kLargestWorld));
    if (mesh.WorldSize() > kLargestWorld) {  // checked at each factor, so that it cannot overflow
      item.Fail(fmt::format("makes a world of {} ranks; at most {} are read", mesh.WorldSize(),
                            kLargestWorld));
    }
  }
  if (mesh.sizes.size() != mesh.axes.size()) {
    node.At("sizes").Fail(
        fmt::format("has {} sizes for {} axes", mesh.sizes.size(), mesh.axes.size()));
  }
  return mesh;
}

Meshes ParseMeshes(const JsonNode& node) {
  node.OnlyKeys({"dense", "expert"});
  Meshes meshes = {.dense = ParseMesh(node.At("dense"), MeshKind::kDense),
                   .expert = ParseMesh(node.At("expert"), MeshKind::kExpert)};
  if (meshes.dense.WorldSize() != meshes.expert.WorldSize()) {
    node.Fail(
        fmt::format("the dense mesh has {} ranks and the expert mesh {}; both are views of "
                    "the same ranks",
                    meshes.dense.WorldSize(), meshes.expert.WorldSize()));
  }
  return meshes;
}

// The sizes of the meshes, which "layout" may repeat, and what only "layout" can say.
Layout ParseLayout(const std::optional<JsonNode>& node, const Meshes& meshes, const Model& model) {
  if (node) {
    node->OnlyKeys({"dp_replicate", "dp_shard", "cp", "tp", "ep", "etp", "sp", "local_batch"});
  }
  const auto size_of = [&](Axis axis, MeshKind kind) {
    const std::int64_t size = meshes.Of(kind).SizeOf(axis);
    const auto repeated = node ? node->Find(ToText(axis)) : std::nullopt;
    if (repeated && repeated->Integer(1) != size) {
      repeated->Fail(fmt::format("is {}, but the {} mesh gives {} the size {}", repeated->Integer(),
                                 ToText(kind), ToText(axis), size));
    }
    return size;
  };
  Layout layout;
  layout.dp_replicate = size_of(Axis::kDpReplicate, MeshKind::kDense);
  layout.dp_shard = size_of(Axis::kDpShard, MeshKind::kDense);
  layout.cp = size_of(Axis::kCp, MeshKind::kDense);
  layout.tp = size_of(Axis::kTp, MeshKind::kDense);
  layout.ep = size_of(Axis::kEp, MeshKind::kExpert);
  layout.etp = size_of(Axis::kEtp, MeshKind::kExpert);
  if (const auto sp = node ? node->Find("sp") : std::nullopt) {
    layout.sp = sp->Bool();
  }
  if (const auto local_batch = node ? node->Find("local_batch") : std::nullopt) {
    layout.local_batch = local_batch->Integer(1, model.tokens);
  }
  return layout;
}

// Of an object whose length is checked before anything is made of its members.
std::vector<std::pair<std::string, JsonNode>> Members(const JsonNode& node, std::size_t most) {
  if (node.value().is_object() && node.value().size() > most) {
    node.Fail(fmt::format("has {} entries; at most {} make sense", node.value().size(), most));
  }
  return node.Members();
}

std::map<std::string, Dtype> ParseCasts(const JsonNode& node, const TensorShapes& known) {
  std::map<std::string, Dtype> casts;
  for (const auto& [name, dtype] : Members(node, known.size() + Stages().size())) {
    if (!known.contains(name) && !IsStage(name)) {
      dtype.Fail(
          fmt::format("is not a tensor whose rounding is known; use {}, or a tensor of the dump",
                      fmt::join(Stages(), ", ")));
    }
    casts.emplace(name, ParseFloatDtype(dtype));
  }
  return casts;
}

// The file lies in the folder and is none of its other files.
std::string ParseInputsName(const JsonNode& node) {
  const std::string name = node.String();
  const bool has_control = std::any_of(name.begin(), name.end(),
                                       [](char c) { return static_cast<unsigned char>(c) < 0x20; });
  if (has_control || name.find_first_of("/\\") != std::string::npos ||
      name.find("..") != std::string::npos || name.starts_with("rank-") ||
      !name.ends_with(".safetensors")) {
    node.Fail(
        fmt::format("{} is not the name of a file of inputs inside the folder; use a name such "
                    "as inputs.safetensors",
                    Json(name).dump()));
  }
  return name;
}

bool HasTokenRows(std::string_view name) {
  return TensorOf(name).HasRows();
}

Placement ParsePlacement(const JsonNode& node, const std::string& tensor, const Shape& shape,
                         std::int64_t world) {
  const std::string text = node.String();
  const std::optional<Placement> placement = PlacementFromText(text);
  if (!placement) {
    node.Fail(fmt::format("\"{}\" is no placement; use R, P, S(dim) or SS(dim,split)", text));
  }
  const auto rank = static_cast<std::int64_t>(shape.size());
  if (placement->IsShard() && (placement->dim < 0 || placement->dim >= rank)) {
    node.Fail(fmt::format("\"{}\" shards a dimension that {} lacks; use 0 to {}", text, tensor,
                          rank - 1));
  }
  if (placement->kind == Placement::Kind::kStridedShard &&
      (placement->split < 1 || placement->split > world)) {
    node.Fail(fmt::format("\"{}\" splits into {} parts; use 1 to {}, the number of ranks", text,
                          placement->split, world));
  }
  if (placement->kind == Placement::Kind::kPartial && IsChoice(tensor)) {
    node.Fail(fmt::format("\"P\" would add expert ids; {} is R or S(0)", tensor));
  }
  if (placement->IsShard() && placement->dim != 0 && IsChoice(tensor)) {
    node.Fail(fmt::format("\"{}\" would cut a token's choice; {} is R or S(0)", text, tensor));
  }
  return *placement;
}

DumpedTensor ParseTensor(const std::string& name, const JsonNode& node, const Manifest& manifest,
                         const TensorShapes& known) {
  const auto info = known.find(name);
  if (info == known.end()) {
    node.Fail(DescribeUnknown(name, manifest.model));
  }
  node.OnlyKeys({"shape", "mesh", "placements", "scale"});
  DumpedTensor tensor;
  for (const JsonNode& size : Items(node.At("shape"), /*most=*/8)) {
    tensor.shape.push_back(size.Integer(/*smallest=*/0));
  }
  if (tensor.shape != info->second) {
    node.At("shape").Fail(fmt::format("is {}; the model gives {} the shape {}",
                                      ToText(tensor.shape), name, ToText(info->second)));
  }

  const JsonNode kind = node.At("mesh");
  if (const std::string text = kind.String(); text == ToText(MeshKind::kExpert)) {
    tensor.mesh = MeshKind::kExpert;
  } else if (text != ToText(MeshKind::kDense)) {
    kind.Fail(fmt::format("is \"{}\"; use dense or expert", text));
  }

  const Mesh& mesh = manifest.meshes.Of(tensor.mesh);
  if (const auto placements = node.Find("placements")) {
    for (const auto& [text, placement] : placements->Members()) {
      const std::optional<Axis> axis = AxisFromText(text);
      if (!axis || !mesh.Has(*axis)) {
        placement.Fail(fmt::format("\"{}\" is not an axis of this {} mesh, which has {}", text,
                                   ToText(tensor.mesh), NamesOf(mesh.axes)));
      }
      tensor.placements[*axis] =
          ParsePlacement(placement, name, tensor.shape, manifest.WorldSize());
    }
  }
  if (const auto scale = node.Find("scale")) {
    tensor.scale = scale->Number();
    if (tensor.scale == 0.0) {  // exactly: any other factor can be made up for
      scale->Fail("is 0; use the factor that the values still lack");
    }
    if (tensor.scale != 1.0 && IsChoice(name)) {
      scale->Fail(
          fmt::format("is {}; {} holds expert ids, which have no factor", tensor.scale, name));
    }
  }
  return tensor;
}

std::vector<std::string> ParseNotDumped(const JsonNode& node, const Manifest& manifest,
                                        const TensorShapes& known) {
  std::vector<std::string> names;
  for (const JsonNode& item : Items(node, known.size())) {
    const std::string name = item.String();
    if (!known.contains(name)) {
      item.Fail(DescribeUnknown(name, manifest.model));
    }
    if (manifest.tensors.contains(name)) {
      item.Fail(fmt::format("{} stands under tensors too; it is either dumped or not", name));
    }
    if (std::find(names.begin(), names.end(), name) != names.end()) {
      item.Fail(fmt::format("{} stands twice", name));
    }
    names.push_back(name);
  }
  return names;
}

// One rank's list. `holder[token]` is the last rank that listed the token.
std::vector<std::int64_t> ParseTokenList(const JsonNode& node, std::int64_t rank,
                                         std::vector<std::int64_t>& holder) {
  const auto tokens = static_cast<std::int64_t>(holder.size());
  std::vector<std::int64_t> list;
  if (!node.value().is_array()) {
    node.Items();  // says what it is instead
  }
  // Not by Items(): a node per token, with its pointer, would take most of the time of opening.
  for (const Json& value : node.value()) {
    const std::int64_t token = value.is_number_integer() ? value.get<std::int64_t>() : -1;
    if (token < 0 || token >= tokens) {
      node.Items()[list.size()].Integer(0, tokens - 1);  // throws
    }
    if (std::exchange(holder[static_cast<std::size_t>(token)], rank) == rank) {
      node.Fail(fmt::format("lists token {} twice", token));
    }
    list.push_back(token);
  }
  return list;
}

std::map<std::string, std::string> ParseMissing(const JsonNode& node, const Manifest& manifest,
                                                const TensorShapes& known) {
  std::map<std::string, std::string> missing;
  for (const auto& [name, why] : Members(node, known.size())) {
    if (!known.contains(name)) {
      why.Fail(DescribeUnknown(name, manifest.model));
    }
    const auto& not_dumped = manifest.not_dumped;
    if (manifest.tensors.contains(name) ||
        std::find(not_dumped.begin(), not_dumped.end(), name) != not_dumped.end()) {
      why.Fail("stands under tensors or not_dumped too; it is dumped, left out, or missing");
    }
    missing.emplace(name, Printable(why.String()));
  }
  return missing;
}

// Ranks that differ only along an axis that does not shard the rows hold the same rows.
void CheckTokensAlong(const std::string& name, Axis axis, const Manifest& manifest,
                      const JsonNode& node) {
  const DumpedTensor& tensor = manifest.tensors.at(name);
  const Mesh& mesh = manifest.meshes.Of(tensor.mesh);
  const Placement placement = PlacementOn(tensor.placements, axis);
  if (placement.IsShard() && placement.dim == 0) {
    return;
  }
  std::int64_t stride = 1;  // ranks between neighbours on the axis
  for (std::size_t i = mesh.axes.size(); mesh.axes[i - 1] != axis; --i) {
    stride *= mesh.sizes[i - 1];
  }
  for (std::int64_t rank = 0; rank < mesh.WorldSize(); ++rank) {
    const std::int64_t first = rank - mesh.Coordinate(rank, axis) * stride;
    if (manifest.tokens[static_cast<std::size_t>(first)] !=
        manifest.tokens[static_cast<std::size_t>(rank)]) {
      node.Fail(
          fmt::format("ranks {} and {} differ only along {}, where {} is {}, so they must "
                      "list the same tokens in the same order",
                      first, rank, ToText(axis), name, ToText(placement)));
    }
  }
}

std::vector<std::vector<std::int64_t>> ParseTokens(const JsonNode& node, const Manifest& manifest) {
  const auto world = static_cast<std::size_t>(manifest.WorldSize());
  const std::vector<JsonNode> lists = Items(node, static_cast<std::size_t>(kLargestWorld));
  if (lists.size() != world) {
    node.Fail(
        fmt::format("has {} lists; must have one for each of the {} ranks", lists.size(), world));
  }
  std::vector<std::int64_t> holder(static_cast<std::size_t>(manifest.model.tokens), -1);
  std::vector<std::vector<std::int64_t>> tokens;
  for (std::size_t rank = 0; rank < world; ++rank) {
    tokens.push_back(ParseTokenList(lists[rank], static_cast<std::int64_t>(rank), holder));
  }

  const auto unheld = std::find(holder.begin(), holder.end(), -1);
  for (const auto& [name, tensor] : manifest.tensors) {
    if (unheld != holder.end() && HasTokenRows(name)) {
      node.Fail(fmt::format("no rank holds token {} of {}", unheld - holder.begin(), name));
    }
  }
  return tokens;
}

}  // namespace

bool IsStage(std::string_view cast) {
  const TensorRow* row = FindTensor(cast);
  return row != nullptr && row->role == Role::kStage;
}

Manifest ParseManifest(const Json& json, const std::string& file) {
  const JsonNode root(json, file);
  root.OnlyKeys({"schema", "producer", "mesh", "layout", "model", "dtype", "casts", "loss",
                 "inputs", "case", "tensors", "not_dumped", "missing", "versions", "tokens"});
  if (const JsonNode schema = root.At("schema"); schema.Integer() != kSchema) {
    schema.Fail(fmt::format("is {}; this moegate reads schema {}", schema.Integer(), kSchema));
  }

  Manifest manifest;
  manifest.producer = Printable(root.At("producer").String());
  manifest.meshes = ParseMeshes(root.At("mesh"));
  manifest.model = ParseModel(root.At("model"));
  manifest.layout = ParseLayout(root.Find("layout"), manifest.meshes, manifest.model);
  manifest.dtype = ParseFloatDtype(root.At("dtype"));
  if (const auto loss = root.Find("loss")) {
    loss->OnlyKeys({"kind", "reduction"});
    RequireText(loss->At("kind"), kLossKind);
    RequireText(loss->At("reduction"), kLossReduction);
  }
  if (const auto inputs = root.Find("inputs")) {
    manifest.inputs = ParseInputsName(*inputs);
  }
  if (const auto case_name = root.Find("case")) {
    manifest.case_name = case_name->String();
  }

  const TensorShapes known = KnownTensors(manifest.model);
  if (const auto casts = root.Find("casts")) {
    manifest.casts = ParseCasts(*casts, known);
  }
  for (const auto& [name, node] : root.At("tensors").Members()) {
    manifest.tensors.emplace(name, ParseTensor(name, node, manifest, known));
  }
  if (const auto not_dumped = root.Find("not_dumped")) {
    manifest.not_dumped = ParseNotDumped(*not_dumped, manifest, known);
  }
  if (const auto missing = root.Find("missing")) {
    manifest.missing = ParseMissing(*missing, manifest, known);
  }
  if (const auto versions = root.Find("versions")) {
    for (const auto& [name, version] : Members(*versions, kMostVersions)) {
      manifest.versions.emplace(Printable(name), Printable(version.String()));
    }
  }
  if (const auto tokens = root.Find("tokens")) {
    manifest.tokens = ParseTokens(*tokens, manifest);
    for (const auto& [name, tensor] : manifest.tensors) {
      for (const Axis axis : manifest.meshes.Of(tensor.mesh).axes) {
        if (HasTokenRows(name)) {
          CheckTokensAlong(name, axis, manifest, *tokens);
        }
      }
    }
  }
  return manifest;
}

namespace {

Json ToJson(const Mesh& mesh) {
  Json axes = Json::array();
  for (const Axis axis : mesh.axes) {
    axes.push_back(ToText(axis));
  }
  return {{"axes", std::move(axes)}, {"sizes", mesh.sizes}};
}

Json ToJson(const Layout& layout) {
  return {{"dp_replicate", layout.dp_replicate},
          {"dp_shard", layout.dp_shard},
          {"cp", layout.cp},
          {"tp", layout.tp},
          {"ep", layout.ep},
          {"etp", layout.etp},
          {"sp", layout.sp},
          {"local_batch", layout.local_batch}};
}

Json ToJson(const DumpedTensor& tensor) {
  Json placements = Json::object();
  for (const auto& [axis, placement] : tensor.placements) {
    placements[std::string(ToText(axis))] = ToText(placement);
  }
  Json json = {{"shape", tensor.shape},
               {"mesh", ToText(tensor.mesh)},
               {"placements", std::move(placements)}};
  if (tensor.scale != 1.0) {  // exactly: the default
    json["scale"] = tensor.scale;
  }
  return json;
}

}  // namespace

Json ToJson(const Manifest& manifest) {
  Json json = {
      {"schema", kSchema},
      {"producer", manifest.producer},
      {"mesh",
       {{"dense", ToJson(manifest.meshes.dense)}, {"expert", ToJson(manifest.meshes.expert)}}},
      {"layout", ToJson(manifest.layout)},
      {"model", ToJson(manifest.model)},
      {"dtype", ToText(manifest.dtype)}};
  for (const auto& [name, dtype] : manifest.casts) {
    json["casts"][name] = ToText(dtype);
  }
  json["loss"] = {{"kind", kLossKind}, {"reduction", kLossReduction}};
  if (manifest.inputs) {
    json["inputs"] = *manifest.inputs;
  }
  if (manifest.case_name) {
    json["case"] = *manifest.case_name;
  }
  json["tensors"] = Json::object();
  for (const auto& [name, tensor] : manifest.tensors) {
    json["tensors"][name] = ToJson(tensor);
  }
  if (!manifest.not_dumped.empty()) {
    json["not_dumped"] = manifest.not_dumped;
  }
  if (!manifest.missing.empty()) {
    json["missing"] = manifest.missing;
  }
  if (!manifest.versions.empty()) {
    json["versions"] = manifest.versions;
  }
  if (!manifest.tokens.empty()) {
    json["tokens"] = manifest.tokens;
  }
  return json;
}

bool RowsFollowTokens(const Manifest& manifest, std::string_view name) {
  return HasTokenRows(name) && !manifest.tokens.empty();
}

bool IsClaimed(const Manifest& manifest, const std::string& name, Placement::Kind kind) {
  const DumpedTensor& tensor = manifest.tensors.at(name);
  const Mesh& mesh = manifest.meshes.Of(tensor.mesh);
  return std::any_of(mesh.axes.begin(), mesh.axes.end(), [&](Axis axis) {
    return mesh.SizeOf(axis) > 1 && PlacementOn(tensor.placements, axis).kind == kind;
  });
}

Slice SliceOf(const Manifest& manifest, const std::string& name, std::int64_t rank) {
  const DumpedTensor& tensor = manifest.tensors.at(name);
  const bool by_tokens = RowsFollowTokens(manifest, name);
  Shape shape = tensor.shape;
  if (by_tokens) {
    shape[0] = 0;  // the rows are replaced below; placing T of them for every rank would be slow
  }
  Slice slice = SliceOf(shape, manifest.meshes.Of(tensor.mesh), tensor.placements, rank);
  if (by_tokens) {
    slice.index[0] = manifest.tokens.at(static_cast<std::size_t>(rank));
  }
  return slice;
}

}  // namespace moe
