#include "tools/producer.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
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

// Importing PyTorch and a framework takes up to 15 s on a quiet machine, and machines are busy.
constexpr std::chrono::seconds kStart{180};

// The last line of what the script prints, which is the path of a python.
std::string MakeEnvironment(const std::string& release, const std::string& adapters) {
  const std::string script = (fs::path(adapters) / "environment.sh").string();
  if (!fs::exists(script)) {
    throw Error("--producer",
                fmt::format("needs {}, which is not there; run it in a clone", script));
  }
  // The release was matched against a pattern without quotes, and the script is ours.
  FILE* pipe = ::popen(fmt::format("bash '{}' {}", script, release).c_str(), "r");
  if (pipe == nullptr) {
    throw Error("--producer",
                fmt::format("{} cannot be started: {}", script, std::strerror(errno)));
  }
  std::string printed;
  for (int c = std::fgetc(pipe); c != EOF; c = std::fgetc(pipe)) {
    printed += static_cast<char>(c);
  }
  if (const int status = ::pclose(pipe); status != 0 || printed.empty()) {
    throw Error("--producer",
                fmt::format("has no environment of {}; environment.sh says why above", release));
  }
  printed.erase(printed.find_last_not_of('\n') + 1);
  return printed.substr(printed.find_last_of('\n') + 1);
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

// What the producer has answered so far, read from the file that is its standard output.
class Answers {
 public:
  Answers(std::string path, std::string who, const std::vector<ProducerStep>& steps)
      : path_(std::move(path)), who_(std::move(who)), steps_(steps) {}

  std::size_t count() const { return count_; }

  // Hands new answers on; true when there is something new, be it that the producer is ready.
  bool ReadNew(const std::function<void(std::size_t, const ProducerAnswer&)>& answered) {
    std::ifstream file(path_, std::ios::binary);
    file.seekg(static_cast<std::streamoff>(read_));
    bool any = false;
    for (std::string line; std::getline(file, line) && !file.eof();) {
      read_ += line.size() + 1;
      if (const auto answer = Parse(line)) {
        answered(count_++, *answer);
      }
      any = true;
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

  std::string path_;
  std::string who_;
  const std::vector<ProducerStep>& steps_;
  std::size_t read_ = 0;
  std::size_t count_ = 0;
  bool ready_ = false;
};

// Becomes the producer; returns only by an exception.
[[noreturn]] void Become(const std::vector<std::string>& command, const std::string& answers,
                         const std::string& scratch) {
  const int fd = ::open(answers.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (fd < 0 || ::dup2(fd, STDOUT_FILENO) < 0) {
    throw Error(answers, fmt::format("cannot be written: {}", std::strerror(errno)));
  }
  // What it leaves in temporary folders when it is killed goes with our own.
  ::setenv("TMPDIR", scratch.c_str(), /*overwrite=*/1);
  std::vector<char*> arguments;
  for (const std::string& argument : command) {
    arguments.push_back(const_cast<char*>(argument.c_str()));
  }
  arguments.push_back(nullptr);
  ::execvp(arguments[0], arguments.data());
  throw Error(command[0], fmt::format("cannot be started: {}", std::strerror(errno)));
}

}  // namespace

Producer FindProducer(const std::string& text, const std::string& adapters) {
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
  const std::string python = MakeEnvironment(text, adapters);
  return {text,
          {python, (fs::path(adapters) / adapter->second).string(), "--release",
           std::string(match[2])}};
}

void RunProducer(const Producer& producer, const std::vector<ProducerStep>& steps,
                 const std::string& scratch_folder, std::chrono::milliseconds deadline,
                 const std::function<void(std::size_t step, const ProducerAnswer&)>& answered) {
  std::vector<std::string> command = producer.command;
  command.insert(command.end(), {"--steps", WriteSteps(steps, scratch_folder, deadline)});
  const std::string path = (fs::path(scratch_folder) / "answers").string();
  Answers answers(path, producer.name, steps);
  std::string failure;
  try {
    RunRanks({.deadline = kStart + deadline,
              .progressed = [&]() -> std::optional<std::chrono::milliseconds> {
                return answers.ReadNew(answered) ? std::optional(kStart + deadline) : std::nullopt;
              },
              .called = producer.name,
              .before_signal_death = [&] { fs::remove_all(scratch_folder); }},
             [&](std::int64_t) { Become(command, path, scratch_folder); });
    failure = producer.name + ": ended without an answer to this step";
  } catch (const Error& error) {
    failure = error.what();
  }
  try {
    answers.ReadNew(answered);  // what it said last
  } catch (const Error& error) {
    failure = error.what();
  }
  for (std::size_t step = answers.count(); step < steps.size(); ++step) {
    answered(step, {ProducerAnswer::Kind::kError, failure});
  }
}

}  // namespace moe
