# moe_module and moe_test: one folder, one static library; what a module may include is what it links.

add_library(moe_flags INTERFACE)
target_compile_features(moe_flags INTERFACE cxx_std_20)
target_compile_options(moe_flags INTERFACE -march=${MOEGATE_MARCH} -fno-fast-math -fPIC)
add_library(moe_warnings INTERFACE)
target_compile_options(moe_warnings INTERFACE -Wall -Wextra -Wshadow -Wconversion -Werror
  # Designated initializers leave the other members at their defaults on purpose.
  -Wno-missing-field-initializers
  # g++ 12 sees uninitialized values inside its own AVX-512 headers (GCC bug 105593), under one name or
  # the other, on machines that -march=native gives AVX-512.
  -Wno-maybe-uninitialized -Wno-uninitialized)

# moe_module(<folder> SOURCES <file>... DEPS <target>...) makes the target <folder with _ for />.
function(moe_module dir)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPS" ${ARGN})
  string(REPLACE "/" "_" name ${dir})
  list(TRANSFORM arg_SOURCES PREPEND ${dir}/)
  add_library(${name} STATIC ${arg_SOURCES})
  target_include_directories(${name} PUBLIC ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PUBLIC moe_flags ${arg_DEPS} PRIVATE moe_warnings)
endfunction()

# moe_test(<file> DEPS <target>... LABELS <label>...) builds and registers one GoogleTest file.
function(moe_test file)
  if(NOT MOEGATE_TESTS)
    return()
  endif()
  cmake_parse_arguments(arg "" "" "DEPS;LABELS" ${ARGN})
  get_filename_component(name ${file} NAME_WE)
  add_executable(${name} ${file})
  target_link_libraries(${name} PRIVATE ${arg_DEPS} GTest::gtest_main moe_warnings)
  # To say what tests there are a test starts, which takes LibTorch seconds on a busy machine.
  gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60 PROPERTIES LABELS "${arg_LABELS}" TIMEOUT 120)
endfunction()
