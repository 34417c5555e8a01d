#include "tools/commands/options.h"

namespace moe {

CLI::Option* AddSelect(CLI::App& command, std::vector<std::string>& select) {
  return command.add_option("SELECT", select,
                            "CASE or CASE@LAYOUT, with * and ? as in a shell: 'issues/*', "
                            "'issues/torchtitan-2387@tp2.ep2.etp1'");
}

CLI::Option* AddDtype(CLI::App& command, std::string& dtype) {
  return command.add_option("--dtype", dtype, "Only float64, float32 or bfloat16");
}

CLI::Option* AddBackend(CLI::App& command, std::string& backend) {
  return command.add_option("--backend", backend, "threads, gloo or nccl")
      ->capture_default_str()
      ->check(CLI::IsMember({"threads", "gloo", "nccl"}));
}

CLI::Option* AddJobs(CLI::App& command, std::int64_t& jobs) {
  return command.add_option("--jobs", jobs, "Processes; 0: one per core")
      ->capture_default_str()
      ->check(CLI::Range(0, 1024));
}

}  // namespace moe
