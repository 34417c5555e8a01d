// moegate run: what it takes, and the two that can run a case.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tools/commands/commands.h"
#include "tools/commands/output.h"

namespace moe {

struct RunCommand {
  std::vector<std::string> select;
  std::string layout;  // instead of the cases' own
  std::string dtype;   // instead of the cases' own
  std::string backend = "threads";
  std::string fault;  // planted in every run
  std::optional<std::uint64_t>
      seed;  // instead of the cases' own, which their golden files speak of
  std::optional<std::string> dump_folder;
  std::optional<std::chrono::milliseconds> deadline;  // of any wait for a rank
  std::string producer;                       // another framework instead of the built-in step
  std::vector<std::string> producer_options;  // "KEY=V1,V2"
  OutputOptions output;
};

// Each returns the exit status and throws Error. The built-in step needs LibTorch.
int RunBuiltIn(const CommonOptions& common, const RunCommand& command);
int RunWithProducer(const CommonOptions& common, const RunCommand& command);

}  // namespace moe
