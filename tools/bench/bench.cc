// moegate_bench: the speed goals of the project and where this machine stands, as a table. Run it
// with tools/bench/run.sh. Commands are timed as whole processes, by the clock on the wall;
// arithmetic in this one, on one thread and by its processor time.

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <Eigen/Core>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "harness/base/error.h"
#include "harness/base/tensors.h"
#include "harness/measure/problem.h"
#include "harness/run_case.h"
#include "reference/moe_reference.h"
#include "tools/bench/cpu_clock.h"
#include "tools/bench/torch_rates.h"
#include "tools/commands/keep_memory.h"

extern char** environ;

namespace moe::bench {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

// 8 ranks under a case that lists no fault for this layout: one clean run and its verdict.
constexpr const char* kCase = "issues/torchtitan-2387";
constexpr const char* kLayout = "dp4.tp2.ep4.etp1";

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

double MedianOf(int runs, const std::function<double()>& measure) {
  std::vector<double> values;
  for (int run = 0; run < runs; ++run) {
    values.push_back(measure());
  }
  return Median(values);
}

void Line(const std::string& what, const std::string& measured, const std::string& goal,
          const std::string& met) {
  fmt::print("{:<62}{:>12}   {:<13}{}\n", what, measured, goal, met);
  std::fflush(stdout);
}

class Table {
 public:
  Table() { Line("what", "measured", "goal", ""); }

  void AtMost(const std::string& what, double seconds, double goal) {
    Add(what, Time(seconds), "<= " + Time(goal), seconds <= goal);
  }
  void AtLeast(const std::string& what, double percent, double goal) {
    Add(what, fmt::format("{:.0f} %", percent), fmt::format(">= {:.0f} %", goal), percent >= goal);
  }
  void Note(const std::string& what, const std::string& measured) { Line(what, measured, "", ""); }

  bool all_met() const { return all_met_; }

 private:
  static std::string Time(double seconds) {
    return seconds < 1.0 ? fmt::format("{:.0f} ms", seconds * 1e3)
                         : fmt::format("{:.2f} s", seconds);
  }
  void Add(const std::string& what, const std::string& measured, const std::string& goal,
           bool met) {
    all_met_ = all_met_ && met;
    Line(what, measured, goal, met ? "met" : "MISSED");
  }

  bool all_met_ = true;
};

// The folder of this program, where moegate and its libraries lie too.
fs::path BuildFolder() {
  return fs::read_symlink("/proc/self/exe").parent_path();
}

// Seconds that `moegate <arguments>` takes from start to end. Throws Error unless it exits with 0.
double TimeCommand(const std::vector<std::string>& arguments) {
  std::vector<std::string> words = {(BuildFolder() / "moegate").string()};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) {
    argv.push_back(word.data());
  }
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
  const auto start = Clock::now();
  ::pid_t child = 0;
  const int failed =
      ::posix_spawn(&child, argv[0], &actions, /*attrp=*/nullptr, argv.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  int status = 0;
  if (failed != 0 || ::waitpid(child, &status, 0) != child) {
    throw Error(words[0], "cannot be started; build moegate first");
  }
  const double seconds = SecondsSince(start);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    throw Error(fmt::format("moegate {}", fmt::join(arguments, " ")),
                "does not pass, so that its time means nothing");
  }
  return seconds;
}

// A failure costs its own line, not the lines that follow.
void Try(Table& table, const std::string& what, double goal,
         const std::function<double()>& measure) {
  try {
    table.AtMost(what, measure(), goal);
  } catch (const Error& error) {
    table.AtMost(what, INFINITY, goal);
    fmt::print("  {}\n", error.what());
  }
}

double TimeCheck(const fs::path& scratch) {
  TimeCommand({"run", fmt::format("{}@{}", kCase, kLayout), "--dtype=float32",
               fmt::format("--dump={}", scratch.string())});
  for (const auto& entry : fs::recursive_directory_iterator(scratch)) {
    if (entry.path().filename() == "manifest.json") {
      const std::string dump = entry.path().parent_path().string();
      return MedianOf(7, [&] { return TimeCommand({"check", dump}); });
    }
  }
  throw Error(scratch.string(), "has no manifest.json below it after moegate run --dump");
}

double TimeThreads() {
  const CaseSpec spec = FindCase("cases", kCase);
  const InputGenerator inputs(spec);
  const Golden golden = ReadGolden("golden", spec);
  const auto run = [&] {
    const auto start = Clock::now();
    const Result result = RunOnce(spec, GraphOf(spec, ParseLayout(kLayout, "moegate_bench")),
                                  Dtype::kFloat32, inputs, std::nullopt, &golden, {});
    if (result.verdict != Verdict::kPass) {
      throw Error(result.id, result.text);
    }
    return SecondsSince(start);
  };
  run();  // loads LibTorch
  return MedianOf(9, run);
}

void Commands(Table& table) {
  std::string name = (fs::temp_directory_path() / "moegate-bench-XXXXXX").string();
  if (::mkdtemp(name.data()) == nullptr) {
    throw Error(name, "cannot be made");
  }
  const fs::path scratch = name;
  Try(table, "the whole gate, threads (moegate run)", 30.0, [] { return TimeCommand({"run"}); });
  Try(table, "one case on 8 ranks, threads, in this process", 0.1, TimeThreads);
  Try(table, "one case on 8 ranks, gloo (moegate run --backend=gloo)", 1.5, [] {
    return MedianOf(3, [] {
      return TimeCommand(
          {"run", fmt::format("{}@{}", kCase, kLayout), "--dtype=float32", "--backend=gloo"});
    });
  });
  Try(table, "moegate check of that case's dump", 0.05, [&] { return TimeCheck(scratch); });
  fs::remove_all(scratch);
}

// GFLOP per CPU second of Eigen's matrix product in float64, one thread, best of some runs.
double EigenGemmRate(std::int64_t size) {
  const reference::Matrix a = reference::Matrix::Random(size, size);
  const reference::Matrix b = reference::Matrix::Random(size, size);
  reference::Matrix c(size, size);
  double best = 0.0;
  for (int run = 0; run < 4; ++run) {
    const double start = CpuSeconds();
    c.noalias() = a * b;
    const auto n = static_cast<double>(size);
    best = std::max(best, 2e-9 * n * n * n / (CpuSeconds() - start));
  }
  return best;
}

double BestRate(double (*rate)(std::int64_t)) {
  return std::max({rate(1024), rate(1536), rate(2048)});
}

// The inputs of a problem in memory, copied out on request as they are from a dump: making them
// from the seed is no part of the step.
class HeldInputs : public TensorSource {
 public:
  HeldInputs(const Model& model, const TensorSource& source) : model_(model) {
    for (const TensorInfo& info : InputsOf(model)) {
      std::vector<double>& values = tensors_[info.name];
      values.resize(static_cast<std::size_t>(NumElements(info.shape)));
      source.Read(info.name, WholeOf(info.shape), values);
    }
  }

  // Slices along the first dimension alone.
  void Read(const std::string& name, const Slice& slice, std::span<double> out) const override {
    const Shape shape = ShapeOf(name, model_);
    const auto row = NumElements(shape) / shape[0];
    const auto& values = tensors_.at(name);
    auto to = out.begin();
    for (const std::int64_t index : slice.index[0]) {
      to = std::copy_n(values.begin() + index * row, row, to);
    }
  }

 private:
  Model model_;
  std::map<std::string, std::vector<double>> tensors_;
};

struct Timed {
  double seconds;
  double gate_gradient_size;
};

// Without error estimates, which need more products: FLOPs are then those of the step alone.
Timed RunReference(const Model& model, const reference::Problem& problem) {
  const double start = CpuSeconds();
  const reference::StepResult step =
      reference::RunStep(model, problem, {}, [](const reference::ExpertGradients&) {});
  return {CpuSeconds() - start, step.d_gate_ED.value.cwiseAbs().sum()};
}

void ReferenceStep(Table& table) {
  const CaseSpec spec{
      .name = "bench",
      .path = "moegate_bench",
      .model = {.tokens = 2048, .d_model = 1024, .d_expert = 704, .experts = 16, .top_k = 4},
      .numerics = {.dtypes = {Dtype::kFloat64}, .seed = 1}};
  const Model& model = spec.model;
  const HeldInputs inputs(model, InputGenerator(spec));
  const reference::Problem problem = MakeProblem(model, inputs);
  TorchStep torch(model, inputs);
  // Three products forward and six backward per slot and expert; logits and their backward.
  const double flops = 2.0 * static_cast<double>(model.tokens * model.d_model) *
                       static_cast<double>(9 * model.top_k * model.d_expert + 3 * model.experts);

  // In turn, so that what else the machine does falls on all of them alike.
  std::vector<double> eigen, mkl, reference, autograd;
  for (int round = 0; round < 3; ++round) {
    eigen.push_back(BestRate(EigenGemmRate));
    mkl.push_back(BestRate(TorchGemmRate));
    const Timed run = RunReference(model, problem);
    reference.push_back(run.seconds);
    autograd.push_back(torch.Run());
    if (std::abs(run.gate_gradient_size - torch.gate_gradient_size()) >
        1e-10 * run.gate_gradient_size) {
      throw Error("d_gate_ED", "differs between the reference and LibTorch: not the same step");
    }
  }
  const double rate = 1e-9 * flops / Median(reference);
  table.Note("DGEMM of Eigen, one thread, best of 1024, 1536, 2048",
             fmt::format("{:.1f} GF/s", Median(eigen)));
  table.Note("DGEMM of LibTorch (MKL), the same", fmt::format("{:.1f} GF/s", Median(mkl)));
  table.Note("reference step, T=2048 D=1024 F=704 E=16 K=4, float64",
             fmt::format("{:.1f} GF/s", rate));
  table.AtLeast("  of Eigen's DGEMM", 100.0 * rate / Median(eigen), 70.0);
  table.Note("  of LibTorch's DGEMM", fmt::format("{:.0f} %", 100.0 * rate / Median(mkl)));
  table.AtMost("  against LibTorch autograd, float64, one thread", Median(reference),
               Median(autograd));
}

int Main() {
  Table table;
  Commands(table);
  ReferenceStep(table);
  return table.all_met() ? 0 : 1;
}

}  // namespace
}  // namespace moe::bench

int main() {
  moe::KeepFreedMemory();  // as in moegate
  ::setenv("OMP_NUM_THREADS", "1", /*overwrite=*/1);
  try {
    return moe::bench::Main();
  } catch (const std::exception& error) {
    fmt::print(stderr, "ERROR  {}\n", error.what());
    return 2;
  }
}
