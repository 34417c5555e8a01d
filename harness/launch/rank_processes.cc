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
#include <atomic>
#include <cctype>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <iostream>
#include <string_view>
#include <utility>

#include "harness/base/error.h"

namespace moe {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr std::size_t kKeptOutput = 64 * 1024;
constexpr std::size_t kShownOutput = 2000;
constexpr std::string_view kFailed = "rank failed: ";
// Even SIGKILL has to wait for a system call that cannot be interrupted (a dead network disk).
constexpr milliseconds kKillWait{5'000};
// How often to look where the kernel has no pidfd (before Linux 5.3).
constexpr milliseconds kWithoutPidfd{5};
// How often to ask whether there is progress.
constexpr milliseconds kProgressPause{100};
// A deadline beyond this is as good as none; and adding it to the clock cannot overflow.
constexpr milliseconds kLongest = std::chrono::hours(24 * 365);

std::string ErrnoText() {
  return std::strerror(errno);
}

class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~FileDescriptor() { Close(); }

  int get() const { return fd_; }
  bool IsOpen() const { return fd_ >= 0; }
  void Close() {
    if (fd_ >= 0) {
      close(fd_);
    }
    fd_ = -1;
  }

 private:
  int fd_ = -1;
};

// Out of the way of the descriptors 0 to 2, which a caller may have closed and a rank replaces.
FileDescriptor AboveStandardStreams(FileDescriptor fd) {
  if (!fd.IsOpen() || fd.get() > STDERR_FILENO) {
    return fd;
  }
  return FileDescriptor(fcntl(fd.get(), F_DUPFD_CLOEXEC, STDERR_FILENO + 1));
}

struct Pipe {
  FileDescriptor read;   // does not block
  FileDescriptor write;  // blocks
};

Pipe MakePipe() {
  std::array<int, 2> fds{-1, -1};
  if (pipe2(fds.data(), O_CLOEXEC) != 0) {
    throw Error("launch", "could not open a pipe: " + ErrnoText());
  }
  Pipe pipe;
  pipe.read = AboveStandardStreams(FileDescriptor(fds[0]));
  pipe.write = AboveStandardStreams(FileDescriptor(fds[1]));
  if (!pipe.read.IsOpen() || !pipe.write.IsOpen() ||
      fcntl(pipe.read.get(), F_SETFL, O_NONBLOCK) != 0) {
    throw Error("launch", "could not open a pipe: " + ErrnoText());
  }
  return pipe;
}

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

std::string_view Trimmed(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n";
  const std::size_t first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) {
    return {};
  }
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

bool InsideUtf8Character(char c) {
  return (static_cast<unsigned char>(c) & 0xC0U) == 0x80U;
}

// The reason comes first in an exception's text (a stack trace may follow) ...
std::string Beginning(std::string_view text) {
  std::size_t size = kShownOutput;
  if (text.size() <= size) {
    return std::string(text);
  }
  while (size > 0 && InsideUtf8Character(text[size])) {
    --size;
  }
  return std::string(text.substr(0, size)) + " [...]";
}

// ... and last in a log.
std::string End(std::string_view text) {
  if (text.size() <= kShownOutput) {
    return std::string(text);
  }
  std::size_t start = text.size() - kShownOutput;
  while (start < text.size() && InsideUtf8Character(text[start])) {
    ++start;
  }
  return "[...] " + std::string(text.substr(start));
}

// The text of the exception that ended a rank, where there was one.
std::string_view ExceptionText(std::string_view error_output) {
  std::size_t at = error_output.rfind(kFailed);
  while (at != std::string_view::npos && at > 0 && error_output[at - 1] != '\n') {
    at = error_output.rfind(kFailed, at - 1);
  }
  return at == std::string_view::npos ? std::string_view{} : Trimmed(error_output.substr(at));
}

std::string LastWords(const Output& out, const Output& err) {
  if (const std::string_view thrown = ExceptionText(err.Text()); !thrown.empty()) {
    return Beginning(thrown);
  }
  const std::string_view words = Trimmed(err.Text());
  return End(words.empty() ? Trimmed(out.Text()) : words);
}

struct Rank {
  std::int64_t rank;
  pid_t pid;
  FileDescriptor pidfd;  // not open where the kernel has none
  Output out;
  Output err;
  bool ended = false;
  int status = 0;  // as of waitpid

  bool Failed() const { return ended && status != 0; }
  std::string Words() const { return LastWords(out, err); }
};

// Set only while a launch is under way: a signal handler can reach nothing but globals.
std::atomic<int> signal_pipe{-1};
std::atomic<bool> launch_under_way{false};

constexpr std::array<int, 3> kEndingSignals = {SIGINT, SIGTERM, SIGHUP};

void TellTheLoop(int signal_number) {
  const int saved_errno = errno;
  const auto byte = static_cast<unsigned char>(signal_number);
  // When the pipe is full the loop has long been told.
  [[maybe_unused]] const ssize_t written = write(signal_pipe.load(), &byte, 1);
  errno = saved_errno;
}

struct sigaction Action(void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  return action;
}

// Takes over the signals that would end this process and leave the ranks behind: process groups of
// their own do not get the terminal's Ctrl-C.
class SignalWatch {
 public:
  SignalWatch() : pipe_(MakePipe()) {
    if (launch_under_way.exchange(true)) {
      throw Error("launch", "another launch is under way in this process; wait for it to end");
    }
    fcntl(pipe_.write.get(), F_SETFL, O_NONBLOCK);
    signal_pipe = pipe_.write.get();
    for (std::size_t i = 0; i < kEndingSignals.size(); ++i) {
      sigaction(kEndingSignals[i], nullptr, &before_[i]);
      if (before_[i].sa_handler != SIG_IGN) {  // nohup stays nohup
        const struct sigaction tell = Action(TellTheLoop);
        sigaction(kEndingSignals[i], &tell, nullptr);
      }
    }
    KeepExitStatuses();
  }
  SignalWatch(const SignalWatch&) = delete;
  SignalWatch& operator=(const SignalWatch&) = delete;
  ~SignalWatch() {
    for (std::size_t i = 0; i < kEndingSignals.size(); ++i) {
      sigaction(kEndingSignals[i], &before_[i], nullptr);
    }
    sigaction(SIGCHLD, &child_before_, nullptr);
    signal_pipe = -1;
    launch_under_way = false;
  }

  int fd() const { return pipe_.read.get(); }

  // The signal that arrived, or 0.
  int Received() {
    unsigned char byte = 0;
    if (received_ == 0 && read(pipe_.read.get(), &byte, 1) == 1) {
      received_ = byte;
    }
    return received_;
  }

  // In a rank, just after fork: SIGTERM must end it.
  void ForgetInChild() {
    const struct sigaction plain = Action(SIG_DFL);
    for (const int signal_number : kEndingSignals) {
      sigaction(signal_number, &plain, nullptr);
    }
    sigaction(SIGCHLD, &plain, nullptr);
    signal_pipe = -1;
    launch_under_way = false;
    pipe_.read.Close();
    pipe_.write.Close();
  }

 private:
  // A caller that ignores SIGCHLD would have the kernel throw the exit statuses away.
  void KeepExitStatuses() {
    sigaction(SIGCHLD, nullptr, &child_before_);
    if (child_before_.sa_handler == SIG_IGN || (child_before_.sa_flags & SA_NOCLDWAIT) != 0) {
      const struct sigaction plain = Action(SIG_DFL);
      sigaction(SIGCHLD, &plain, nullptr);
    }
  }

  Pipe pipe_;
  std::array<struct sigaction, kEndingSignals.size()> before_ = {};
  struct sigaction child_before_ = {};
  int received_ = 0;
};

// Blocks all signals while it lives, so that a new rank cannot run this process's handlers.
class BlockedSignals {
 public:
  BlockedSignals() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  BlockedSignals(const BlockedSignals&) = delete;
  BlockedSignals& operator=(const BlockedSignals&) = delete;
  ~BlockedSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
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
    failure = fmt::format("{}{}\n", kFailed, error.what());
  } catch (...) {
    failure = fmt::format("{}an exception that is not a std::exception\n", kFailed);
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

// Words of a rank that only saw another one go.
bool IsAboutAPeer(std::string_view words) {
  std::string lower(words);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  constexpr std::array<std::string_view, 12> kSigns = {
      "connection closed", "connection reset", "connection refused", "connection was closed",
      "closed by peer",    "reset by peer",    "socket closed",      "broken pipe",
      "timed out",         "timeout",          "failed to recv",     "remote process exited"};
  return std::any_of(kSigns.begin(), kSigns.end(),
                     [&](std::string_view sign) { return lower.find(sign) != std::string::npos; });
}

// How sure it is that this failure is nobody else's fault; 0 is surest.
int Suspicion(const Rank& rank) {
  const std::string words = rank.Words();
  const bool peer = IsAboutAPeer(words);
  if (WIFSIGNALED(rank.status)) {
    const int signal_number = WTERMSIG(rank.status);
    // Both are also how a program ends that does not catch the loss of its peer.
    const bool victim = signal_number == SIGPIPE || (signal_number == SIGABRT && peer);
    return victim ? 3 : 0;
  }
  if (peer) {
    return 3;
  }
  return words.empty() ? 2 : 1;
}

const Rank& Culprit(const std::vector<const Rank*>& failures) {
  return **std::min_element(failures.begin(), failures.end(), [](const Rank* a, const Rank* b) {
    return Suspicion(*a) < Suspicion(*b);
  });
}

// "rank 3", "ranks 0-2, 5".
std::string RankList(const std::vector<std::int64_t>& ranks) {
  std::string text;
  for (std::size_t i = 0; i < ranks.size();) {
    std::size_t last = i;
    while (last + 1 < ranks.size() && ranks[last + 1] == ranks[last] + 1) {
      ++last;
    }
    text += text.empty() ? "" : ", ";
    text += last == i ? fmt::format("{}", ranks[i]) : fmt::format("{}-{}", ranks[i], ranks[last]);
    i = last + 1;
  }
  return (ranks.size() == 1 ? "rank " : "ranks ") + text;
}

std::string HowItEnded(const Rank& rank) {
  if (WIFSIGNALED(rank.status)) {
    const int signal_number = WTERMSIG(rank.status);
    return fmt::format("crashed with signal {} ({})", signal_number, strsignal(signal_number));
  }
  return fmt::format("ended with exit status {}", WEXITSTATUS(rank.status));
}

std::string NameOf(const std::vector<std::int64_t>& ranks, const LaunchOptions& options) {
  return options.called.empty() ? fmt::format("{} of {}", RankList(ranks), options.world_size)
                                : options.called;
}

Error FailureError(const std::vector<const Rank*>& failures, const LaunchOptions& options) {
  const Rank& culprit = Culprit(failures);
  std::string what = HowItEnded(culprit);
  std::vector<std::int64_t> others;
  for (const Rank* rank : failures) {
    if (rank != &culprit) {
      others.push_back(rank->rank);
    }
  }
  if (!others.empty()) {
    std::sort(others.begin(), others.end());
    what += fmt::format(" ({} failed as well)", RankList(others));
  }
  const std::string words = culprit.Words();
  what += words.empty() ? " and left no words" : "; its last words: " + words;
  return Error(NameOf({culprit.rank}, options), what, Newlines::kKeep);
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
