// The processor time of the calling thread, for work of one thread: what else the machine does
// meanwhile hardly shows in it.
#pragma once

#include <time.h>

namespace moe::bench {

inline double CpuSeconds() {
  ::timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace moe::bench
