#include "cases/whole_reference.h"

#include "harness/measure/problem.h"
#include "reference/moe_reference.h"

namespace moe {

std::map<std::string, std::vector<double>> WholeReference(const Model& model,
                                                          const TensorSource& inputs) {
  std::map<std::string, std::vector<double>> results;
  const auto append = [&](const reference::Results& parts) {
    for (const auto& [name, part] : parts) {
      results[name].insert(results[name].end(), part.value.data(),
                           part.value.data() + part.value.size());
    }
  };
  const reference::StepResult step =
      reference::RunStep(model, MakeProblem(model, inputs), {},
                         [&](const reference::ExpertGradients& expert) { append(expert.results); });
  append(step.results);
  return results;
}

}  // namespace moe
