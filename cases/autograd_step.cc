#include "cases/autograd_step.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <limits>

#include "harness/base/tensors.h"

namespace moe {
namespace {

using at::Tensor;

at::ScalarType ScalarTypeOf(Dtype dtype) {
  return dtype == Dtype::kFloat64   ? at::kDouble
         : dtype == Dtype::kFloat32 ? at::kFloat
                                    : at::kBFloat16;
}

Tensor ReadLeaf(const Model& model, const TensorSource& inputs, const TensorInfo& info,
                Dtype dtype) {
  Tensor leaf = at::empty(info.shape, at::kDouble);
  inputs.Read(info.name, WholeOf(ShapeOf(info.name, model)),
              {leaf.data_ptr<double>(), static_cast<std::size_t>(leaf.numel())});
  return leaf.to(ScalarTypeOf(dtype)).requires_grad_();
}

Tensor SwiGlu(const Tensor& x, const Tensor& w1, const Tensor& w3, const Tensor& w2) {
  return at::mm(at::silu(at::mm(x, w1.t())) * at::mm(x, w3.t()), w2.t());
}

// The K experts of every token: [T, K].
Tensor ChooseExperts(const Model& model, Tensor selection_TE) {
  const std::int64_t group_size = model.experts / model.expert_groups;
  const Tensor grouped_TGM = selection_TE.view({model.tokens, model.expert_groups, group_size});
  // A group counts as the sum of its two best experts (DeepSeek-V3, arXiv 2412.19437, sec. 2.1.2).
  const Tensor best_TG =
      std::get<0>(grouped_TGM.topk(std::min<std::int64_t>(2, group_size), -1)).sum(-1);
  const Tensor groups_TL = std::get<1>(best_TG.topk(model.limited_groups, -1));
  const Tensor open_TG = at::zeros_like(best_TG, at::kBool).scatter_(1, groups_TL, true);
  const Tensor open_TE =
      open_TG.unsqueeze(-1).expand_as(grouped_TGM).reshape({model.tokens, model.experts});
  selection_TE =
      selection_TE.masked_fill(open_TE.logical_not(), -std::numeric_limits<double>::infinity());
  return std::get<1>(selection_TE.topk(model.top_k, -1));
}

// What every expert's output, or input, counts for in every token: [T, E], zero where not chosen.
Tensor CombineWeights(const Model& model, const std::map<std::string, Tensor>& leaf) {
  Tensor logits_TE = at::mm(leaf.at("x_TD"), leaf.at("gate_ED").t());
  if (model.gate_bias) {
    logits_TE = logits_TE + leaf.at("gate_bias_E");
  }
  const Tensor scores_TE = model.score_function == ScoreFunction::kSoftmax
                               ? at::softmax(logits_TE, -1)
                               : at::sigmoid(logits_TE);
  Tensor selection_TE = scores_TE.detach();
  if (model.expert_bias) {
    selection_TE = selection_TE + leaf.at("expert_bias_E").detach();
  }
  const Tensor chosen_TE =
      at::zeros_like(selection_TE).scatter_(1, ChooseExperts(model, selection_TE), 1.0);
  Tensor p_TE = scores_TE * chosen_TE;
  if (model.route_norm) {
    p_TE = p_TE / (p_TE.sum(-1, /*keepdim=*/true) + 1e-20);
  }
  return p_TE * model.route_scale;
}

// Every token through every expert; those that did not choose it count for zero.
Tensor Forward(const Model& model, const std::map<std::string, Tensor>& leaf) {
  const Tensor& x_TD = leaf.at("x_TD");
  const Tensor p_TE = CombineWeights(model, leaf);
  Tensor y_TD = at::zeros_like(x_TD);
  for (std::int64_t expert = 0; expert < model.experts; ++expert) {
    const Tensor p_T1 = p_TE.narrow(1, expert, 1);
    const auto run = [&](const Tensor& rows_TD) {
      return SwiGlu(rows_TD, leaf.at("w1_EFD")[expert], leaf.at("w3_EFD")[expert],
                    leaf.at("w2_EDF")[expert]);
    };
    y_TD = y_TD + (model.score_placement == ScorePlacement::kBeforeExperts ? run(p_T1 * x_TD)
                                                                           : p_T1 * run(x_TD));
  }
  if (model.d_shared > 0) {
    Tensor shared_TD =
        SwiGlu(x_TD, leaf.at("shared_w1_FD"), leaf.at("shared_w3_FD"), leaf.at("shared_w2_DF"));
    if (model.shared_gate) {
      shared_TD = at::sigmoid(at::mv(x_TD, leaf.at("shared_gate_D"))).unsqueeze(-1) * shared_TD;
    }
    y_TD = y_TD + shared_TD;
  }
  return y_TD;
}

}  // namespace

std::map<std::string, std::vector<double>> AutogradStep(const Model& model,
                                                        const TensorSource& inputs, Dtype dtype) {
  std::map<std::string, Tensor> leaf;
  for (const TensorInfo& info : InputsOf(model)) {
    leaf[info.name] = ReadLeaf(model, inputs, info, dtype);
  }
  const Tensor y_TD = Forward(model, leaf);
  std::vector<std::string> names;
  std::vector<Tensor> wanted;
  for (const TensorInfo& result : ResultsOf(model)) {
    if (result.name != "y_TD") {
      names.push_back(result.name);
      wanted.push_back(leaf.at(result.name.substr(2)));  // "d_x_TD" of "x_TD"
    }
  }
  const std::vector<Tensor> gradients =
      torch::autograd::grad({y_TD}, wanted, {leaf.at("d_y_TD").detach()});

  std::map<std::string, std::vector<double>> results;
  const auto keep = [&](const std::string& name, const Tensor& tensor) {
    const Tensor whole = tensor.detach().to(at::kDouble).contiguous();
    results[name].assign(whole.data_ptr<double>(), whole.data_ptr<double>() + whole.numel());
  };
  keep("y_TD", y_TD);
  for (std::size_t i = 0; i < names.size(); ++i) {
    keep(names[i], gradients[i]);
  }
  return results;
}

}  // namespace moe
