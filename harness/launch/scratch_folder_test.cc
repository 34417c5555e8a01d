// A folder that is there while it is needed, and whose name tells whose it is.

#include "harness/launch/scratch_folder.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

namespace moe {
namespace {

namespace fs = std::filesystem;

// Beside where scratch folders lie, as somebody else's process would have left it.
class Left {
 public:
  explicit Left(const std::string& name) : path_(ScratchFolder().path().parent_path() / name) {
    fs::create_directory(path_);
  }
  ~Left() { fs::remove_all(path_); }
  Left(const Left&) = delete;
  Left& operator=(const Left&) = delete;

  bool IsThere() const { return fs::exists(path_); }

 private:
  fs::path path_;
};

// The id of a process that has ended.
pid_t DeadProcess() {
  const pid_t child = ::fork();
  if (child == 0) {
    ::_exit(0);
  }
  ::waitpid(child, nullptr, 0);
  return child;
}

TEST(ScratchFolder, IsAFolderOfItsOwn) {
  const ScratchFolder one;
  const ScratchFolder other;
  EXPECT_TRUE(fs::is_directory(one.path()));
  EXPECT_NE(one.path(), other.path());
}

TEST(ScratchFolder, IsGoneWithAllThatIsInIt) {
  fs::path path;
  {
    const ScratchFolder folder;
    path = folder.path();
    fs::create_directory(path / "rank0");
    std::ofstream(path / "rank0" / "tensors") << "x";
  }
  EXPECT_FALSE(fs::exists(path));
}

TEST(ScratchFolder, MayBeRemovedEarlier) {
  const ScratchFolder folder;
  folder.Remove();
  EXPECT_FALSE(fs::exists(folder.path()));
}

TEST(ScratchFolder, OfADeadProcessIsRemovedWhenTheNextIsMade) {
  const Left dead(fmt::format("moegate-{}-test", DeadProcess()));
  const ScratchFolder next;
  EXPECT_FALSE(dead.IsThere());
}

TEST(ScratchFolder, OfALivingProcessStays) {
  const Left living(fmt::format("moegate-{}-test", ::getppid()));
  const ScratchFolder next;
  EXPECT_TRUE(living.IsThere());
}

TEST(ScratchFolder, LeavesAloneWhatIsNoneByItsName) {
  const Left other(fmt::format("moegate-x{}-test", ::getpid()));
  const ScratchFolder next;
  EXPECT_TRUE(other.IsThere());
}

}  // namespace
}  // namespace moe
