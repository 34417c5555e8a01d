// The commands of moegate, one file each: what a command takes and what it does stand side by side.
#pragma once

#include <string>

namespace CLI {
class App;
}

namespace moe {

// What main reads for all commands.
struct CommonOptions {
  std::string cases_folder;
  std::string golden_folder;
  std::string adapters_folder;
};

// Each adds its command to `app`, with its options. Parsing a command line that names it runs it:
// `status` is then the exit status, 0, 1 or 2 as README says. A command throws Error, which is
// status 2. `common` and `status` are read and written then, so they must outlive `app`.
void RegisterList(CLI::App& app, const CommonOptions& common, int& status);
void RegisterExplain(CLI::App& app, const CommonOptions& common, int& status);
void RegisterCheck(CLI::App& app, const CommonOptions& common, int& status);
void RegisterInputs(CLI::App& app, const CommonOptions& common, int& status);
void RegisterRun(CLI::App& app, const CommonOptions& common, int& status);
// These need the parallel step.
void RegisterMutate(CLI::App& app, const CommonOptions& common, int& status);
void RegisterSoak(CLI::App& app, const CommonOptions& common, int& status);
void RegisterRegen(CLI::App& app, const CommonOptions& common, int& status);

}  // namespace moe
