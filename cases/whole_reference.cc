#include "cases/whole_reference.h"

#include "harness/measure/problem.h"
#include "reference/moe_reference.h"

namespace moe {

std::map<std::string, std::vector<double>> WholeReference(const Model& model,
                                                          const TensorSource& inputs) {
  std::map<std::string, std::vector<double>> results;
  const auto append = [&](const std::string& name, const reference::Estimate& part) {
    results[name].insert(results[name].end(), part.value.data(),
                         part.value.data() + part.value.size());
  };
  const reference::StepResult step = reference::RunStep(
      model, MakeProblem(model, inputs), {}, [&](const reference::ExpertGradients& gradients) {
        append("d_w1_EFD", gradients.d_w1_FD);
        append("d_w3_EFD", gradients.d_w3_FD);
        append("d_w2_EDF", gradients.d_w2_DF);
      });
  append("y_TD", step.y_TD);
  append("d_x_TD", step.d_x_TD);
  append("d_gate_ED", step.d_gate_ED);
  append("d_gate_bias_E", step.d_gate_bias_E);
  append("d_shared_w1_FD", step.d_shared_w1_FD);
  append("d_shared_w3_FD", step.d_shared_w3_FD);
  append("d_shared_w2_DF", step.d_shared_w2_DF);
  append("d_shared_gate_D", step.d_shared_gate_D);
  return results;
}

}  // namespace moe
