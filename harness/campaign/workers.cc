#include "harness/campaign/workers.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <new>
#include <thread>
#include <utility>

#include "harness/base/error.h"
#include "harness/launch/rank_processes.h"

namespace moe {
namespace {

// Counters that all workers see.
struct Shared {
  std::atomic<std::int64_t> next{0};
  std::atomic<std::int64_t> done{0};
};

class SharedMemory {
 public:
  SharedMemory() {
    void* place =
        ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (place == MAP_FAILED) {
      throw Error("workers", fmt::format("got no shared memory: {}", std::strerror(errno)));
    }
    shared_ = new (place) Shared;
  }
  ~SharedMemory() { ::munmap(shared_, sizeof(Shared)); }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  Shared* operator->() const { return shared_; }

 private:
  Shared* shared_;
};

// What one worker answers, in a file without a name: nothing is left behind, however things end.
class Answers {
 public:
  Answers() : fd_(::memfd_create("moegate", MFD_CLOEXEC)) {
    if (fd_ < 0) {
      throw Error("workers", fmt::format("got no memory file: {}", std::strerror(errno)));
    }
  }
  ~Answers() {
    if (fd_ >= 0) {
      ::close(fd_);
    }
  }
  Answers(Answers&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Answers& operator=(Answers&&) = delete;
  Answers(const Answers&) = delete;
  Answers& operator=(const Answers&) = delete;

  void Append(std::int64_t task, const std::string& text) const {
    const std::string record = fmt::format("{} {}\n{}", task, text.size(), text);
    for (std::size_t written = 0; written < record.size();) {
      const ssize_t n = ::write(fd_, record.data() + written, record.size() - written);
      if (n < 0 && errno != EINTR) {
        throw Error("workers",
                    fmt::format("an answer could not be written: {}", std::strerror(errno)));
      }
      written += n < 0 ? 0 : static_cast<std::size_t>(n);
    }
  }

  void ReadInto(std::vector<std::string>& answers) const {
    const off_t size = ::lseek(fd_, 0, SEEK_END);
    std::string all(static_cast<std::size_t>(std::max<off_t>(size, 0)), '\0');
    if (::pread(fd_, all.data(), all.size(), 0) != static_cast<ssize_t>(all.size())) {
      throw Error("workers", "the answers of a worker could not be read");
    }
    for (std::size_t at = 0; at < all.size();) {
      const std::size_t space = all.find(' ', at);
      const std::size_t line = all.find('\n', space);
      const std::size_t length = std::stoul(all.substr(space + 1, line - space - 1));
      answers.at(std::stoul(all.substr(at, space - at))) = all.substr(line + 1, length);
      at = line + 1 + length;
    }
  }

 private:
  int fd_;
};

// Standard error of this process, which workers do not have.
class ProgressLine {
 public:
  explicit ProgressLine(bool shown) : fd_(shown ? ::dup(STDERR_FILENO) : -1) {}
  ~ProgressLine() {
    Write("\r\033[K");
    if (fd_ >= 0) {
      ::close(fd_);
    }
  }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  // A line that cannot be shown is no reason to stop.
  void Write(const std::string& text) const {
    if (fd_ >= 0) {
      [[maybe_unused]] const ssize_t ignored = ::write(fd_, text.data(), text.size());
    }
  }

 private:
  int fd_;
};

}  // namespace

std::vector<std::string> RunInWorkers(std::int64_t count,
                                      const std::function<std::string(std::int64_t task)>& body,
                                      const WorkerOptions& options) {
  const auto cores = static_cast<std::int64_t>(std::max(1U, std::thread::hardware_concurrency()));
  const std::int64_t jobs =
      std::max<std::int64_t>(1, std::min(options.jobs > 0 ? options.jobs : cores, count));
  const SharedMemory shared;
  std::vector<Answers> answers_of(static_cast<std::size_t>(jobs));
  const ProgressLine progress(options.progress);
  try {
    RunRanks({.world_size = jobs, .deadline = options.deadline}, [&](std::int64_t worker) {
      const Answers& answers = answers_of[static_cast<std::size_t>(worker)];
      for (std::int64_t task = shared->next++; task < count; task = shared->next++) {
        answers.Append(task, body(task));
        progress.Write(fmt::format("\r\033[K[{}/{}]", ++shared->done, count));
      }
    });
  } catch (const Error& error) {
    throw Error("workers", error.what());
  }
  std::vector<std::string> answers(static_cast<std::size_t>(count));
  for (const Answers& of_worker : answers_of) {
    of_worker.ReadInto(answers);
  }
  return answers;
}

}  // namespace moe
