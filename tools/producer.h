// Another framework as a producer of dumps: one process that imports it once and runs many steps
// (tools/adapters/README.md describes what it is given and what it answers).
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "harness/base/dtype.h"

namespace moe {

struct Producer {
  std::string name;                  // as it was asked for: "torchtitan==0.2.2", "./my_step.py"
  std::vector<std::string> command;  // without the steps
};

// NAME==VERSION is a release that `adapters`/environment.sh knows; its environment is made if need
// be, which may take minutes and is told on standard error. Anything with a '/' is a program of
// one's own. Throws Error("--producer", ...).
Producer FindProducer(const std::string& text, const std::string& adapters);

struct ProducerStep {
  std::string id;       // "issues/torchtitan-2387@tp2.ep2.etp1"
  std::string problem;  // folder that WriteProblem wrote
  std::string layout;
  Dtype dtype = Dtype::kFloat64;
  std::map<std::string, std::string> options;
  std::string out;  // folder of the dump, not there yet
};

struct ProducerAnswer {
  enum class Kind { kDump, kSkipped, kError };
  Kind kind = Kind::kError;
  std::string text;  // why, where there is no dump
};

// Starts the producer and calls `answered` with the place of every step in `steps` and what the
// producer said of it, as soon as it did. A step that never got an answer is an error with the
// producer's last words: it ended early, answered with nonsense, or was silent for longer than a
// start and a step may take; then it is ended with all that it started. `deadline` is what one step
// may take. What `answered` throws ends the producer and comes out here.
void RunProducer(const Producer& producer, const std::vector<ProducerStep>& steps,
                 const std::string& scratch_folder, std::chrono::milliseconds deadline,
                 const std::function<void(std::size_t step, const ProducerAnswer&)>& answered);

}  // namespace moe
