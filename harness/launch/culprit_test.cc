// Who is blamed among ranks that failed, told from how they ended and what they said alone.
#include "harness/launch/culprit.h"

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <csignal>

namespace moe {
namespace {

FailedRank Exited(std::int64_t rank, int exit_status, const std::string& words) {
  return {.rank = rank, .status = W_EXITCODE(exit_status, 0), .words = words};
}

FailedRank Crashed(std::int64_t rank, int signal_number, const std::string& words) {
  return {.rank = rank, .status = W_EXITCODE(0, signal_number), .words = words};
}

constexpr const char* kLostPeer = "rank failed: Connection closed by peer [127.0.0.1]:4711";

TEST(Culprit, IsTheRankWithAReasonOfItsOwnAmongThoseThatLostAPeer) {
  EXPECT_EQ(Culprit({Exited(0, 1, kLostPeer), Exited(2, 1, kLostPeer),
                     Exited(1, 1, "rank failed: expert 9 of 8")})
                .rank,
            1);
}

TEST(Culprit, IsACrashBeforeAnException) {
  EXPECT_EQ(
      Culprit({Exited(0, 1, "rank failed: rank 1 sent nonsense"), Crashed(1, SIGFPE, "")}).rank, 1);
}

TEST(Culprit, IsASilentExitBeforeALostPeer) {
  EXPECT_EQ(Culprit({Exited(0, 1, kLostPeer), Exited(1, 3, "")}).rank, 1);
}

TEST(Culprit, IsARankThatSpokeBeforeASilentExit) {
  EXPECT_EQ(Culprit({Exited(0, 3, ""), Exited(1, 1, "rank failed: expert 9 of 8")}).rank, 1);
}

TEST(Culprit, IsNotARankThatWroteToAPeerThatWasGone) {
  EXPECT_EQ(Culprit({Crashed(0, SIGPIPE, ""), Exited(1, 3, "")}).rank, 1);
}

TEST(Culprit, IsARankThatAbortedUnlessItLostAPeer) {
  const FailedRank other = Exited(1, 1, "rank failed: expert 9 of 8");
  EXPECT_EQ(Culprit({other, Crashed(0, SIGABRT, "double free or corruption")}).rank, 0);
  EXPECT_EQ(Culprit({Crashed(0, SIGABRT, "terminate called: Broken pipe"), other}).rank, 1);
}

TEST(Culprit, IsTheFirstToFailAmongEquals) {
  EXPECT_EQ(Culprit({Exited(2, 1, "nonsense"), Exited(0, 1, "nonsense")}).rank, 2);
  EXPECT_EQ(Culprit({Exited(3, 1, kLostPeer), Exited(1, 1, kLostPeer)}).rank, 3);
}

TEST(Culprit, KnowsALostPeerInWhateverLetters) {
  for (const char* words :
       {"RuntimeError: Connection RESET by peer", "NCCL error: remote process exited",
        "recv failed: Operation timed out", "Socket Timeout", "failed to recv, got 0 bytes"}) {
    EXPECT_EQ(Culprit({Exited(0, 1, words), Exited(1, 3, "")}).rank, 1) << words;
  }
}

TEST(DescribeFailure, SaysHowItEndedAndWhoElseFailed) {
  EXPECT_EQ(
      DescribeFailure({Exited(4, 1, kLostPeer), Exited(3, 7, "no such tensor"),
                       Exited(0, 1, kLostPeer), Exited(5, 1, kLostPeer)}),
      "ended with exit status 7 (ranks 0, 4-5 failed as well); its last words: no such tensor");
  EXPECT_EQ(DescribeFailure({Crashed(0, SIGSEGV, "")}),
            "crashed with signal 11 (Segmentation fault) and left no words");
}

TEST(LastWords, AreTheExceptionAndNotTheLogBeforeIt) {
  EXPECT_EQ(LastWords("output", "a warning\nrank failed: no such tensor\n"),
            "rank failed: no such tensor");
}

TEST(LastWords, AreNotALineThatOnlyMentionsAFailure) {
  EXPECT_EQ(LastWords("", "I heard that rank failed: yes\n"), "I heard that rank failed: yes");
}

TEST(LastWords, AreOfStandardOutputWhereStandardErrorIsBlank) {
  EXPECT_EQ(LastWords("expert 5 next\n", " \n"), "expert 5 next");
  EXPECT_EQ(LastWords("expert 5 next", "a warning"), "a warning");
  EXPECT_EQ(LastWords("\n", "\t"), "");
}

// A reason stands at the beginning of an exception, before its stack trace, and at the end of a
// log.
TEST(LastWords, KeepTheBeginningOfAnExceptionAndTheEndOfALog) {
  const std::string thrown = LastWords("", "rank failed: the reason\n" + std::string(5000, 's'));
  EXPECT_TRUE(thrown.starts_with("rank failed: the reason\nsss")) << thrown;
  EXPECT_EQ(thrown.size(), 2000 + std::string(" [...]").size());
  const std::string logged = LastWords("", std::string(5000, '.') + "\nthe end\n");
  EXPECT_TRUE(logged.ends_with("..\nthe end")) << logged;
  EXPECT_EQ(logged.size(), std::string("[...] ").size() + 2000);
}

TEST(LastWords, AreNotCutInsideACharacter) {
  std::string euros;
  for (int i = 0; i < 1000; ++i) {
    euros += "\u20ac";  // three bytes, and 2000 is no multiple of three
  }
  EXPECT_EQ(LastWords("", euros).size(), std::string("[...] ").size() + 1998);
  const std::string thrown = LastWords("", std::string(kRankFailed) + euros);
  EXPECT_EQ(thrown.size(), kRankFailed.size() + 3 * 662 + std::string(" [...]").size());
}

TEST(RankList, JoinsNeighbours) {
  EXPECT_EQ(RankList({3}), "rank 3");
  EXPECT_EQ(RankList({0, 1, 2, 5}), "ranks 0-2, 5");
}

}  // namespace
}  // namespace moe
