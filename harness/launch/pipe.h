// File descriptors that close themselves, and pipes that no new program inherits.
#pragma once

#include <string>
#include <utility>

namespace moe {

class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~FileDescriptor() { Close(); }

  int get() const { return fd_; }
  bool IsOpen() const { return fd_ >= 0; }
  void Close();

 private:
  int fd_ = -1;
};

// Out of the way of the descriptors 0 to 2, which a caller may have closed and a rank replaces. Not
// open where that fails.
FileDescriptor AboveStandardStreams(FileDescriptor fd);

struct Pipe {
  FileDescriptor read;   // does not block
  FileDescriptor write;  // blocks
};

// Both ends above the standard streams. Throws Error("launch", ...).
Pipe MakePipe();

// What errno says.
std::string ErrnoText();

}  // namespace moe
