#include "tools/producers/producer.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>
#include <regex>

#include "harness/base/error.h"
#include "harness/json/json_reader.h"
#include "harness/launch/rank_processes.h"

namespace moe {
namespace {

namespace fs = std::filesystem;

// Which script in tools/adapters/ runs which framework.
const std::map<std::string, std::string> kAdapters = {{"megatron-core", "megatron_step.py"},
                                                      {"torchtitan", "torchtitan_step.py"}};

// For the producer to end its ranks and to write a dump, besides as much time again as its ranks
// may take: a machine on which ranks are slow is slow at the rest as well.
constexpr std::chrono::seconds kStepSlack{5};
// To go once everything is said.
constexpr std::chrono::seconds kGoing{5};
// A large wheel over a slow line. Pip has deadlines of its own for a line that is dead.
constexpr std::chrono::hours kDownload{24};
// An answer is one sentence; even the last words in it are cut at a few thousand letters.
constexpr std::size_t kLongestLine = 1U << 20U;

// Becomes a program that writes its standard output to `output`; returns only by an exception.
[[noreturn]] void Become(const std::vector<std::string>& command, int output) {
  if (::dup2(output, STDOUT_FILENO) < 0) {
    throw Error(command[0], fmt::format("has no standard output: {}", std::strerror(errno)));
  }
  std::vector<char*> arguments;
  for (const std::string& argument : command) {
    arguments.push_back(const_cast<char*>(argument.c_str()));
  }
  arguments.push_back(nullptr);
  ::execvp(arguments[0], arguments.data());
  throw Error(command[0], fmt::format("cannot be started: {}", std::strerror(errno)));
}

// What a program prints, on its way here. A pipe and no file: a program that prints without end has
// to wait for its reader, and ends with it.
class Printed {
 public:
  Printed() {
    if (::pipe2(ends_.data(), O_CLOEXEC) != 0 || ::fcntl(ends_[0], F_SETFL, O_NONBLOCK) != 0) {
      throw Error("--producer", fmt::format("could not open a pipe: {}", std::strerror(errno)));
    }
  }
  ~Printed() {
    ::close(ends_[0]);
    ::close(ends_[1]);
  }
  Printed(const Printed&) = delete;
  Printed& operator=(const Printed&) = delete;

  int write_end() const { return ends_[1]; }

  // The next whole line, without its end; nothing when there is none yet. Throws Error(who, ...)
  // for a line without end.
  std::optional<std::string> NextLine(const std::string& who) {
    for (std::array<char, 4096> buffer; text_.find('\n') == std::string::npos;) {
      const ssize_t count = ::read(ends_[0], buffer.data(), buffer.size());
      if (count <= 0) {
        return std::nullopt;
      }
      text_.append(buffer.data(), static_cast<std::size_t>(count));
      if (text_.size() > kLongestLine) {
        throw Error(who, "prints without end instead of answering");
      }
    }
    const std::size_t end = text_.find('\n');
    std::string line = text_.substr(0, end);
    text_.erase(0, end + 1);
    return line;
  }

 private:
  std::array<int, 2> ends_{-1, -1};
  std::string text_;
};

// The path of a python: the last line of what the script prints.
std::string MakeEnvironment(const std::string& release, const std::string& adapters,
                            const std::string& scratch) {
  const std::string script = (fs::path(adapters) / "environment.sh").string();
  if (!fs::exists(script)) {
    throw Error("--producer",
                fmt::format("needs {}, which is not there; run it in a clone", script));
  }
  // What it says meanwhile, and why it fails, is for the user to see at once.
  const int terminal = ::fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
  Printed printed;
  try {
    RunRanks({.deadline = kDownload, .before_signal_death = [&] { fs::remove_all(scratch); }},
             [&](std::int64_t) {
               ::dup2(terminal, STDERR_FILENO);
               Become({"bash", script, release}, printed.write_end());
             });
  } catch (const Error&) {
    ::close(terminal);
    throw Error("--producer",
                fmt::format("has no environment of {}; environment.sh says why above", release));
  }
  ::close(terminal);
  std::string python;
  while (const auto line = printed.NextLine(script)) {
    python = *line;
  }
  return python;
}

std::string WriteSteps(const std::vector<ProducerStep>& steps, const std::string& folder,
                       std::chrono::milliseconds deadline) {
  Json json = {{"schema", 1},
               {"deadline_s", std::chrono::duration<double>(deadline).count()},
               {"steps", Json::array()}};
  for (const ProducerStep& step : steps) {
    json["steps"].push_back({{"id", step.id},
                             {"problem", step.problem},
                             {"layout", step.layout},
                             {"dtype", ToText(step.dtype)},
                             {"options", step.options},
                             {"out", step.out}});
  }
  const std::string path = (fs::path(folder) / "steps.json").string();
  WriteJsonFile(path, json);
  return path;
}

// What the producer has said so far.
class Answers {
 public:
  Answers(std::string who, const std::vector<ProducerStep>& steps)
      : who_(std::move(who)), steps_(steps) {}

  int write_end() const { return printed_.write_end(); }
  std::size_t count() const { return count_; }

  // Hands on what is new; false when there is nothing. Throws Error for what is no answer, and from
  // then on reads no more.
  bool ReadNew(const ProducerListener& listener) {
    bool any = false;
    while (!spoiled_) {
      spoiled_ = true;  // unless what comes is an answer
      const auto line = printed_.NextLine(who_);
      const auto answer = line ? Parse(*line) : std::nullopt;
      spoiled_ = false;
      if (!line) {
        break;
      }
      any = true;
      if (answer) {
        listener.answered(count_++, *answer);
      } else {
        listener.ready();
      }
    }
    return any;
  }

 private:
  // Nothing for the line that says it is ready.
  std::optional<ProducerAnswer> Parse(const std::string& line) {
    try {
      const Json json = ParseJson(line, who_);
      const JsonNode root(json, who_);
      if (!ready_) {
        root.OnlyKeys({"ready"});
        ready_ = root.At("ready").Bool();
        if (!ready_) {
          root.Fail("says that it is not ready; it must say nothing until it is");
        }
        return std::nullopt;
      }
      root.OnlyKeys({"step", "dump", "skipped", "error"});
      const auto next = static_cast<std::int64_t>(count_);
      if (count_ >= steps_.size() || root.At("step").Integer() != next) {
        root.Fail(fmt::format("answers step {}; {} of {} are answered", root.At("step").Integer(),
                              count_, steps_.size()));
      }
      if (const auto dump = root.Find("dump")) {
        if (dump->String() != steps_[count_].out) {
          dump->Fail(
              fmt::format("is {}; it was asked for in {}", dump->String(), steps_[count_].out));
        }
        return ProducerAnswer{ProducerAnswer::Kind::kDump, ""};
      }
      if (const auto skipped = root.Find("skipped")) {
        return ProducerAnswer{ProducerAnswer::Kind::kSkipped, skipped->String()};
      }
      return ProducerAnswer{ProducerAnswer::Kind::kError, root.At("error").String()};
    } catch (const Error& error) {
      constexpr std::size_t kShown = 200;
      throw Error(who_, fmt::format("printed what is no answer ({}): {}", error.what(),
                                    line.substr(0, kShown)));
    }
  }

  Printed printed_;
  std::string who_;
  const std::vector<ProducerStep>& steps_;
  std::size_t count_ = 0;
  bool ready_ = false;
  bool spoiled_ = false;
};

}  // namespace

Producer FindProducer(const std::string& text, const std::string& adapters,
                      const std::string& scratch_folder) {
  if (text.find('/') != std::string::npos) {
    if (::access(text.c_str(), X_OK) != 0 || fs::is_directory(text)) {
      throw Error("--producer", fmt::format("{} is not a program that can be started", text));
    }
    return {text, {text}};
  }
  static const std::regex kRelease("([a-z][a-z0-9-]*)==([0-9]+(\\.[0-9]+)*)");
  std::smatch match;
  if (!std::regex_match(text, match, kRelease)) {
    throw Error("--producer", fmt::format("\"{}\" is neither NAME==VERSION, such as "
                                          "torchtitan==0.2.2, nor a program's path with a '/'",
                                          text));
  }
  const auto adapter = kAdapters.find(match[1]);
  if (adapter == kAdapters.end()) {
    std::vector<std::string> known;
    for (const auto& [name, script] : kAdapters) {
      known.push_back(name);
    }
    throw Error("--producer", fmt::format("there is no adapter for {}; there are {}",
                                          std::string(match[1]), fmt::join(known, ", ")));
  }
  const std::string python = MakeEnvironment(text, adapters, scratch_folder);
  // -E: a PYTHONPATH of the caller's would come before what is pinned.
  return {text,
          {python, "-E", (fs::path(adapters) / adapter->second).string(), "--release",
           std::string(match[2])}};
}

void RunProducer(const Producer& producer, const std::vector<ProducerStep>& steps,
                 const std::string& scratch_folder, const ProducerDeadlines& deadlines,
                 const ProducerListener& listener) {
  std::vector<std::string> command = producer.command;
  command.insert(command.end(), {"--steps", WriteSteps(steps, scratch_folder, deadlines.step)});
  Answers answers(producer.name, steps);
  bool listener_failed = false;
  const auto hand_on = [&](const auto& listen) {
    listener_failed = true;  // unless it comes back
    listen();
    listener_failed = false;
  };
  const ProducerListener careful = {.ready = [&] { hand_on(listener.ready); },
                                    .answered =
                                        [&](std::size_t step, const ProducerAnswer& answer) {
                                          hand_on([&] { listener.answered(step, answer); });
                                        }};
  const auto progressed = [&]() -> std::optional<std::chrono::milliseconds> {
    if (!answers.ReadNew(careful)) {
      return std::nullopt;
    }
    return answers.count() == steps.size() ? kGoing : 2 * deadlines.step + kStepSlack;
  };
  std::string failure = producer.name + ": ended without an answer to this step";
  const auto attempt = [&](const auto& action) {
    try {
      action();
    } catch (const Error& error) {
      if (listener_failed) {
        throw;
      }
      failure = error.what();
    }
  };
  attempt([&] {
    RunRanks({.deadline = deadlines.start,
              .progressed = progressed,
              .called = producer.name,
              .before_signal_death = [&] { fs::remove_all(scratch_folder); }},
             [&](std::int64_t) {
               // What it leaves in temporary folders when it is killed goes with our own.
               ::setenv("TMPDIR", scratch_folder.c_str(), /*overwrite=*/1);
               Become(command, answers.write_end());
             });
  });
  attempt([&] { answers.ReadNew(careful); });  // what it said last
  for (std::size_t step = answers.count(); step < steps.size(); ++step) {
    listener.answered(step, {ProducerAnswer::Kind::kError, failure});
  }
}

}  // namespace moe
