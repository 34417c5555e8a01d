// Every wait is a poll() with an end: on the pipes, on a pidfd per rank, and on a pipe that the
// signal handler writes to. A rank that ended is first seen (WNOWAIT), then its group is killed,
// and only then is it reaped: until then nobody else can get its process id.
#include "harness/launch/rank_processes.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <iostream>
#include <string_view>
#include <utility>

#include "harness/base/error.h"
#include "harness/launch/culprit.h"
#include "harness/launch/pipe.h"
#include "harness/launch/signal_watch.h"

namespace moe {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr std::size_t kKeptOutput = 64 * 1024;
// Even SIGKILL has to wait for a system call that cannot be interrupted (a dead network disk).
constexpr milliseconds kKillWait{5'000};
// How often to look where the kernel has no pidfd (before Linux 5.3).
constexpr milliseconds kWithoutPidfd{5};
// How often to ask whether there is progress.
constexpr milliseconds kProgressPause{100};
// A deadline beyond this is as good as none; and adding it to the clock cannot overflow.
constexpr milliseconds kLongest = std::chrono::hours(24 * 365);

// What a rank wrote last.
class Output {
 public:
  explicit Output(FileDescriptor read_end) : pipe_(std::move(read_end)) {}

  int fd() const { return pipe_.get(); }

  // Reads once; false when there is nothing more to read now.
  bool ReadSome() {
    if (!pipe_.IsOpen()) {
      return false;
    }
    std::array<char, kKeptOutput> buffer;
    const ssize_t count = read(pipe_.get(), buffer.data(), buffer.size());
    if (count > 0) {
      Keep({buffer.data(), static_cast<std::size_t>(count)});
      return true;
    }
    if (count == 0 || (errno != EAGAIN && errno != EINTR)) {
      pipe_.Close();
    }
    return false;
  }

  // What is left of a rank that has ended. Bounded, because a process that left the rank's group
  // may still be writing.
  void ReadRest() {
    constexpr int kMostReads = 32;  // the largest pipe that an ordinary user gets is 1 MiB
    for (int i = 0; i < kMostReads && ReadSome(); ++i) {
    }
    pipe_.Close();
  }

  std::string_view Text() const {
    const std::string_view text = text_;
    return text.substr(text.size() - std::min(text.size(), kKeptOutput));
  }

 private:
  void Keep(std::string_view text) {
    text_ += text;
    if (text_.size() > 4 * kKeptOutput) {  // seldom, so that the cost per byte stays constant
      text_.erase(0, text_.size() - kKeptOutput);
    }
  }

  FileDescriptor pipe_;
  std::string text_;
};

struct Rank {
  std::int64_t rank;
  pid_t pid;
  FileDescriptor pidfd;  // not open where the kernel has none
  Output out;
  Output err;
  bool ended = false;
  int status = 0;  // as of waitpid

  bool Failed() const { return ended && status != 0; }
  std::string Words() const { return LastWords(out.Text(), err.Text()); }
};

using Body = std::function<void(std::int64_t rank)>;

// Writes all of it or gives up: a rank has nobody to complain to.
void WriteToStderr(std::string_view text) {
  while (!text.empty()) {
    const ssize_t count = write(STDERR_FILENO, text.data(), text.size());
    if (count < 0 && errno != EINTR) {
      return;
    }
    text.remove_prefix(count > 0 ? static_cast<std::size_t>(count) : 0);
  }
}

int RunBody(std::int64_t rank, const Body& body) {
  std::string failure;
  try {
    body(rank);
  } catch (const std::exception& error) {
    failure = fmt::format("{}{}\n", kRankFailed, error.what());
  } catch (...) {
    failure = fmt::format("{}an exception that is not a std::exception\n", kRankFailed);
  }
  std::cout.flush();
  std::clog.flush();
  std::fflush(stdout);
  std::fflush(stderr);
  WriteToStderr(failure);
  return failure.empty() ? 0 : 1;
}

// The ranks of one launch. Whatever happens, none of them outlives this object.
class Ranks {
 public:
  explicit Ranks(std::int64_t world_size) : world_size_(world_size) {
    ranks_.reserve(static_cast<std::size_t>(world_size));
  }
  Ranks(const Ranks&) = delete;
  Ranks& operator=(const Ranks&) = delete;
  ~Ranks() {
    if (Running()) {
      EndAll(milliseconds(0));
    }
  }

  void StartAll(const Body& body) {
    const FileDescriptor null =
        AboveStandardStreams(FileDescriptor(open("/dev/null", O_RDONLY | O_CLOEXEC)));
    // What is still in these buffers would be written once more by every rank.
    std::cout.flush();
    std::clog.flush();
    std::fflush(nullptr);
    for (std::int64_t rank = 0; rank < world_size_; ++rank) {
      Start(rank, null, body);
    }
  }

  // Waits until something happens, `until` at the latest, and takes note of it.
  void WaitForNews(Clock::time_point until) {
    FillPollList();
    poll(poll_list_.data(), poll_list_.size(), Timeout(until));
    for (Rank& rank : ranks_) {
      if (!rank.ended) {
        rank.out.ReadSome();
        rank.err.ReadSome();
        ReapIfEnded(rank);
      }
    }
  }

  // SIGTERM, and SIGKILL for those still there after `grace`.
  void EndAll(milliseconds grace) {
    if (grace.count() > 0) {
      SignalAll(SIGTERM);
      WaitForAll(Clock::now() + grace);
    }
    SignalAll(SIGKILL);
    WaitForAll(Clock::now() + kKillWait);
  }

  bool Running() const {
    return std::any_of(ranks_.begin(), ranks_.end(), [](const Rank& rank) { return !rank.ended; });
  }
  const std::vector<const Rank*>& Failures() const { return failures_; }  // in order of time
  const std::vector<Rank>& All() const { return ranks_; }
  SignalWatch& Signals() { return signals_; }

 private:
  void Start(std::int64_t rank, const FileDescriptor& null, const Body& body) {
    Pipe out = MakePipe();
    Pipe err = MakePipe();
    const pid_t launcher = getpid();
    const BlockedSignals blocked;
    const pid_t pid = fork();
    if (pid < 0) {
      throw Error(fmt::format("rank {} of {}", rank, world_size_),
                  "could not be started: " + ErrnoText());
    }
    if (pid == 0) {
      DieWith(launcher);
      dup2(null.get(), STDIN_FILENO);
      dup2(out.write.get(), STDOUT_FILENO);
      dup2(err.write.get(), STDERR_FILENO);
      for (Pipe* pipe : {&out, &err}) {
        pipe->read.Close();
        pipe->write.Close();
      }
      BecomeRank(rank, body);
    }
    setpgid(pid, pid);  // here and in the rank, because either may be first
    ranks_.push_back(
        Rank{.rank = rank,
             .pid = pid,
             .pidfd = FileDescriptor(static_cast<int>(syscall(SYS_pidfd_open, pid, 0))),
             .out = Output(std::move(out.read)),
             .err = Output(std::move(err.read))});
  }

  static void DieWith(pid_t launcher) {
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != launcher) {  // it died before the line above
      _exit(1);
    }
  }

  [[noreturn]] void BecomeRank(std::int64_t rank, const Body& body) {
    ranks_.clear();  // closes the pipes of the ranks started before
    signals_.ForgetInChild();
    sigset_t none;
    sigemptyset(&none);
    pthread_sigmask(SIG_SETMASK, &none, nullptr);
    // By the line, although it is a pipe: a rank that hangs or crashes would take its words along.
    // With a buffer of its own, because glibc leaves the old one in use half buffered; it lives as
    // long as the rank, which ends in this function.
    std::array<char, BUFSIZ> line_buffer;
    std::setvbuf(stdout, line_buffer.data(), _IOLBF, line_buffer.size());
    _exit(RunBody(rank, body));
  }

  void FillPollList() {
    poll_list_.clear();
    poll_list_.push_back({signals_.fd(), POLLIN, 0});
    for (const Rank& rank : ranks_) {
      if (!rank.ended) {
        for (const int fd : {rank.out.fd(), rank.err.fd(), rank.pidfd.get()}) {
          poll_list_.push_back({fd, POLLIN, 0});  // poll passes over descriptors below 0
        }
      }
    }
  }

  int Timeout(Clock::time_point until) const {
    const auto left = std::chrono::ceil<milliseconds>(until - Clock::now());
    const bool must_look = std::any_of(ranks_.begin(), ranks_.end(), [](const Rank& rank) {
      return !rank.ended && !rank.pidfd.IsOpen();
    });
    const milliseconds most = must_look ? kWithoutPidfd : milliseconds(60'000);
    return static_cast<int>(std::clamp(left, milliseconds(0), most).count());
  }

  void ReapIfEnded(Rank& rank) {
    siginfo_t info = {};
    const int result =
        waitid(P_PID, static_cast<id_t>(rank.pid), &info, WEXITED | WNOHANG | WNOWAIT);
    if (result == 0 && info.si_pid == 0) {
      return;
    }
    if (result != 0 && errno == EINTR) {
      return;
    }
    rank.ended = true;
    if (result == 0) {
      kill(-rank.pid, SIGKILL);  // what the rank started and left behind
    }
    // When somebody else has reaped it, how it ended is unknown, which is not well.
    if (waitpid(rank.pid, &rank.status, 0) != rank.pid) {
      rank.status = W_EXITCODE(/*ret=*/255, /*sig=*/0);
    }
    rank.out.ReadRest();
    rank.err.ReadRest();
    rank.pidfd.Close();
    if (rank.Failed()) {
      failures_.push_back(&rank);
    }
  }

  void SignalAll(int signal_number) {
    for (const Rank& rank : ranks_) {
      if (!rank.ended) {
        kill(-rank.pid, signal_number);
      }
    }
  }

  void WaitForAll(Clock::time_point until) {
    while (Running() && Clock::now() < until) {
      WaitForNews(until);
      signals_.Received();  // empties the pipe, which would keep poll from waiting
    }
  }

  std::int64_t world_size_;
  SignalWatch signals_;
  std::vector<Rank> ranks_;  // never moves: its capacity is reserved
  std::vector<const Rank*> failures_;
  std::vector<pollfd> poll_list_;
};

std::string NameOf(const std::vector<std::int64_t>& ranks, const LaunchOptions& options) {
  return options.called.empty() ? fmt::format("{} of {}", RankList(ranks), options.world_size)
                                : options.called;
}

Error FailureError(const std::vector<const Rank*>& ranks, const LaunchOptions& options) {
  std::vector<FailedRank> failures;
  for (const Rank* rank : ranks) {
    failures.push_back({.rank = rank->rank, .status = rank->status, .words = rank->Words()});
  }
  return Error(NameOf({Culprit(failures).rank}, options), DescribeFailure(failures),
               Newlines::kKeep);
}

Error DeadlineError(const Ranks& ranks, const LaunchOptions& options, milliseconds deadline) {
  std::vector<std::int64_t> running;
  const Rank* first = nullptr;
  for (const Rank& rank : ranks.All()) {
    if (!rank.ended) {
      running.push_back(rank.rank);
      first = first == nullptr ? &rank : first;
    }
  }
  const std::string words = first->Words();
  const double seconds = std::chrono::duration<double>(deadline).count();
  const std::string who =
      options.called.empty() ? fmt::format("rank {}", first->rank) : options.called;
  return Error(NameOf(running, options),
               fmt::format("{} within {:g} s; {}",
                           options.progressed ? "made no progress" : "did not finish", seconds,
                           words.empty() ? fmt::format("{} left no words", who)
                                         : fmt::format("the last words of {}: {}", who, words)),
               Newlines::kKeep);
}

// Returns 0 when all ranks ended well, and the signal that asked this process to end. Throws while
// ranks may still run.
int WatchToTheEnd(Ranks& ranks, const LaunchOptions& options, Clock::time_point until) {
  bool settling = false;
  milliseconds deadline = options.deadline;
  while (ranks.Running() && ranks.Signals().Received() == 0 && Clock::now() < until) {
    ranks.WaitForNews(options.progressed ? std::min(until, Clock::now() + kProgressPause) : until);
    if (!settling && options.progressed) {
      if (const auto next = options.progressed()) {
        deadline = *next;
        until = Clock::now() + std::min(deadline, kLongest);
      }
    }
    if (!settling && !ranks.Failures().empty()) {
      settling = true;
      until = Clock::now() + std::min(options.settle, kLongest);
    }
  }
  if (const int signal_number = ranks.Signals().Received(); signal_number != 0) {
    ranks.EndAll(options.grace);
    return signal_number;
  }
  // Made before the ranks are ended: what they do when asked to end is not their failure.
  if (!ranks.Failures().empty()) {
    throw FailureError(ranks.Failures(), options);
  }
  if (ranks.Running()) {
    throw DeadlineError(ranks, options, deadline);
  }
  return 0;
}

void Check(const LaunchOptions& options) {
  if (options.world_size < 1) {
    throw Error("launch", fmt::format("world size {} is below 1", options.world_size));
  }
  if (options.deadline.count() <= 0) {
    throw Error("launch", fmt::format("deadline {} ms is not positive", options.deadline.count()));
  }
}

int StartAndWatch(const LaunchOptions& options, const Body& body) {
  const Clock::time_point until = Clock::now() + std::min(options.deadline, kLongest);
  Ranks ranks(options.world_size);
  ranks.StartAll(body);
  try {
    return WatchToTheEnd(ranks, options, until);
  } catch (...) {
    ranks.EndAll(options.grace);
    throw;
  }
}

}  // namespace

void RunRanks(const LaunchOptions& options, const std::function<void(std::int64_t rank)>& body) {
  Check(options);
  const int signal_number = StartAndWatch(options, body);
  if (signal_number != 0) {
    if (options.before_signal_death) {
      options.before_signal_death();
    }
    raise(signal_number);  // the caller's own handlers are back in place; the default one ends here
    throw Error("launch", fmt::format("interrupted by signal {} ({})", signal_number,
                                      strsignal(signal_number)));
  }
}

}  // namespace moe
