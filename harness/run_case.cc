#include "harness/run_case.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>

#include "harness/base/error.h"
#include "harness/run_step.h"

namespace moe {
namespace {

Manifest MakeManifest(const CaseSpec& spec, const StepGraph& graph, Dtype dtype) {
  const Layout& layout = graph.layout();
  const StepContract& contract = graph.contract();
  Manifest manifest{
      .producer = "moegate, built-in step",
      .meshes = contract.meshes,
      .layout = layout,
      .model = spec.model,
      .dtype = dtype,
      // Finer than a foreign step's may be: logits never leave the score dtype.
      .casts = {{tensor::scores_TE, dtype == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32}},
      .case_name = spec.name};
  for (const ContractTensor& result : contract.tensors) {
    if (result.result) {
      manifest.tensors[result.name] = {result.shape, result.mesh, result.placements};
    }
  }
  const Placements rows = contract.Find(tensor::y_TD)->placements;
  manifest.tensors[tensor::topk_expert_TK] = {ShapeOf(tensor::topk_expert_TK, spec.model),
                                              MeshKind::kDense, rows};
  Placements counts;  // each rank counts the tokens it holds
  for (const auto& [axis, placement] : rows) {
    counts[axis] = placement.kind == Placement::Kind::kShard ? Partial() : placement;
  }
  manifest.tensors[tensor::tokens_per_expert_E] = {ShapeOf(tensor::tokens_per_expert_E, spec.model),
                                                   MeshKind::kDense, counts};
  for (std::int64_t rank = 0; rank < layout.WorldSize(); ++rank) {
    manifest.tokens.push_back(TokensOf(spec.model, layout, rank, layout.sp));
  }
  return manifest;
}

std::string ReproLine(const std::string& id, Dtype dtype, const std::optional<Fault>& fault,
                      const std::string& backend) {
  return fmt::format("build/moegate run {} --dtype={} --backend={}{}", id, ToText(dtype), backend,
                     fault ? fmt::format(" --fault='{}'", ToText(*fault)) : "");
}

// Whole inputs as a safetensors file in `dtype`, for a dump that is kept.
SafetensorsFile EncodeInputs(const Model& model, const TensorSource& source) {
  std::map<std::string, std::vector<double>> values;
  std::map<std::string, TensorView> views;
  for (const TensorInfo& input : InputsOf(model)) {
    auto& value = values[input.name];
    value.resize(static_cast<std::size_t>(NumElements(input.shape)));
    source.Read(input.name, WholeOf(input.shape), value);
    views[input.name] = {Dtype::kFloat64, input.shape, std::as_bytes(std::span(value))};
  }
  return SafetensorsFile::FromBytes(EncodeSafetensors(views), "inputs.safetensors");
}

void KeepDump(const Dump& dump, const TensorSource& inputs, const std::string& below,
              const Result& result) {
  Dump kept = dump;
  kept.manifest.inputs = "inputs.safetensors";
  kept.inputs = EncodeInputs(dump.manifest.model, inputs);
  std::string name = fmt::format("{}.{}", result.id, result.dtype);
  if (result.fault) {
    name += "." + *result.fault;
  }
  std::replace(name.begin(), name.end(), ' ', '_');
  const std::filesystem::path folder = std::filesystem::path(below) / name;
  std::filesystem::create_directories(folder);
  WriteDump(folder.string(), kept);
}

StepRequest RequestOf(const StepGraph& graph, Dtype dtype, const TensorSource& inputs,
                      const std::optional<Fault>& fault, const RunOptions& options) {
  return {.graph = &graph,
          .dtype = dtype,
          .inputs = &inputs,
          .fault = fault,
          .deadline = options.deadline};
}

std::vector<std::string> AxisNames(const std::vector<Axis>& axes) {
  std::vector<std::string> names;
  for (const Axis axis : axes) {
    names.emplace_back(ToText(axis));
  }
  return names;
}

}  // namespace

RunDump MakeRunDump(const CaseSpec& spec, const StepGraph& graph, Dtype dtype,
                    const std::vector<RankOutput>& outputs) {
  std::vector<SafetensorsFile> ranks;
  RunDump run;
  for (std::size_t rank = 0; rank < outputs.size(); ++rank) {
    ranks.push_back(SafetensorsFile::FromBytes(outputs[rank].tensors,
                                               RankFileName(static_cast<std::int64_t>(rank))));
    run.calls.push_back(outputs[rank].calls);
  }
  run.dump = MakeDump(CaseId(spec, graph.layout()), MakeManifest(spec, graph, dtype),
                      std::move(ranks), std::nullopt);
  return run;
}

Result RunOnce(const CaseSpec& spec, const StepGraph& graph, Dtype dtype,
               const TensorSource& inputs, const std::optional<Fault>& fault, const Golden* golden,
               const RunOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  Result result{.id = CaseId(spec, graph.layout()),
                .dtype = std::string(ToText(dtype)),
                .backend = options.backend};
  if (fault) {
    result.fault = ToText(*fault);
  }
  result.repro = ReproLine(result.id, dtype, fault, options.backend);
  try {
    // Steps 1 to 3, reading the case, the graph and generating the inputs, came before.
    if (options.backend != "threads") {
      result.text = TheStepPlugin().FindObstacle(options.backend, graph.layout().WorldSize());
      if (!result.text.empty()) {
        result.verdict = Verdict::kSkipped;
        return result;
      }
    }
    // 5 Run the step on ranks.
    const StepRequest request = RequestOf(graph, dtype, inputs, fault, options);
    const std::vector<RankOutput> outputs =
        options.run_ranks ? options.run_ranks(request) : RunRanksOf(request, options.backend);
    // 6 Read what they hold as a dump.
    const RunDump run = MakeRunDump(spec, graph, dtype, outputs);
    if (options.dump_folder) {
      KeepDump(run.dump, inputs, *options.dump_folder, result);
    }
    // 4, 7 and 8: the reference, the comparison and the diagnosis; 9, the report, is the caller's.
    const JudgeOptions judging{.golden = golden,
                               .graph = &graph,
                               .calls = run.calls,
                               .idle_experts = spec.numerics.idle_experts,
                               .worst_case = options.worst_case,
                               .exact = spec.numerics.fill == Fill::kDyadic};
    result.judgement =
        options.judge ? options.judge(run.dump, inputs, judging) : Judge(run.dump, inputs, judging);
    result.verdict = result.judgement.verdict;
  } catch (const Error& error) {
    result.verdict = Verdict::kError;
    result.text = error.what();
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

std::vector<StepRequest> RequestsOf(const CaseSpec& spec, const StepGraph& graph, Dtype dtype,
                                    const InputGenerator& inputs, const RunOptions& options) {
  std::vector<StepRequest> requests = {RequestOf(graph, dtype, inputs, std::nullopt, options)};
  for (const MustCatch& wanted : spec.must_catch) {
    if (wanted.on == graph.layout()) {
      requests.push_back(RequestOf(graph, dtype, inputs, wanted.fault, options));
    }
  }
  for (const MustPass& wanted : spec.must_pass) {
    if (wanted.on == graph.layout()) {
      requests.push_back(RequestOf(graph, dtype, inputs, wanted.fault, options));
    }
  }
  return requests;
}

bool IsCaught(const MustCatch& wanted, const Result& result) {
  if (result.verdict != Verdict::kFail) {
    return false;
  }
  const auto& findings = result.judgement.findings;
  return std::any_of(findings.begin(), findings.end(), [&](const Finding& finding) {
    return finding.verdict == Verdict::kFail &&
           (wanted.tensor.empty() || finding.tensor == wanted.tensor) &&
           (wanted.cause.empty() || ToText(finding.explanation.cause) == wanted.cause) &&
           (wanted.axes.empty() || AxisNames(finding.explanation.axes) == wanted.axes);
  });
}

Result RunCase(const CaseSpec& spec, const StepGraph& graph, Dtype dtype,
               const InputGenerator& inputs, const Golden& golden, const RunOptions& options) {
  Result result = RunOnce(spec, graph, dtype, inputs, std::nullopt, &golden, options);
  if (result.verdict != Verdict::kPass) {
    return result;  // Faults on top of a step that is wrong already say nothing.
  }
  const auto plant = [&](const Fault& fault, const auto& is_as_wanted) {
    const Result planted = RunOnce(spec, graph, dtype, inputs, fault, &golden, options);
    const bool as_wanted = is_as_wanted(planted);
    result.planted.push_back(
        {ToText(fault), as_wanted,
         planted.verdict == Verdict::kPass ? "no error was seen" : Headline(planted)});
    result.seconds += planted.seconds;
    if (!as_wanted) {
      result.verdict = planted.verdict == Verdict::kError ? Verdict::kError : Verdict::kFail;
      result.repro = planted.repro;
      result.text =
          fmt::format("planted '{}' was told wrong: {}", ToText(fault), result.planted.back().said);
    }
  };
  for (const MustCatch& wanted : spec.must_catch) {
    if (wanted.on == graph.layout()) {
      plant(wanted.fault, [&](const Result& planted) { return IsCaught(wanted, planted); });
    }
  }
  for (const MustPass& wanted : spec.must_pass) {
    if (wanted.on == graph.layout()) {
      plant(wanted.fault, [](const Result& planted) { return planted.verdict == Verdict::kPass; });
    }
  }
  return result;
}

}  // namespace moe
