// The commands of moegate, one function and one file each.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "harness/base/dtype.h"
#include "harness/report/result.h"

namespace moe {

struct CommonOptions {
  std::string cases_folder;
  std::string golden_folder;
  std::string adapters_folder;
};

struct OutputOptions {
  bool json = false;                 // results as JSON on standard output instead of text
  std::optional<std::string> junit;  // and as JUnit XML in this file
};

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
};

struct RegenCommand {
  std::vector<std::string> select;
  bool accept = false;     // also write what is wider than before
  bool calibrate = false;  // write nothing: print what clean runs reach of the bounds
};

struct MutateCommand {
  std::vector<std::string> select;
  std::string layout;  // instead of the cases' own
  std::string dtype;   // only this one
  std::vector<std::string> classes;
  std::int64_t seeds = 2;
  std::int64_t most = 15'000;  // planted, unless full
  bool full = false;
  std::int64_t jobs = 0;  // 0: one per core
  bool foreign = false;   // judge by the values alone, as check does
};

struct SoakCommand {
  std::vector<std::string> select;
  std::string layout;  // instead of the cases' own
  std::string dtype;   // only this one
  std::string backend = "threads";
  std::int64_t seeds = 10;
  std::optional<std::uint64_t> first_seed;
  std::int64_t jobs = 0;  // 0: one per core
};

// Each returns the exit status: 0, 1 or 2 as in DESIGN. They throw Error, which is status 2.
int List(const CommonOptions& common, const std::vector<std::string>& select, bool json);
int Explain(const CommonOptions& common, const std::string& target);
int Inputs(const CommonOptions& common, const std::string& name, const std::string& folder,
           Dtype dtype);
int Check(const CommonOptions& common, const std::vector<std::string>& dumps,
          const OutputOptions& output);
int Run(const CommonOptions& common, const RunCommand& command, const OutputOptions& output);
int RunWithProducer(const CommonOptions& common, const RunCommand& command,
                    const OutputOptions& output);
int Regen(const CommonOptions& common, const RegenCommand& command);
int Mutate(const CommonOptions& common, const MutateCommand& command, bool json);
int Soak(const CommonOptions& common, const SoakCommand& command);

// Prints the summary line or the JSON, writes the JUnit file, and returns the exit status.
int Finish(const std::vector<Result>& results, std::int64_t listed, const OutputOptions& output);

}  // namespace moe
