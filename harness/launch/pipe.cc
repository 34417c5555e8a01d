#include "harness/launch/pipe.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "harness/base/error.h"

namespace moe {

std::string ErrnoText() {
  return std::strerror(errno);
}

void FileDescriptor::Close() {
  if (fd_ >= 0) {
    close(fd_);
  }
  fd_ = -1;
}

FileDescriptor AboveStandardStreams(FileDescriptor fd) {
  if (!fd.IsOpen() || fd.get() > STDERR_FILENO) {
    return fd;
  }
  return FileDescriptor(fcntl(fd.get(), F_DUPFD_CLOEXEC, STDERR_FILENO + 1));
}

Pipe MakePipe() {
  std::array<int, 2> fds{-1, -1};
  if (pipe2(fds.data(), O_CLOEXEC) != 0) {
    throw Error("launch", "could not open a pipe: " + ErrnoText());
  }
  Pipe pipe;
  pipe.read = AboveStandardStreams(FileDescriptor(fds[0]));
  pipe.write = AboveStandardStreams(FileDescriptor(fds[1]));
  if (!pipe.read.IsOpen() || !pipe.write.IsOpen() ||
      fcntl(pipe.read.get(), F_SETFL, O_NONBLOCK) != 0) {
    throw Error("launch", "could not open a pipe: " + ErrnoText());
  }
  return pipe;
}

}  // namespace moe
