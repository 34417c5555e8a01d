# cmake -DSOURCE=... -DHEADER=... -P WriteCommit.cmake: writes the commit of the clone SOURCE into HEADER. A header that says
# so already stays as it is, so that nothing is compiled again for it.
set(commit unknown)
find_program(git git)
if(git)
  # Sources that were unpacked inside another repository are not of its commits.
  execute_process(COMMAND ${git} -C ${SOURCE} rev-parse --show-prefix OUTPUT_VARIABLE prefix RESULT_VARIABLE status
                  OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(status EQUAL 0 AND prefix STREQUAL "")
    execute_process(COMMAND ${git} -C ${SOURCE} describe --always --abbrev=12 --exclude=* --dirty=+changes
                    OUTPUT_VARIABLE described RESULT_VARIABLE status OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    if(status EQUAL 0)
      set(commit ${described})
    endif()
  endif()
endif()
file(CONFIGURE OUTPUT ${HEADER} CONTENT [[
// Written by tools/cmake/WriteCommit.cmake.
#pragma once

namespace moe {

inline constexpr const char* kCommit = "@commit@";

}  // namespace moe
]] @ONLY)
