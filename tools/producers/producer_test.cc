// What is made of a producer that answers well, badly, or not at all. Producers are shell scripts
// here; `moegate run --producer` as a whole is tested by run_producer_test.py.
#include "tools/producers/producer.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "harness/base/error.h"
#include "harness/launch/scratch_folder.h"

namespace moe {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;

constexpr const char* kReady = "echo '{\"ready\": true}'\n";

std::string Skip(int step) {
  return fmt::format("echo '{{\"step\": {}, \"skipped\": \"no such layout\"}}'\n", step);
}

class RunProducerTest : public testing::Test {
 protected:
  // Runs a shell script as the producer of so many steps; what it said of each, as text.
  std::vector<std::string> Answers(const std::string& script, std::size_t step_count) {
    std::vector<ProducerStep> steps(step_count);
    for (std::size_t i = 0; i < step_count; ++i) {
      steps[i] = {.id = fmt::format("a/case@tp{}", i),
                  .problem = "problem",
                  .layout = "tp2",
                  .options = {{"fsdp", "on"}},
                  .out = fmt::format("dumps/{}", i)};
    }
    const std::string path = (scratch_.path() / "producer.sh").string();
    std::ofstream(path) << "#!/bin/sh\n" << script;
    fs::permissions(path, fs::perms::owner_all);
    const Producer producer = FindProducer(path, "no adapters", scratch_.path().string());
    std::vector<std::string> said;
    RunProducer({"it", producer.command}, steps, scratch_.path().string(), deadlines_,
                {.ready = [&] { ++ready_; },
                 .answered =
                     [&](std::size_t step, const ProducerAnswer& answer) {
                       EXPECT_EQ(step, said.size());
                       const auto kind = static_cast<std::size_t>(answer.kind);
                       constexpr std::array kKinds = {"dump", "skipped", "error"};
                       said.push_back(fmt::format("{} {}", kKinds.at(kind), answer.text));
                       on_answer_();
                     }});
    return said;
  }

  std::string Answer(const std::string& script) { return Answers(script, 1).at(0); }

  ScratchFolder scratch_;
  // Far more than any test needs, but where reaching it is the test.
  ProducerDeadlines deadlines_{.start = milliseconds(600'000), .step = milliseconds(600'000)};
  std::function<void()> on_answer_ = [] {};
  int ready_ = 0;
};

TEST_F(RunProducerTest, HandsOnEveryAnswerInOrder) {
  EXPECT_EQ(
      Answers(kReady + Skip(0) +
                  "echo '{\"step\": 1, \"dump\": \"dumps/1\"}'\n"
                  "echo '{\"step\": 2, \"error\": \"rank 1 of 4 crashed\"}'\n",
              3),
      (std::vector<std::string>{"skipped no such layout", "dump ", "error rank 1 of 4 crashed"}));
  EXPECT_EQ(ready_, 1);
}

TEST_F(RunProducerTest, HandsOnNoAnswerToAStepThatThereIsNot) {
  EXPECT_EQ(Answers(kReady + Skip(0) + Skip(1), 1),
            (std::vector<std::string>{"skipped no such layout"}));
}

TEST_F(RunProducerTest, IsToldWhatToRun) {
  Answer("test \"$1\" = --steps && cp \"$2\" \"$TMPDIR/copy\"\n");
  std::ifstream file(scratch_.path() / "copy");
  const std::string copy((std::istreambuf_iterator<char>(file)), {});
  for (const char* part : {"\"schema\": 1", "\"deadline_s\": 600.0", "\"id\": \"a/case@tp0\"",
                           "\"problem\": \"problem\"", "\"layout\": \"tp2\"",
                           "\"dtype\": \"float64\"", "\"fsdp\": \"on\"", "\"out\": \"dumps/0\""}) {
    EXPECT_NE(copy.find(part), std::string::npos) << part << " is not in " << copy;
  }
}

TEST_F(RunProducerTest, ShowsTheLastWordsOfOneThatEndsEarly) {
  EXPECT_EQ(Answers(kReady + Skip(0) + "echo 'no module named torch' >&2\nexit 3\n", 3),
            (std::vector<std::string>{
                "skipped no such layout",
                "error it: ended with exit status 3; its last words: no module named torch",
                "error it: ended with exit status 3; its last words: no module named torch"}));
  EXPECT_EQ(Answer("kill -SEGV $$\n"),
            "error it: crashed with signal 11 (Segmentation fault) and left no words");
}

TEST_F(RunProducerTest, DoesNotTakeAnEarlyEndForSuccess) {
  EXPECT_EQ(Answer(kReady), "error it: ended without an answer to this step");
  EXPECT_EQ(Answer(kReady + std::string("printf '{\"step\": 0, \"dump\": \"dumps/0\"}'\n")),
            "error it: ended without an answer to this step")
      << "a line counts when it is whole";
}

TEST_F(RunProducerTest, BelievesNothingAfterNonsense) {
  for (const char* pause : {"", "sleep 600\n"}) {
    const std::string said = Answers("echo Hello\n" + std::string(kReady) + Skip(0) + pause, 1)[0];
    EXPECT_TRUE(said.starts_with("error it: printed what is no answer")) << said;
    EXPECT_TRUE(said.ends_with(": Hello")) << said;
  }
  EXPECT_EQ(ready_, 0);
}

TEST_F(RunProducerTest, RefusesAnswersThatCannotBe) {
  const auto refused = [&](const std::string& line, const std::string& why) {
    const std::string said = Answer(kReady + fmt::format("echo '{}'\n", line));
    EXPECT_TRUE(said.starts_with("error it: printed what is no answer")) << said;
    EXPECT_NE(said.find(why), std::string::npos) << said;
  };
  refused(R"({"step": 1, "skipped": "x"})", "answers step 1; 0 of 1 are answered");
  refused(R"({"step": 0, "dump": "/etc"})", "it was asked for in dumps/0");
  refused(R"({"step": 0})", "error");
  refused(R"({"step": 0, "pass": true})", "pass");
  refused(R"({"ready": true})", "ready");
  EXPECT_NE(Answer("echo '{\"ready\": false}'\n").find("not ready"), std::string::npos);
  EXPECT_NE(Answer(Skip(0)).find("printed what is no answer"), std::string::npos)
      << "the first line says that it is ready";
}

TEST_F(RunProducerTest, EndsOneThatPrintsWithoutEnd) {
  // Ends by itself after a while, should nobody end it.
  EXPECT_EQ(Answer("head -c 100000000 /dev/zero | tr '\\0' x\n"),
            "error it: prints without end instead of answering");
}

TEST_F(RunProducerTest, EndsOneThatDoesNotStart) {
  deadlines_.start = milliseconds(300);
  EXPECT_EQ(Answer("echo importing >&2\nsleep 600\n"),
            "error it: made no progress within 0.3 s; the last words of it: importing");
}

TEST_F(RunProducerTest, EndsOneThatIsSilentDuringAStep) {
  deadlines_.step = milliseconds(100);
  EXPECT_EQ(
      Answers(kReady + Skip(0) + "sleep 600\n", 2),
      (std::vector<std::string>{"skipped no such layout",
                                "error it: made no progress within 5.2 s; it left no words"}));
}

TEST_F(RunProducerTest, LetsOutWhatTheListenerThrows) {
  on_answer_ = [] { throw Error("disk", "is full"); };
  try {
    Answers(kReady + Skip(0) + Skip(1) + "sleep 600\n", 2);
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "disk: is full");
  }
}

TEST_F(RunProducerTest, DoesNotWaitForOneThatHasSaidAll) {
  // Some seconds to go, and not the ten minutes of a step.
  EXPECT_EQ(Answer(kReady + Skip(0) + "sleep 600\n"), "skipped no such layout");
}

TEST(FindProducer, RefusesWhatIsNone) {
  const auto complaint = [](const std::string& text) -> std::string {
    try {
      FindProducer(text, "no adapters", "/tmp");
      return "no complaint";
    } catch (const Error& error) {
      return error.what();
    }
  };
  EXPECT_EQ(complaint("/no/such/program"),
            "--producer: /no/such/program is not a program that can be started");
  EXPECT_EQ(complaint("/"), "--producer: / is not a program that can be started");
  EXPECT_EQ(complaint("apex==1.0"),
            "--producer: there is no adapter for apex; there are megatron-core, torchtitan");
  EXPECT_EQ(complaint("torchtitan==0.2.2"),
            "--producer: needs no adapters/environment.sh, which is not there; run it in a clone");
  for (const char* wrong :
       {"", "torchtitan", "torchtitan==", "torchtitan==0.2.2;id", "torch titan==1"}) {
    EXPECT_TRUE(complaint(wrong).ends_with("nor a program's path with a '/'")) << wrong;
  }
}

}  // namespace
}  // namespace moe
