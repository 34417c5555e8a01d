#include "tools/producer.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
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
// More than the answers to any sweep; a program that prints so much is none that answers.
constexpr std::uintmax_t kMostUnread = 16U << 20U;

// Becomes a program that writes its standard output to a file; returns only by an exception.
[[noreturn]] void Become(const std::vector<std::string>& command, const std::string& output) {
  const int fd = ::open(output.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (fd < 0 || ::dup2(fd, STDOUT_FILENO) < 0) {
    throw Error(output, fmt::format("cannot be written: {}", std::strerror(errno)));
  }
  std::vector<char*> arguments;
  for (const std::string& argument : command) {
    arguments.push_back(const_cast<char*>(argument.c_str()));
  }
  arguments.push_back(nullptr);
  ::execvp(arguments[0], arguments.data());
  throw Error(command[0], fmt::format("cannot be started: {}", std::strerror(errno)));
}

// The path of a python: the last line of what the script prints.
std::string MakeEnvironment(const std::string& release, const std::string& adapters,
                            const std::string& scratch) {
  const std::string script = (fs::path(adapters) / "environment.sh").string();
  if (!fs::exists(script)) {
    throw Error("--producer",
                fmt::format("needs {}, which is not there; run it in a clone", script));
  }
  const std::string printed = (fs::path(scratch) / "environment").string();
  // What it says meanwhile, and why it fails, is for the user to see at once.
  const int terminal = ::fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
  try {
    RunRanks({.deadline = kDownload, .before_signal_death = [&] { fs::remove_all(scratch); }},
             [&](std::int64_t) {
               ::dup2(terminal, STDERR_FILENO);
               Become({"bash", script, release}, printed);
             });
  } catch (const Error&) {
    ::close(terminal);
    throw Error("--producer",
                fmt::format("has no environment of {}; environment.sh says why above", release));
  }
  ::close(terminal);
  std::string python;
  std::ifstream file(printed);
  for (std::string line; std::getline(file, line);) {
    python = line;
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

// What the producer has said so far, read from the file that is its standard output.
class Answers {
 public:
  Answers(std::string path, std::string who, const std::vector<ProducerStep>& steps)
      : path_(std::move(path)), who_(std::move(who)), steps_(steps) {}

  std::size_t count() const { return count_; }

  // Hands on what is new; false when there is nothing. Throws Error for what is no answer, and from
  // then on reads no more.
  bool ReadNew(const ProducerListener& listener) {
    std::error_code not_there;
    if (const auto size = fs::file_size(path_, not_there);
        !not_there && !spoiled_ && size - read_ > kMostUnread) {
      spoiled_ = true;
      throw Error(who_, "prints without end instead of answering");
    }
    std::ifstream file(path_, std::ios::binary);
    file.seekg(static_cast<std::streamoff>(read_));
    bool any = false;
    for (std::string line; !spoiled_ && std::getline(file, line) && !file.eof();) {
      read_ += line.size() + 1;
      any = true;
      if (const auto answer = Parse(line)) {
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
      spoiled_ = true;
      constexpr std::size_t kShown = 200;
      throw Error(who_, fmt::format("printed what is no answer ({}): {}", error.what(),
                                    line.substr(0, kShown)));
    }
  }

  std::string path_;
  std::string who_;
  const std::vector<ProducerStep>& steps_;
  std::uintmax_t read_ = 0;
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
  const std::string path = (fs::path(scratch_folder) / "answers").string();
  fs::remove(path);  // an earlier producer's
  Answers answers(path, producer.name, steps);
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
               Become(command, path);
             });
  });
  attempt([&] { answers.ReadNew(careful); });  // what it said last
  for (std::size_t step = answers.count(); step < steps.size(); ++step) {
    listener.answered(step, {ProducerAnswer::Kind::kError, failure});
  }
}

}  // namespace moe
