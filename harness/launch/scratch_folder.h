// A folder for what processes leave one another during one command.
#pragma once

#include <filesystem>

namespace moe {

// A folder of our own that is gone when we are; at the latest when the next one is made, since its
// name has our process id in it and whoever is killed cannot clean up.
class ScratchFolder {
 public:
  ScratchFolder();  // throws Error where none can be made
  ~ScratchFolder() { Remove(); }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }

  void Remove() const;

 private:
  std::filesystem::path path_;
};

}  // namespace moe
