#include "harness/launch/signal_watch.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

#include "harness/base/error.h"

namespace moe {
namespace {

// Set only while a launch is under way.
std::atomic<int> signal_pipe{-1};
std::atomic<bool> launch_under_way{false};

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

}  // namespace

SignalWatch::SignalWatch() : pipe_(MakePipe()) {
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

SignalWatch::~SignalWatch() {
  for (std::size_t i = 0; i < kEndingSignals.size(); ++i) {
    sigaction(kEndingSignals[i], &before_[i], nullptr);
  }
  sigaction(SIGCHLD, &child_before_, nullptr);
  signal_pipe = -1;
  launch_under_way = false;
}

int SignalWatch::Received() {
  unsigned char byte = 0;
  if (received_ == 0 && read(pipe_.read.get(), &byte, 1) == 1) {
    received_ = byte;
  }
  return received_;
}

void SignalWatch::ForgetInChild() {
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

// A caller that ignores SIGCHLD would have the kernel throw the exit statuses away.
void SignalWatch::KeepExitStatuses() {
  sigaction(SIGCHLD, nullptr, &child_before_);
  if (child_before_.sa_handler == SIG_IGN || (child_before_.sa_flags & SA_NOCLDWAIT) != 0) {
    const struct sigaction plain = Action(SIG_DFL);
    sigaction(SIGCHLD, &plain, nullptr);
  }
}

BlockedSignals::BlockedSignals() {
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before_);
}

BlockedSignals::~BlockedSignals() {
  pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

}  // namespace moe
