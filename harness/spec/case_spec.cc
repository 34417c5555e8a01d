#include "harness/spec/case_spec.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>

#include "harness/base/error.h"
#include "harness/json/json_reader.h"
#include "harness/json/model_json.h"

namespace moe {
namespace {

namespace fs = std::filesystem;

Program ParseProgram(const JsonNode& node) {
  node.OnlyKeys({"tp_backward", "dp_reduction"});
  Program program;
  if (const auto key = node.Find("tp_backward")) {
    if (key->String() == "sum_inside") {
      program.tp_backward = TpBackward::kSumInside;
    } else if (key->String() != "sum_at_boundary") {
      key->Fail(fmt::format("is \"{}\"; use sum_at_boundary or sum_inside", key->String()));
    }
  }
  if (const auto key = node.Find("dp_reduction")) {
    if (key->String() == "mean") {
      program.dp_reduction = DpReduction::kMean;
    } else if (key->String() != "sum") {
      key->Fail(fmt::format("is \"{}\"; use sum or mean", key->String()));
    }
  }
  return program;
}

Numerics ParseNumerics(const JsonNode& node, const Model& model) {
  node.OnlyKeys({"dtypes", "fill", "seed", "idle_experts"});
  Numerics numerics;
  if (const auto dtypes = node.Find("dtypes")) {
    numerics.dtypes.clear();
    for (const JsonNode& item : dtypes->Items()) {
      const auto dtype = DtypeFromText(item.String());
      if (dtype != Dtype::kFloat64 && dtype != Dtype::kFloat32 && dtype != Dtype::kBfloat16) {
        item.Fail(fmt::format("is \"{}\"; use float64, float32 or bfloat16", item.String()));
      }
      if (std::find(numerics.dtypes.begin(), numerics.dtypes.end(), *dtype) !=
          numerics.dtypes.end()) {
        item.Fail(fmt::format("{} stands twice", item.String()));
      }
      numerics.dtypes.push_back(*dtype);
    }
    if (numerics.dtypes.empty()) {
      dtypes->Fail("is empty; name at least one of float64, float32, bfloat16");
    }
  }
  if (const auto fill = node.Find("fill")) {
    if (fill->String() == "dyadic") {
      numerics.fill = Fill::kDyadic;
    } else if (fill->String() != "uniform") {
      fill->Fail(fmt::format("is \"{}\"; use uniform or dyadic", fill->String()));
    }
  }
  if (const auto seed = node.Find("seed")) {
    numerics.seed = static_cast<std::uint64_t>(seed->Integer(0));
  }
  if (const auto idle = node.Find("idle_experts")) {
    for (const JsonNode& item : idle->Items()) {
      const std::int64_t expert = item.Integer(0, model.experts - 1);
      if (std::find(numerics.idle_experts.begin(), numerics.idle_experts.end(), expert) !=
          numerics.idle_experts.end()) {
        item.Fail(fmt::format("{} stands twice", expert));
      }
      numerics.idle_experts.push_back(expert);
    }
    const auto busy = model.experts - static_cast<std::int64_t>(numerics.idle_experts.size());
    if (busy < model.top_k) {
      idle->Fail(fmt::format("leaves {} experts for top_k {}; name fewer", busy, model.top_k));
    }
  }
  return numerics;
}

Layout LayoutFor(const JsonNode& node, const Model& model) {
  const Layout layout = ParseLayout(node.String(), node.where());
  if (const std::string misfit = FindMisfit(model, layout); !misfit.empty()) {
    node.Fail(misfit);
  }
  return layout;
}

Fault FaultFor(const JsonNode& node, const CaseSpec& spec, const Layout& layout) {
  const JsonNode text = node.At("fault");
  Fault fault = ParseFault(text.String(), text.where());
  const std::string misfit = FindMisfit(fault, GraphOf(spec, layout));
  if (!misfit.empty()) {
    text.Fail(misfit);
  }
  return fault;
}

std::string ParseAxis(const JsonNode& node) {
  const std::string axis = node.String();
  if (!AxisFromText(axis)) {
    node.Fail(
        fmt::format("\"{}\" is no axis; use dp_replicate, dp_shard, cp, tp, edp, ep or etp", axis));
  }
  return axis;
}

std::vector<std::string> AxesOf(const JsonNode& node) {
  std::vector<std::string> axes;
  if (const auto axis = node.Find("axis")) {
    axes.push_back(ParseAxis(*axis));
  }
  if (const auto list = node.Find("axes")) {
    for (const JsonNode& item : list->Items()) {
      axes.push_back(ParseAxis(item));
    }
  }
  return axes;
}

// A layout that a fault is planted on is one of the case's, whether the list says so or not: a
// fault that nobody runs would be told right by nobody.
void AddLayout(CaseSpec& spec, const Layout& layout) {
  if (std::find(spec.layouts.begin(), spec.layouts.end(), layout) == spec.layouts.end()) {
    spec.layouts.push_back(layout);
  }
}

std::string RequiredText(const JsonNode& root, std::string_view key) {
  const JsonNode node = root.At(key);
  std::string text = node.String();
  if (text.find_first_not_of(" \t\n") == std::string::npos) {
    node.Fail(fmt::format("is empty; say {}", key == "why"
                                                  ? "what goes wrong and why nobody notices"
                                                  : "where the bug is reported"));
  }
  return text;
}

std::string NameBelow(const fs::path& folder, const fs::path& file) {
  return fs::path(file).lexically_relative(folder).replace_extension().generic_string();
}

std::vector<fs::path> FilesBelow(const std::string& cases) {
  if (!fs::is_directory(cases)) {
    throw Error(cases, "is not a folder of cases; give the one with --cases");
  }
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(cases)) {
    if (entry.is_regular_file() && entry.path().extension() == ".json") {
      files.push_back(entry.path());
    }
  }
  std::sort(files.begin(), files.end());
  if (files.empty()) {
    throw Error(cases, "holds no case (*.json)");
  }
  return files;
}

}  // namespace

CaseSpec ReadCase(const std::string& path, const std::string& name) {
  const Json json = ReadJsonFile(path, {.max_bytes = 1'000'000, .max_depth = 8});
  const JsonNode root(json, path);
  root.OnlyKeys({"schema", "why", "source", "model", "step", "numerics", "layouts", "must_catch",
                 "must_pass"});
  if (const JsonNode schema = root.At("schema"); schema.Integer() != 1) {
    schema.Fail(fmt::format("is {}; this moegate reads schema 1", schema.Integer()));
  }
  CaseSpec spec;
  spec.name = name;
  spec.path = path;
  spec.why = RequiredText(root, "why");
  spec.source = RequiredText(root, "source");
  spec.model = ParseModel(root.At("model"));
  if (const auto step = root.Find("step")) {
    spec.program = ParseProgram(*step);
  }
  spec.numerics = ParseNumerics(root.At("numerics"), spec.model);
  const JsonNode layouts = root.At("layouts");
  for (const JsonNode& node : layouts.Items()) {
    spec.layouts.push_back(LayoutFor(node, spec.model));
    if (std::count(spec.layouts.begin(), spec.layouts.end(), spec.layouts.back()) > 1) {
      node.Fail(fmt::format("{} stands twice", ToText(spec.layouts.back())));
    }
  }
  if (spec.layouts.empty()) {
    layouts.Fail("is empty; name at least one, such as tp2.ep2.etp1");
  }
  if (const auto list = root.Find("must_catch")) {
    for (const JsonNode& node : list->Items()) {
      node.OnlyKeys({"fault", "on", "cause", "axis", "axes", "tensor"});
      const Layout on = LayoutFor(node.At("on"), spec.model);
      MustCatch must{.fault = FaultFor(node, spec, on), .on = on, .axes = AxesOf(node)};
      if (const auto cause = node.Find("cause")) {
        must.cause = cause->String();
      }
      if (const auto tensor = node.Find("tensor")) {
        must.tensor = tensor->String();
        const auto results = ResultsOf(spec.model);
        if (std::none_of(results.begin(), results.end(),
                         [&](const TensorInfo& info) { return info.name == must.tensor; })) {
          tensor->Fail(fmt::format("{} is not a result of this model", must.tensor));
        }
      }
      AddLayout(spec, on);
      spec.must_catch.push_back(std::move(must));
    }
  }
  if (const auto list = root.Find("must_pass")) {
    for (const JsonNode& node : list->Items()) {
      node.OnlyKeys({"fault", "on"});
      const Layout on = LayoutFor(node.At("on"), spec.model);
      AddLayout(spec, on);
      spec.must_pass.push_back({.fault = FaultFor(node, spec, on), .on = on});
    }
  }
  return spec;
}

StepGraph GraphOf(const CaseSpec& spec, const Layout& layout) {
  return {spec.model, layout, spec.program};
}

std::string CaseId(const CaseSpec& spec, const Layout& layout) {
  return spec.name + "@" + ToText(layout);
}

CaseSpec FindCase(const std::string& cases, const std::string& name) {
  const fs::path path = fs::path(cases) / (name + ".json");
  if (name.find("..") == std::string::npos && fs::is_regular_file(path)) {
    return ReadCase(path.string(), name);
  }
  std::vector<std::string> names;
  for (const fs::path& file : FilesBelow(cases)) {
    names.push_back(NameBelow(cases, file));
  }
  const std::vector<std::string_view> known(names.begin(), names.end());
  throw Error(fmt::format("\"{}\"", name),
              fmt::format("is no case in {}; the nearest is {}, and there are {}", cases,
                          NearestOf(name, known), fmt::join(known, ", ")));
}

std::vector<CaseSpec> ReadCases(const std::string& cases) {
  std::vector<CaseSpec> specs;
  for (const fs::path& file : FilesBelow(cases)) {
    specs.push_back(ReadCase(file.string(), NameBelow(cases, file)));
  }
  return specs;
}

}  // namespace moe
