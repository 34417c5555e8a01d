// Which moegate this is, and with what it was built.
#pragma once

#include <string>
#include <string_view>

namespace moe {

struct Version {
  // Of CMakeLists.txt: "0.5.0".
  std::string_view version;
  // When it was built: "7eeffa5c0a1b", with "+changes" where not all was committed; "unknown"
  // outside a clone.
  std::string_view commit;
  // That the parallel step was built with; "none" without the step.
  std::string_view libtorch;
  std::string_view eigen;
  std::string_view compiler;
};

Version ThisVersion();

// One line each; does not load LibTorch.
std::string ToText(const Version& version);

}  // namespace moe
