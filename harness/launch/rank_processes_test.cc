// Ranks that end well, badly, or not at all. Whether a process is gone is read off a pipe whose
// write end it holds: the end of the file comes when the last holder is dead, so no test sleeps or
// measures time.
#include "harness/launch/rank_processes.h"

#include <fmt/core.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <stdexcept>

#include "harness/base/error.h"

namespace moe {
namespace {

using std::chrono::milliseconds;

// Far more than any test needs: reaching it would be the failure.
constexpr milliseconds kNever{600'000};

LaunchOptions Options(std::int64_t world_size) {
  return {.world_size = world_size, .deadline = kNever, .settle = milliseconds(100)};
}

std::string Complaint(const LaunchOptions& options, const std::function<void(std::int64_t)>& body) {
  try {
    RunRanks(options, body);
  } catch (const Error& error) {
    return error.what();
  }
  return "no complaint";
}

[[noreturn]] void WaitForever() {
  while (true) {
    pause();
  }
}

[[noreturn]] void CrashWith(int signal_number) {
  std::signal(signal_number, SIG_DFL);  // sanitizers handle it
  raise(signal_number);
  std::abort();
}

bool Contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

class TestPipe {
 public:
  TestPipe() {
    if (pipe(fds_.data()) != 0) {
      throw std::runtime_error("no pipe");
    }
  }
  TestPipe(const TestPipe&) = delete;
  TestPipe& operator=(const TestPipe&) = delete;
  ~TestPipe() {
    close(fds_[0]);
    CloseWriteEnd();
  }
  void CloseWriteEnd() {
    if (fds_[1] >= 0) {
      close(fds_[1]);
    }
    fds_[1] = -1;
  }
  void Write(char c) const { ASSERT_EQ(write(fds_[1], &c, 1), 1); }
  void WaitForBytes(int count) const {
    char c = 0;
    for (int i = 0; i < count; ++i) {
      ASSERT_EQ(read(fds_[0], &c, 1), 1);
    }
  }
  // Comes back when no process holds the write end any more.
  std::string ReadToEnd() {
    CloseWriteEnd();
    std::string text;
    char c = 0;
    while (read(fds_[0], &c, 1) == 1) {
      text += c;
    }
    return text;
  }

 private:
  std::array<int, 2> fds_{-1, -1};
};

TEST(RunRanks, ReturnsWhenAllRanksEndWell) {
  TestPipe done;
  RunRanks(Options(8), [&](std::int64_t rank) { done.Write(static_cast<char>('0' + rank)); });
  std::string ranks = done.ReadToEnd();
  std::sort(ranks.begin(), ranks.end());
  EXPECT_EQ(ranks, "01234567");
}

TEST(RunRanks, NamesTheRankThatThrows) {
  const std::string complaint = Complaint(Options(4), [](std::int64_t rank) {
    std::cerr << "a warning that explains nothing\n";
    if (rank == 2) {
      throw Error("d_gate_ED", "no such tensor");
    }
  });
  EXPECT_EQ(
      complaint,
      "rank 2 of 4: ended with exit status 1; its last words: rank failed: d_gate_ED: no such "
      "tensor");
}

TEST(RunRanks, ReportsAnExceptionOfAnotherKind) {
  EXPECT_TRUE(Contains(Complaint(Options(1), [](std::int64_t) { throw 7; }),
                       "rank failed: an exception that is not a std::exception"));
}

TEST(RunRanks, ReportsASilentExitStatus) {
  EXPECT_EQ(Complaint(Options(2),
                      [](std::int64_t rank) {
                        if (rank == 1) {
                          _exit(3);
                        }
                      }),
            "rank 1 of 2: ended with exit status 3 and left no words");
}

TEST(RunRanks, NamesTheSignalOfACrash) {
  const std::string complaint = Complaint(Options(4), [](std::int64_t rank) {
    if (rank == 3) {
      std::puts("expert 5 next");
      CrashWith(SIGSEGV);
    }
  });
  EXPECT_EQ(
      complaint,
      "rank 3 of 4: crashed with signal 11 (Segmentation fault); its last words: expert 5 next");
}

TEST(RunRanks, NamesAnAbort) {
  EXPECT_EQ(Complaint(Options(1), [](std::int64_t) { CrashWith(SIGABRT); }),
            "rank 0 of 1: crashed with signal 6 (Aborted) and left no words");
}

TEST(RunRanks, EndsTheOthersWhenOneFails) {
  TestPipe alive;
  const std::string complaint = Complaint(Options(4), [](std::int64_t rank) {
    if (rank == 1) {
      throw std::runtime_error("boom");
    }
    WaitForever();
  });
  EXPECT_TRUE(Contains(complaint, "rank 1 of 4: ")) << complaint;
  EXPECT_FALSE(Contains(complaint, "as well")) << complaint;
  alive.ReadToEnd();
}

TEST(RunRanks, NamesTheRanksThatMissTheDeadline) {
  LaunchOptions options = Options(5);
  options.deadline = milliseconds(300);
  const std::string complaint = Complaint(options, [](std::int64_t rank) {
    if (rank != 3) {
      std::printf("rank %d enters all_reduce\n", static_cast<int>(rank));
      WaitForever();
    }
  });
  EXPECT_EQ(
      complaint,
      "ranks 0-2, 4 of 5: did not finish within 0.3 s; the last words of rank 0: rank 0 enters "
      "all_reduce");
}

TEST(RunRanks, ProgressBringsADeadlineOfItsOwn) {
  LaunchOptions options = Options(1);
  options.called = "the producer";
  int asked = 0;
  options.progressed = [&]() -> std::optional<milliseconds> {
    return ++asked == 1 ? std::optional(milliseconds(300)) : std::nullopt;
  };
  EXPECT_EQ(Complaint(options, [](std::int64_t) { WaitForever(); }),
            "the producer: made no progress within 0.3 s; the producer left no words");
  EXPECT_GT(asked, 1);
}

TEST(RunRanks, RunsOnWhileThereIsProgress) {
  LaunchOptions options = Options(1);
  options.deadline = milliseconds(2000);
  TestPipe asked;
  options.progressed = [&]() -> std::optional<milliseconds> {
    asked.Write('x');
    return milliseconds(2000);
  };
  // Asked ten times a second, so this takes longer than the deadline.
  EXPECT_EQ(Complaint(options, [&](std::int64_t) { asked.WaitForBytes(30); }), "no complaint");
}

TEST(RunRanks, EndsTheRanksWhenProgressThrows) {
  LaunchOptions options = Options(2);
  options.progressed = []() -> std::optional<milliseconds> { throw Error("line 3", "nonsense"); };
  TestPipe alive;
  EXPECT_EQ(Complaint(options, [](std::int64_t) { WaitForever(); }), "line 3: nonsense");
  alive.ReadToEnd();
}

// The victims go first here, because the culprit waits until they have spoken.
TEST(RunRanks, BlamesTheCulpritAndNotItsVictims) {
  LaunchOptions options = Options(3);
  options.settle = kNever;
  TestPipe spoken;
  const std::string complaint = Complaint(options, [&](std::int64_t rank) {
    if (rank == 1) {
      spoken.WaitForBytes(2);
      throw std::runtime_error("expert 9 of 8");
    }
    spoken.Write('x');
    throw std::runtime_error("Connection closed by peer [127.0.0.1]:4711");
  });
  EXPECT_EQ(
      complaint,
      "rank 1 of 3: ended with exit status 1 (ranks 0, 2 failed as well); its last words: rank "
      "failed: expert 9 of 8");
}

TEST(RunRanks, KeepsTheEndOfMuchOutput) {
  const std::string complaint = Complaint(Options(2), [](std::int64_t rank) {
    const std::string line(1000, rank == 0 ? '.' : ':');
    for (int i = 0; i < 10'000; ++i) {
      std::cerr << line << '\n';
    }
    if (rank == 1) {
      std::cerr << "the end\n";
      _exit(4);
    }
  });
  EXPECT_TRUE(
      Contains(complaint, "rank 1 of 2: ended with exit status 4; its last words: [...] :"));
  EXPECT_TRUE(complaint.ends_with(":\nthe end"));
  EXPECT_LT(complaint.size(), 3000U);
}

TEST(RunRanks, GivesRanksNoStandardInput) {
  RunRanks(Options(1), [](std::int64_t) {
    if (std::getchar() != EOF) {
      throw std::runtime_error("got a character");
    }
  });
}

TEST(RunRanks, LeavesNoGrandchildBehind) {
  TestPipe alive;
  RunRanks(Options(2), [](std::int64_t) {
    if (fork() == 0) {
      std::signal(SIGTERM, SIG_IGN);
      WaitForever();
    }
  });
  alive.ReadToEnd();
}

TEST(RunRanks, LeavesNoGrandchildBehindAfterAFailure) {
  TestPipe alive;
  Complaint(Options(2), [](std::int64_t rank) {
    if (fork() == 0) {
      WaitForever();
    }
    if (rank == 0) {
      throw std::runtime_error("boom");
    }
    WaitForever();
  });
  alive.ReadToEnd();
}

TEST(RunRanks, KillsARankThatIgnoresSigterm) {
  LaunchOptions options = Options(2);
  options.grace = milliseconds(50);
  TestPipe alive;
  TestPipe ready;
  const std::string complaint = Complaint(options, [&](std::int64_t rank) {
    if (rank == 0) {
      ready.WaitForBytes(1);
      throw std::runtime_error("boom");
    }
    std::signal(SIGTERM, SIG_IGN);
    ready.Write('x');
    WaitForever();
  });
  EXPECT_TRUE(Contains(complaint, "rank 0 of 2: ")) << complaint;
  alive.ReadToEnd();
}

// A process that launches two ranks which wait forever; comes back when both are there.
pid_t StartLauncher(const TestPipe& ready, bool with_grandchildren) {
  const pid_t launcher = fork();
  if (launcher == 0) {
    RunRanks(Options(2), [&](std::int64_t) {
      if (!with_grandchildren || fork() == 0) {
        ready.Write('x');
      }
      WaitForever();
    });
    _exit(0);
  }
  ready.WaitForBytes(2);
  return launcher;
}

TEST(RunRanks, DiesWithTheLauncher) {
  TestPipe pipe;
  const pid_t launcher = StartLauncher(pipe, /*with_grandchildren=*/false);
  kill(launcher, SIGKILL);
  EXPECT_EQ(waitpid(launcher, nullptr, 0), launcher);
  pipe.ReadToEnd();
}

TEST(RunRanks, EndsAllRanksBeforeASignalEndsTheLauncher) {
  for (const int signal_number : {SIGINT, SIGTERM, SIGHUP}) {
    TestPipe pipe;
    const pid_t launcher = StartLauncher(pipe, /*with_grandchildren=*/true);
    kill(launcher, signal_number);
    int status = 0;
    EXPECT_EQ(waitpid(launcher, &status, 0), launcher);
    EXPECT_TRUE(WIFSIGNALED(status));
    EXPECT_EQ(WTERMSIG(status), signal_number);
    pipe.ReadToEnd();
  }
}

TEST(RunRanks, WorksWhereSigchldIsIgnored) {
  const auto before = std::signal(SIGCHLD, SIG_IGN);
  EXPECT_EQ(Complaint(Options(1), [](std::int64_t) { _exit(3); }),
            "rank 0 of 1: ended with exit status 3 and left no words");
  EXPECT_EQ(std::signal(SIGCHLD, before), SIG_IGN);
}

TEST(RunRanks, LetsARankStartRanksOfItsOwn) {
  const std::string complaint = Complaint(Options(2), [](std::int64_t outer) {
    RunRanks(Options(2), [&](std::int64_t inner) {
      if (outer == 1 && inner == 0) {
        throw std::runtime_error("deep down");
      }
    });
  });
  EXPECT_TRUE(Contains(complaint, "rank 1 of 2: ")) << complaint;
  EXPECT_TRUE(Contains(complaint, "rank 0 of 2: ")) << complaint;
  EXPECT_TRUE(Contains(complaint, "deep down")) << complaint;
}

TEST(RunRanks, WritesNothingTwice) {
  // A file, because the test's own standard output may be anything.
  std::FILE* file = std::tmpfile();
  ASSERT_NE(file, nullptr);
  std::fputs("once", file);
  RunRanks(Options(4), [](std::int64_t) {});
  std::fflush(file);
  EXPECT_EQ(std::ftell(file), 4);
  EXPECT_EQ(lseek(fileno(file), 0, SEEK_END), 4);
  std::fclose(file);
}

TEST(RunRanks, RefusesOptionsThatCannotBe) {
  EXPECT_EQ(Complaint(Options(0), [](std::int64_t) {}), "launch: world size 0 is below 1");
  LaunchOptions options = Options(1);
  options.deadline = milliseconds(0);
  EXPECT_EQ(Complaint(options, [](std::int64_t) {}), "launch: deadline 0 ms is not positive");
  options.deadline = milliseconds::max();
  EXPECT_EQ(Complaint(options, [](std::int64_t) {}), "no complaint");
}

TEST(RunRanks, StartsManyRanks) {
  RunRanks(Options(64), [](std::int64_t) {});
}

TEST(RunRanks, CallsBackBeforeASignalIsRaisedAgain) {
  bool called = false;
  LaunchOptions options = Options(1);
  options.before_signal_death = [&] { called = true; };
  const auto previous = signal(SIGHUP, [](int) {});  // so that this process survives it
  const pid_t parent = getpid();
  EXPECT_TRUE(Contains(Complaint(options,
                                 [parent](std::int64_t) {
                                   kill(parent, SIGHUP);
                                   pause();
                                 }),
                       "interrupted by signal"));
  signal(SIGHUP, previous);
  EXPECT_TRUE(called);
}

}  // namespace
}  // namespace moe
