#include "tools/commands/version.h"

#include <fmt/format.h>

#include "tools/commands/commit.h"  // made in the build folder, at every build

namespace moe {

Version ThisVersion() {
  return {.version = MOEGATE_VERSION,
          .commit = kCommit,
          .libtorch = MOEGATE_TORCH_VERSION,
          .eigen = MOEGATE_EIGEN_VERSION,
          .compiler = MOEGATE_COMPILER};
}

std::string ToText(const Version& version) {
  return fmt::format("moegate   {}\ncommit    {}\nLibTorch  {}\nEigen     {}\ncompiler  {}",
                     version.version, version.commit, version.libtorch, version.eigen,
                     version.compiler);
}

}  // namespace moe
