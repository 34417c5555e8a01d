// Signals while ranks are started and watched. At most one launch at a time is under way in a
// process: a signal handler can reach nothing but globals.
#pragma once

#include <array>
#include <csignal>

#include "harness/launch/pipe.h"

namespace moe {

// Takes over the signals that would end this process and leave the ranks behind (SIGINT, SIGTERM,
// SIGHUP): process groups of their own do not get the terminal's Ctrl-C. Also keeps the exit
// statuses of children, where the caller ignores SIGCHLD. Puts back what was there when it goes.
class SignalWatch {
 public:
  // Throws Error("launch", ...) where another launch is under way in this process.
  SignalWatch();
  SignalWatch(const SignalWatch&) = delete;
  SignalWatch& operator=(const SignalWatch&) = delete;
  ~SignalWatch();

  // Readable when a signal has arrived.
  int fd() const { return pipe_.read.get(); }

  // The signal that arrived first, or 0. Empties the pipe.
  int Received();

  // In a rank, just after fork: SIGTERM must end it.
  void ForgetInChild();

 private:
  static constexpr std::array<int, 3> kEndingSignals = {SIGINT, SIGTERM, SIGHUP};

  void KeepExitStatuses();

  Pipe pipe_;
  std::array<struct sigaction, kEndingSignals.size()> before_ = {};
  struct sigaction child_before_ = {};
  int received_ = 0;
};

// Blocks all signals while it lives, so that a new rank cannot run this process's handlers.
class BlockedSignals {
 public:
  BlockedSignals();
  BlockedSignals(const BlockedSignals&) = delete;
  BlockedSignals& operator=(const BlockedSignals&) = delete;
  ~BlockedSignals();

 private:
  sigset_t before_;
};

}  // namespace moe
