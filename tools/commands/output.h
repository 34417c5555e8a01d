// How the commands that judge say what they found.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "harness/report/result.h"

namespace CLI {
class App;
}

namespace moe {

struct OutputOptions {
  bool json = false;  // results as JSON on standard output instead of text
  std::string junit;  // and as JUnit XML in this file, where it is not empty
};

// --json and --junit.
void AddOutput(CLI::App& command, OutputOptions& output);

// Prints the summary line or the JSON, writes the JUnit file, and returns the exit status. `listed`
// is how many results there should be. Throws Error for a file that cannot be written.
int Finish(const std::vector<Result>& results, std::int64_t listed, const OutputOptions& output);

}  // namespace moe
