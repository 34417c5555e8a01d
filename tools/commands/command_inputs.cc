// moegate inputs: writes a case's problem, so that a foreign framework can run exactly the same.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "harness/base/error.h"
#include "tools/commands/commands.h"
#include "tools/commands/problem_folder.h"

namespace moe {
namespace {

struct InputsCommand {
  std::string name;
  std::string folder;
  std::string dtype = "float64";
};

void Inputs(const CommonOptions& common, const InputsCommand& command) {
  const auto dtype = DtypeFromText(command.dtype);
  if (dtype != Dtype::kFloat64 && dtype != Dtype::kFloat32 && dtype != Dtype::kBfloat16) {
    throw Error("--dtype",
                fmt::format("\"{}\" is no dtype of inputs; use float64, float32 or bfloat16",
                            command.dtype));
  }
  const CaseSpec spec = FindCase(common.cases_folder, command.name);
  const InputGenerator generator(spec);
  const std::size_t tensors = WriteProblem(spec, generator, command.folder, *dtype);
  fmt::print(
      "{}: inputs.safetensors ({} tensors) and problem.json; smallest top-k margin {:.2e} in "
      "logits\n",
      command.folder, tensors, generator.smallest_logit_margin());
}

}  // namespace

void RegisterInputs(CLI::App& app, const CommonOptions& common, int& status) {
  const auto command = std::make_shared<InputsCommand>();
  CLI::App* sub =
      app.add_subcommand("inputs", "Write what another framework needs to run a case's problem");
  sub->add_option("CASE", command->name, "A case")->required();
  sub->add_option("--out", command->folder, "Folder to write to")->required();
  sub->add_option("--dtype", command->dtype, "float64, float32 or bfloat16")->capture_default_str();
  sub->callback([&common, &status, command] {
    Inputs(common, *command);
    status = 0;
  });
}

}  // namespace moe
