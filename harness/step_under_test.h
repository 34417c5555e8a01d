// For tests: a correct step's results, cut into a dump, tampered with, and judged.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "harness/explain/judge.h"
#include "harness/measure/problem.h"
#include "harness/report/claims_text.h"
#include "harness/report/finding_text.h"
#include "reference/moe_reference.h"

namespace moe {

using Values = std::vector<double>;
inline Model SmallModel() {
  return {.tokens = 12,
          .d_model = 8,
          .d_expert = 6,
          .experts = 4,
          .top_k = 2,
          .score_function = ScoreFunction::kSigmoid};
}

// A problem of random values, which a test may change.
class ChangeableProblem : public TensorSource {
 public:
  explicit ChangeableProblem(const Model& model) : model_(model) {
    std::mt19937 random(1);  // the standard fixes its numbers, so they are the same everywhere
    for (const TensorInfo& input : InputsOf(model)) {
      for (std::int64_t i = 0; i < NumElements(input.shape); ++i) {
        whole_[input.name].push_back(static_cast<double>(random() % 257) / 128.0 - 1.0);
      }
    }
  }

  Values& operator[](const std::string& name) { return whole_.at(name); }

  void Read(const std::string& name, const Slice& slice, std::span<double> out) const override {
    const Values cut = Cut(whole_.at(name), ShapeOf(name, model_), slice);
    std::copy(cut.begin(), cut.end(), out.begin());
  }

  static Values Cut(const Values& whole, const Shape& shape, const Slice& slice) {
    Values cut(static_cast<std::size_t>(NumElements(slice.LocalShape())));
    for (std::size_t i = 0; i < cut.size(); ++i) {
      std::size_t rest = i;
      std::int64_t global = 0;
      std::int64_t stride = 1;
      for (std::size_t dim = shape.size(); dim-- > 0;) {
        const auto& held = slice.index[dim];
        global += held[rest % held.size()] * stride;
        rest /= held.size();
        stride *= shape[dim];
      }
      cut[i] = whole[static_cast<std::size_t>(global)];
    }
    return cut;
  }

 private:
  Model model_;
  std::map<std::string, Values> whole_;
};

// What a correct step leaves on the ranks of a layout. Change the problem before Run, the manifest
// and the ranks' values after it.
class Step {
 public:
  explicit Step(const std::string& layout, const Model& model = SmallModel()) : problem(model) {
    manifest.producer = "judge_test";
    manifest.model = model;
    manifest.layout = ParseLayout(layout, "judge_test");
    manifest.meshes = MakeMeshes(manifest.layout);
    const Placements rows = {{Axis::kDpShard, Shard(0)}, {Axis::kTp, Shard(0)}};
    for (const TensorInfo& result : ResultsOf(model)) {
      DumpedTensor& tensor = manifest.tensors[result.name];
      tensor.shape = result.shape;
      if (IsExpertWeight(result.name)) {
        tensor.mesh = MeshKind::kExpert;
        tensor.placements = {{Axis::kEp, Shard(0)}};
      } else if (result.name == "y_TD" || result.name == "d_x_TD") {
        tensor.placements = rows;
      }
    }
    for (const char* name : {"topk_expert_TK", "tokens_per_expert_E"}) {
      manifest.tensors[name].shape = ShapeOf(name, model);
    }
    manifest.tensors["topk_expert_TK"].placements = rows;
  }

  // The correct results, by the reference itself; with another routing where one is given.
  Step& Run(const reference::Routing* routing = nullptr) {
    const auto append = [&](const reference::Results& parts) {
      for (const auto& [name, part] : parts) {
        whole[name].insert(whole[name].end(), part.value.data(),
                           part.value.data() + part.value.size());
      }
    };
    const reference::StepResult result = reference::RunStep(
        manifest.model, MakeProblem(manifest.model, problem), {.forced_routing = routing},
        [&](const reference::ExpertGradients& expert) { append(expert.results); });
    append(result.results);
    const auto& chosen = result.routing.topk_expert_TK;
    whole["topk_expert_TK"].assign(chosen.data(), chosen.data() + chosen.size());
    whole["tokens_per_expert_E"].assign(result.tokens_per_expert_E.begin(),
                                        result.tokens_per_expert_E.end());
    return *this;
  }

  reference::Routing Routing() const {
    const reference::Problem whole_problem = MakeProblem(manifest.model, problem);
    return reference::Route(manifest.model, whole_problem.x_TD, whole_problem.gate_ED, {}, {});
  }

  // Changes what each rank holds of a tensor.
  using Change = std::function<void(std::int64_t rank, Values& local)>;
  Step& Tamper(const std::string& name, const Change& change) {
    changes_[name].push_back(change);
    return *this;
  }
  Step& Scale(const std::string& name, double factor) {
    return Tamper(name, [factor](std::int64_t, Values& local) {
      for (double& value : local) {
        value *= factor;
      }
    });
  }
  // Leaves each rank of `axes` a share: other elements on each, so that they add up to the whole.
  Step& LeaveShares(const std::string& name, const std::vector<Axis>& axes) {
    const Mesh& mesh = manifest.meshes.Of(manifest.tensors.at(name).mesh);
    return Tamper(name, [mesh, axes](std::int64_t rank, Values& local) {
      const std::vector<std::int64_t> group = mesh.GroupOf(rank, axes);
      const auto place =
          static_cast<std::size_t>(std::find(group.begin(), group.end(), rank) - group.begin());
      for (std::size_t i = 0; i < local.size(); ++i) {
        local[i] = i % group.size() == place ? local[i] : 0.0;
      }
    });
  }
  Step& Drop(const std::string& name) {
    manifest.tensors.erase(name);
    return *this;
  }

  // Puts the problem into the rank files too.
  Step& CarryInputs() {
    for (const TensorInfo& input : InputsOf(manifest.model)) {
      manifest.tensors[input.name].shape = input.shape;
      whole[input.name] = problem[input.name];
    }
    return *this;
  }

  Dump MakeDump() const {
    std::vector<SafetensorsFile> ranks;
    for (std::int64_t rank = 0; rank < manifest.WorldSize(); ++rank) {
      std::map<std::string, Values> locals;
      std::map<std::string, std::vector<std::int64_t>> integers;
      std::vector<float> singles;
      std::map<std::string, TensorView> views;
      for (const auto& [name, tensor] : manifest.tensors) {
        const Slice slice = SliceOf(manifest, name, rank);
        Values& local = locals[name];
        local = ChangeableProblem::Cut(whole.at(name), tensor.shape, slice);
        if (const auto found = changes_.find(name); found != changes_.end()) {
          for (const Change& change : found->second) {
            change(rank, local);
          }
        }
        if (name == "topk_expert_TK" || name == "tokens_per_expert_E") {
          auto& whole_numbers = integers[name];
          whole_numbers.assign(local.begin(), local.end());
          views[name] = {Dtype::kInt64, slice.LocalShape(),
                         std::as_bytes(std::span(whole_numbers))};
        } else if (name == stored_in_float32) {
          singles.assign(local.begin(), local.end());
          views[name] = {Dtype::kFloat32, slice.LocalShape(), std::as_bytes(std::span(singles))};
        } else {
          views[name] = {Dtype::kFloat64, slice.LocalShape(), std::as_bytes(std::span(local))};
        }
      }
      ranks.push_back(SafetensorsFile::FromBytes(EncodeSafetensors(views), RankFileName(rank)));
    }
    return moe::MakeDump("dump", manifest, std::move(ranks), std::nullopt);
  }

  Judgement Judge(const JudgeOptions& options = {}) const {
    return moe::Judge(MakeDump(), problem, options);
  }
  Finding FindingOf(const std::string& name, const JudgeOptions& options = {}) const {
    for (const Finding& finding : Judge(options).findings) {
      if (finding.tensor == name) {
        return finding;
      }
    }
    return {.tensor = name, .verdict = Verdict::kError};
  }

  ChangeableProblem problem;
  Manifest manifest;
  std::map<std::string, Values> whole;
  std::string stored_in_float32;  // name of a tensor

 private:
  std::map<std::string, std::vector<Change>> changes_;
};

// What declared casts do to the tolerances, in words.
inline std::string FloorOf(const Judgement& judgement) {
  return DescribeFloor(judgement.foreign->manifest, judgement.foreign->cast_effects);
}

// The failure of one tensor in the words that a reader sees, with the axes in brackets.
inline std::string Told(const Finding& finding) {
  std::vector<std::string_view> axes;
  for (const Axis axis : finding.explanation.axes) {
    axes.push_back(ToText(axis));
  }
  return fmt::format("{}: {} [{}] {}", ToText(finding.verdict), ToText(finding.explanation.cause),
                     fmt::join(axes, " "), TextOf(finding));
}

}  // namespace moe
