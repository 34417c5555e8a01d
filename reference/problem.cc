#include "reference/problem.h"

namespace moe::reference {

Problem ReadProblem(const Model& model, const TensorReader& read) {
  constexpr std::int64_t kWhole = -1;
  Problem problem;
  problem.x_TD = read("x_TD", kWhole);
  problem.d_y_TD = read("d_y_TD", kWhole);
  problem.gate_ED = read("gate_ED", kWhole);
  if (model.gate_bias) {
    problem.gate_bias_E = read("gate_bias_E", kWhole).transpose();
  }
  if (model.expert_bias) {
    problem.expert_bias_E = read("expert_bias_E", kWhole).transpose();
  }
  if (model.d_shared > 0) {
    problem.shared = {read("shared_w1_FD", kWhole), read("shared_w3_FD", kWhole),
                      read("shared_w2_DF", kWhole)};
  }
  if (model.shared_gate) {
    problem.shared_gate_D = read("shared_gate_D", kWhole).transpose();
  }
  problem.expert = [read](std::int64_t expert) {
    return ExpertWeights{read("w1_EFD", expert), read("w3_EFD", expert), read("w2_EDF", expert)};
  };
  return problem;
}

}  // namespace moe::reference
