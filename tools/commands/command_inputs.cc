// moegate inputs: writes a case's problem, so that a foreign framework can run exactly the same.

#include <fmt/format.h>

#include "tools/commands/commands.h"
#include "tools/commands/problem_folder.h"

namespace moe {

int Inputs(const CommonOptions& common, const std::string& name, const std::string& folder,
           Dtype dtype) {
  const CaseSpec spec = FindCase(common.cases_folder, name);
  const InputGenerator generator(spec);
  const std::size_t tensors = WriteProblem(spec, generator, folder, dtype);
  fmt::print(
      "{}: inputs.safetensors ({} tensors) and problem.json; smallest top-k margin {:.2e} in "
      "logits\n",
      folder, tensors, generator.smallest_logit_margin());
  return 0;
}

}  // namespace moe
