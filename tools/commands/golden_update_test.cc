// When a golden file is written, when it is left alone, and that it is never half of one.

#include "tools/commands/golden_update.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "harness/base/error.h"

namespace moe {
namespace {

namespace fs = std::filesystem;

TEST(ToleranceFrom, AllowsFourTimesTheBoundRoundedUp) {
  const GoldenTolerance entry = ToleranceFrom({.bound = 0.01231}, std::nullopt, "");
  EXPECT_EQ(entry.bound, 0.013);
  EXPECT_EQ(entry.tolerance, 0.052);
}

TEST(ToleranceFrom, RecordsWhatIsDerivedRoundedUp) {
  const GoldenTolerance entry = ToleranceFrom(
      {.bound = 0.5, .worst_case = 8.61, .detectable_scale = 0.0777}, std::nullopt, "a reason");
  EXPECT_EQ(entry.worst_case, 8.7);
  EXPECT_EQ(entry.detectable_scale, 0.078);
  EXPECT_EQ(entry.why, "a reason");
}

TEST(ToleranceFrom, RecordsNoiseAsAStepBelowTheRoundedBound) {
  EXPECT_EQ(ToleranceFrom({.bound = 0.79999, .noise = 0.2}, std::nullopt, "").noise_floor, 0.4);
}

TEST(ToleranceFrom, KeepsTheStepOfTheNoiseBefore) {
  const GoldenTolerance before{.bound = 1.6, .noise_floor = 0.4};
  EXPECT_EQ(ToleranceFrom({.bound = 0.8, .noise = 0.19}, before, "").noise_floor, 0.2);
}

TEST(IsWider, IsWhatAllowsMore) {
  EXPECT_TRUE(IsWider({.tolerance = 1.01}, GoldenTolerance{.tolerance = 1.0}));
  EXPECT_FALSE(IsWider({.tolerance = 1.0}, GoldenTolerance{.tolerance = 1.0}));
  EXPECT_FALSE(IsWider({.tolerance = 0.99}, GoldenTolerance{.tolerance = 1.0}));
}

TEST(IsWider, IsNotWhatDiffersInItsLastBitsOnly) {
  EXPECT_FALSE(IsWider({.tolerance = 4.0 * 0.11}, GoldenTolerance{.tolerance = 0.44}));
}

TEST(IsWider, IsNothingThatIsNew) {
  EXPECT_FALSE(IsWider({.tolerance = 1.0}, std::nullopt));
}

// A golden file of one tensor in a folder that goes away with the test.
class UpdateGoldenTest : public testing::Test {
 protected:
  UpdateGoldenTest() {
    now_.case_sha256 = "abc";
    now_.reference["y_TD"] = {.norm = 1.0, .digest = 0.5};
    now_.tolerances[Dtype::kFloat32]["y_TD"] = {
        .tolerance = 1.0, .bound = 0.25, .noise_floor = 0.25, .fault_floor = 4.0, .why = "a bound"};
  }
  ~UpdateGoldenTest() override { fs::remove_all(folder_); }

  GoldenTolerance& Entry() { return now_.tolerances[Dtype::kFloat32]["y_TD"]; }

  GoldenUpdate Update(bool accept = false) const {
    return UpdateGolden(path_, GoldenBefore(path_), now_, accept);
  }

  // What Update says; "" when it throws nothing.
  std::string Complaint() const {
    try {
      Update();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  std::string Text() const {
    std::ifstream file(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  std::vector<std::string> Files() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(fs::path(path_).parent_path())) {
      names.push_back(entry.path().filename());
    }
    return names;
  }

  const std::string folder_ =
      fs::temp_directory_path() / fmt::format("golden_update_test.{}", ::getpid());
  const std::string path_ = folder_ + "/issues/a.json";
  Golden now_;
};

TEST_F(UpdateGoldenTest, WritesAFileThatWasNotThere) {
  EXPECT_EQ(Update(), GoldenUpdate::kWritten);
  EXPECT_EQ(ToJson(*GoldenBefore(path_)), ToJson(now_));
}

TEST_F(UpdateGoldenTest, LeavesAFileAloneThatSaysTheSame) {
  Update();
  const auto long_ago = fs::last_write_time(path_) - std::chrono::hours(1);
  fs::last_write_time(path_, long_ago);
  EXPECT_EQ(Update(), GoldenUpdate::kUnchanged);
  EXPECT_EQ(fs::last_write_time(path_), long_ago);
}

TEST_F(UpdateGoldenTest, WritesAFileAnewOfWhichTheCaseHasChanged) {
  Update();
  now_.case_sha256 = "abd";
  EXPECT_EQ(Update(), GoldenUpdate::kWritten);
  EXPECT_EQ(GoldenBefore(path_)->case_sha256, "abd");
}

TEST_F(UpdateGoldenTest, WritesATighterTolerance) {
  Update();
  Entry().bound = 0.2;
  Entry().noise_floor = 0.1;
  Entry().tolerance = 0.8;
  EXPECT_EQ(Update(), GoldenUpdate::kWritten);
}

TEST_F(UpdateGoldenTest, RefusesAWiderTolerance) {
  Entry().noise_floor = 0.1;
  Entry().fault_floor = 8.0;
  Update();
  const std::string before = Text();
  Entry().tolerance = 1.1;
  EXPECT_EQ(Update(), GoldenUpdate::kRefused);
  EXPECT_EQ(Text(), before);
}

TEST_F(UpdateGoldenTest, WritesAWiderToleranceThatIsAccepted) {
  Entry().noise_floor = 0.1;
  Entry().fault_floor = 8.0;
  Update();
  Entry().tolerance = 1.1;
  EXPECT_EQ(Update(/*accept=*/true), GoldenUpdate::kWritten);
  EXPECT_EQ(GoldenBefore(path_)->tolerances[Dtype::kFloat32]["y_TD"].tolerance, 1.1);
}

TEST_F(UpdateGoldenTest, RefusesWhatTheLoaderWouldRefuseAndKeepsTheFile) {
  Update();
  const std::string before = Text();
  Entry().fault_floor = 3.0;
  EXPECT_EQ(Complaint(), path_ +
                             "#/tolerances/float32/y_TD: tolerance 1.00e+00 is not 4 times "
                             "below the fault floor 3.00e+00");
  EXPECT_EQ(Text(), before);
}

// A disk that is full after 100 bytes.
TEST_F(UpdateGoldenTest, KeepsTheOldFileWholeWhereTheNewOneCannotBeWritten) {
  Update();
  const std::string before = Text();
  now_.case_sha256 = "abd";
  rlimit unlimited{};
  ::getrlimit(RLIMIT_FSIZE, &unlimited);
  const rlimit small{.rlim_cur = 100, .rlim_max = unlimited.rlim_max};
  ::signal(SIGXFSZ, SIG_IGN);
  ::setrlimit(RLIMIT_FSIZE, &small);
  const std::string complaint = Complaint();
  ::setrlimit(RLIMIT_FSIZE, &unlimited);
  EXPECT_EQ(complaint, path_ + ": cannot be written: File too large");
  EXPECT_EQ(Text(), before);
  EXPECT_EQ(Files(), std::vector<std::string>{"a.json"});
}

TEST_F(UpdateGoldenTest, SaysThatTheFileBeforeIsBroken) {
  Update();
  std::ofstream(path_) << "{";
  EXPECT_TRUE(Complaint().starts_with(path_)) << Complaint();
}

}  // namespace
}  // namespace moe
