// moegate: registers the commands, and lets the one that the command line names run.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "harness/base/error.h"
#include "tools/commands/commands.h"
#include "tools/commands/keep_memory.h"
#include "tools/commands/version.h"

namespace moe {
namespace {

// The clone that this binary was built from, unless the working directory is one.
std::string DefaultFolder(const std::string& name) {
  return std::filesystem::is_directory(name) ? name : std::string(MOEGATE_SOURCE_DIR "/") + name;
}

int Main(int argc, char** argv) {
  CommonOptions common{DefaultFolder("cases"), DefaultFolder("golden"),
                       DefaultFolder("tools/adapters")};
  int status = 0;
  CLI::App app(
      "Tells whether a parallel Mixture-of-Experts training step computes the right gradients, and "
      "if not, which "
      "reduction is missing, doubled, mis-scaled or in the wrong group.\n"
      "Exit status: 0 every listed case passed; 1 one failed, was vacuous or did not run; 2 the "
      "command, a file "
      "or the machine is at fault.",
      "moegate");
  app.require_subcommand(1);
  app.fallthrough();
  app.set_version_flag("--version", ToText(ThisVersion()), "Which moegate this is, and its parts");
  app.add_option("--cases", common.cases_folder, "Folder of case files")->capture_default_str();
  app.add_option("--golden", common.golden_folder, "Folder of golden files")->capture_default_str();
  RegisterList(app, common, status);
  RegisterExplain(app, common, status);
  RegisterCheck(app, common, status);
  RegisterInputs(app, common, status);
  RegisterRun(app, common, status);
#ifdef MOEGATE_STEP
  RegisterMutate(app, common, status);
  RegisterSoak(app, common, status);
  RegisterRegen(app, common, status);
#endif
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  return status;
}

}  // namespace
}  // namespace moe

int main(int argc, char** argv) {
  moe::KeepFreedMemory();
  // The ranks' threads are the parallelism; OpenMP pools under them would only fight.
  ::setenv("OMP_NUM_THREADS", "1", /*overwrite=*/0);
  int status = 2;
  try {
    status = moe::Main(argc, argv);
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
      throw moe::Error("standard output", "cannot be written, so the report is lost");
    }
  } catch (const std::exception& error) {
    fmt::print(stderr, "ERROR  {}\n", error.what());
    status = 2;
  }
  std::fflush(nullptr);
  // LibTorch's static destructors would take 60 ms, more than most commands, and save nothing.
  std::_Exit(status);
}
