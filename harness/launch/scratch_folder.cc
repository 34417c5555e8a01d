#include "harness/launch/scratch_folder.h"

#include <fmt/format.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <string>
#include <system_error>

#include "harness/base/error.h"

namespace moe {
namespace {

namespace fs = std::filesystem;

void RemoveThoseOfTheDead(const fs::path& parent) {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(parent, ignored)) {
    int owner = 0;
    const std::string name = entry.path().filename().string();
    if (std::sscanf(name.c_str(), "moegate-%d-", &owner) == 1 && owner > 0 &&
        ::kill(owner, 0) != 0 && errno == ESRCH) {
      fs::remove_all(entry.path(), ignored);
    }
  }
}

}  // namespace

ScratchFolder::ScratchFolder() {
  // In memory where the machine has it: a rank's output is written once and read once.
  const fs::path parent = fs::exists("/dev/shm") ? "/dev/shm" : fs::temp_directory_path();
  RemoveThoseOfTheDead(parent);
  std::string name = (parent / fmt::format("moegate-{}-XXXXXX", ::getpid())).string();
  if (::mkdtemp(name.data()) == nullptr) {
    throw Error(parent.string(), "does not let a scratch folder be made");
  }
  path_ = name;
}

void ScratchFolder::Remove() const {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

}  // namespace moe
