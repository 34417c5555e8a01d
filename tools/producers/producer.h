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
// one's own. `scratch_folder` is removed if a signal ends this process meanwhile. Throws
// Error("--producer", ...).
Producer FindProducer(const std::string& text, const std::string& adapters,
                      const std::string& scratch_folder);

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

struct ProducerDeadlines {
  // Until it is ready. Importing PyTorch and a framework takes up to 15 s on a quiet machine, and
  // machines are busy.
  std::chrono::milliseconds start{180'000};
  // What the ranks of one step may take; the producer itself holds them to it.
  std::chrono::milliseconds step{60'000};
};

// Who hears of what the producer says, as soon as it did.
struct ProducerListener {
  std::function<void()> ready = [] {};  // the first step begins
  std::function<void(std::size_t step, const ProducerAnswer&)> answered;
};

// Starts the producer and calls `answered` once for every step, in the order of `steps`. A step
// that never got an answer is an error that says why: the producer ended early (with its last
// words), printed something else, after which nothing it says counts, or was silent for too long.
// Then it is ended with all that it started. How it ends after the last answer is of no interest.
// What the listener throws ends the producer and comes out here.
void RunProducer(const Producer& producer, const std::vector<ProducerStep>& steps,
                 const std::string& scratch_folder, const ProducerDeadlines& deadlines,
                 const ProducerListener& listener);

}  // namespace moe
