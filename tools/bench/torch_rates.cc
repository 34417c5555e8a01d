#include "tools/bench/torch_rates.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <string>
#include <vector>

#include "harness/base/tensors.h"
#include "tools/bench/cpu_clock.h"

namespace moe::bench {
namespace {

using at::Tensor;

Tensor ReadLeaf(const TensorSource& inputs, const std::string& name, const Slice& slice,
                const Shape& shape) {
  Tensor leaf = at::empty(shape, at::kDouble);
  inputs.Read(name, slice, {leaf.data_ptr<double>(), static_cast<std::size_t>(leaf.numel())});
  return leaf.requires_grad_();
}

}  // namespace

double TorchGemmRate(std::int64_t size) {
  at::set_num_threads(1);
  const Tensor a = at::rand({size, size}, at::kDouble);
  const Tensor b = at::rand({size, size}, at::kDouble);
  Tensor c = at::empty({size, size}, at::kDouble);
  double best = 0.0;
  for (int run = 0; run < 4; ++run) {
    const double start = CpuSeconds();
    at::mm_out(c, a, b);
    const auto n = static_cast<double>(size);
    best = std::max(best, 2e-9 * n * n * n / (CpuSeconds() - start));
  }
  return best;
}

struct TorchStep::Leaves {
  Model model;
  Tensor x_TD;
  Tensor d_y_TD;
  Tensor gate_ED;
  // One leaf per expert: the gradient of a slice of w1_EFD would be a whole w1_EFD of zeros each
  // time.
  std::vector<Tensor> w1_FD;
  std::vector<Tensor> w3_FD;
  std::vector<Tensor> w2_DF;
};

TorchStep::TorchStep(const Model& model, const TensorSource& inputs)
    : leaves_(std::make_unique<Leaves>(Leaves{.model = model})) {
  at::set_num_threads(1);
  const auto whole = [&](const std::string& name) {
    const Shape shape = ShapeOf(name, model);
    return ReadLeaf(inputs, name, WholeOf(shape), shape);
  };
  const auto of_expert = [&](const std::string& name, std::int64_t expert) {
    const Shape shape = ShapeOf(name, model);
    Slice slice = WholeOf(shape);
    slice.index[0] = {expert};
    return ReadLeaf(inputs, name, slice, {shape[1], shape[2]});
  };
  leaves_->x_TD = whole("x_TD");
  leaves_->d_y_TD = whole("d_y_TD").detach();
  leaves_->gate_ED = whole("gate_ED");
  for (std::int64_t expert = 0; expert < model.experts; ++expert) {
    leaves_->w1_FD.push_back(of_expert("w1_EFD", expert));
    leaves_->w3_FD.push_back(of_expert("w3_EFD", expert));
    leaves_->w2_DF.push_back(of_expert("w2_EDF", expert));
  }
}

TorchStep::~TorchStep() = default;

double TorchStep::Run() {
  const double start = CpuSeconds();
  const Tensor& x_TD = leaves_->x_TD;
  const Tensor scores_TE = at::softmax(at::mm(x_TD, leaves_->gate_ED.t()), -1);
  const auto [score_TK, expert_TK] = scores_TE.topk(leaves_->model.top_k, -1);
  Tensor y_TD = at::zeros_like(x_TD);
  std::vector<Tensor> wanted = {x_TD, leaves_->gate_ED};
  for (std::size_t expert = 0; expert < leaves_->w1_FD.size(); ++expert) {
    const std::vector<Tensor> slots =
        at::eq(expert_TK, static_cast<std::int64_t>(expert)).nonzero_numpy();
    const Tensor x_ND = x_TD.index_select(0, slots[0]);
    const Tensor h_NF = at::silu(at::mm(x_ND, leaves_->w1_FD[expert].t())) *
                        at::mm(x_ND, leaves_->w3_FD[expert].t());
    const Tensor p_N1 = score_TK.index({slots[0], slots[1]}).unsqueeze(-1);
    y_TD.index_add_(0, slots[0], p_N1 * at::mm(h_NF, leaves_->w2_DF[expert].t()));
    wanted.insert(wanted.end(),
                  {leaves_->w1_FD[expert], leaves_->w3_FD[expert], leaves_->w2_DF[expert]});
  }
  const std::vector<Tensor> gradients = torch::autograd::grad({y_TD}, wanted, {leaves_->d_y_TD});
  const double seconds = CpuSeconds() - start;
  gate_gradient_size_ = gradients[1].abs().sum().item<double>();
  return seconds;
}

}  // namespace moe::bench
