// Options that several commands have, in the same words. Each returns what CLI11 made of it.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

namespace moe {

// SELECT..., as Select() of selection.h reads it.
CLI::Option* AddSelect(CLI::App& command, std::vector<std::string>& select);

// --dtype, as StepDtype() of selection.h reads it.
CLI::Option* AddDtype(CLI::App& command, std::string& dtype);

// --backend, one of threads, gloo and nccl; `backend` is the default.
CLI::Option* AddBackend(CLI::App& command, std::string& backend);

// --jobs, as WorkerOptions has it; `jobs` is the default.
CLI::Option* AddJobs(CLI::App& command, std::int64_t& jobs);

}  // namespace moe
