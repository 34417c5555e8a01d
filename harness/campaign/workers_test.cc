#include "harness/campaign/workers.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <set>

#include "harness/base/error.h"

namespace moe {
namespace {

TEST(RunInWorkers, ReturnsEveryAnswerByItsTask) {
  const auto answers = RunInWorkers(
      50, [](std::int64_t task) { return std::string(static_cast<std::size_t>(task), '\n'); },
      {.jobs = 3});
  ASSERT_EQ(answers.size(), 50U);
  for (std::size_t task = 0; task < answers.size(); ++task) {
    EXPECT_EQ(answers[task], std::string(task, '\n'));
  }
}

TEST(RunInWorkers, WorksInOtherProcesses) {
  const auto pids =
      RunInWorkers(20, [](std::int64_t) { return std::to_string(::getpid()); }, {.jobs = 2});
  EXPECT_EQ(std::count(pids.begin(), pids.end(), std::to_string(::getpid())), 0);
  EXPECT_LE(std::set<std::string>(pids.begin(), pids.end()).size(), 2U);
}

TEST(RunInWorkers, HasNothingToDoForNoTasks) {
  EXPECT_TRUE(RunInWorkers(0, [](std::int64_t) { return std::string(); }, {}).empty());
}

TEST(RunInWorkers, PassesOnTheWordsOfTheWorkerThatFailed) {
  try {
    RunInWorkers(4,
                 [](std::int64_t task) -> std::string {
                   return task == 2 ? throw Error("task", "is at fault") : std::string("fine");
                 },
                 {.jobs = 2});
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("task: is at fault"), std::string::npos)
        << error.what();
  }
}

TEST(RunInWorkers, EndsAWorkerThatHangs) {
  EXPECT_THROW(RunInWorkers(2,
                            [](std::int64_t task) {
                              ::sleep(task == 0 ? 100 : 0);
                              return std::string();
                            },
                            {.jobs = 2, .deadline = std::chrono::seconds(1)}),
               Error);
}

}  // namespace
}  // namespace moe
