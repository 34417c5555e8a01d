# LibTorch as two imported targets, for the PyPI wheel, its CPU subset or a LibTorch zip.
#   moe_torch       headers, libtorch_cpu and libc10 alone: a program that links it needs no CUDA library
#   moe_torch_cuda  for a MODULE library opened on demand: NCCL's and CUDA's headers, libtorch_cuda, libc10_cuda;
#                   only if MOEGATE_HAVE_NCCL_HEADERS is true
# find_package(Torch) is not used: with the wheel it looks for nvcc and stops where there is no GPU or toolkit.

set(MOEGATE_TORCH_DIR "" CACHE PATH "LibTorch: a folder with lib/ and include/, such as the wheel's torch/")
if(NOT MOEGATE_TORCH_DIR)
  file(GLOB _torch LIST_DIRECTORIES true ${PROJECT_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch)
  set_property(CACHE MOEGATE_TORCH_DIR PROPERTY VALUE "${_torch}")
endif()
foreach(_file lib/libtorch_cpu.so lib/libc10.so include/ATen/ATen.h)
  if(NOT EXISTS "${MOEGATE_TORCH_DIR}/${_file}")
    message(FATAL_ERROR "No LibTorch: MOEGATE_TORCH_DIR='${MOEGATE_TORCH_DIR}' has no ${_file}. Run tools/setup.sh, which "
                        "downloads it, or pass -DMOEGATE_TORCH_DIR=<folder>, or -DMOEGATE_STEP=OFF to judge dumps only.")
  endif()
endforeach()
# Where the version stands depends on it.
foreach(_file include/torch/headeronly/version.h include/torch/csrc/api/include/torch/version.h)
  if(EXISTS "${MOEGATE_TORCH_DIR}/${_file}")
    file(STRINGS "${MOEGATE_TORCH_DIR}/${_file}" _parts REGEX "#define TORCH_VERSION_(MAJOR|MINOR|PATCH) ")
    list(TRANSFORM _parts REPLACE "[^0-9]+" "")
    list(JOIN _parts "." MOEGATE_TORCH_VERSION)
    break()
  endif()
endforeach()
message(STATUS "LibTorch: ${MOEGATE_TORCH_VERSION} in ${MOEGATE_TORCH_DIR}")

# The wheel has Gloo's code but not its headers, which ProcessGroupGloo.hpp includes.
find_path(MOEGATE_GLOO_INCLUDE_DIR gloo/common/logging.h HINTS ${MOEGATE_TORCH_DIR}/include)
if(NOT MOEGATE_GLOO_INCLUDE_DIR)
  message(FATAL_ERROR "Gloo's headers (gloo/common/logging.h) are missing: install Debian's package libgloo-dev.")
endif()

add_library(moe_torch INTERFACE)
target_compile_features(moe_torch INTERFACE cxx_std_20)
target_compile_definitions(moe_torch INTERFACE USE_DISTRIBUTED USE_C10D USE_C10D_GLOO)
target_include_directories(moe_torch SYSTEM INTERFACE
  ${MOEGATE_TORCH_DIR}/include ${MOEGATE_TORCH_DIR}/include/torch/csrc/api/include ${MOEGATE_GLOO_INCLUDE_DIR})
target_link_libraries(moe_torch INTERFACE ${MOEGATE_TORCH_DIR}/lib/libtorch_cpu.so ${MOEGATE_TORCH_DIR}/lib/libc10.so)
target_link_options(moe_torch INTERFACE -Wl,-rpath,${MOEGATE_TORCH_DIR}/lib)

# ProcessGroupNCCL.hpp needs nccl.h and, through ATen/cuda, CUDA's headers, from 12 on. The CPU subset lacks some: they
# come from the whole wheel or a CUDA toolkit. Looked up anew each time, so that another LibTorch takes effect.
set(_nccl "")
set(_cuda "")
get_filename_component(_nvidia ${MOEGATE_TORCH_DIR}/../nvidia ABSOLUTE)
foreach(_dir ${_nvidia}/nccl/include ${_nvidia}/cu13/include $ENV{CUDA_HOME}/include /usr/local/cuda/include /usr/include)
  if(NOT _nccl AND EXISTS ${_dir}/nccl.h)
    set(_nccl ${_dir})
  endif()
  if(NOT _cuda AND EXISTS ${_dir}/cuda_runtime_api.h AND EXISTS ${_dir}/cusparse.h AND EXISTS ${_dir}/cublas_v2.h
     AND EXISTS ${_dir}/crt/host_config.h AND (EXISTS ${_dir}/nv/target OR EXISTS ${_dir}/cccl/nv/target))
    file(STRINGS ${_dir}/cuda_runtime_api.h _version REGEX "#define CUDART_VERSION +1[2-9][0-9][0-9][0-9]")
    if(_version)
      set(_cuda ${_dir})
    endif()
  endif()
endforeach()
set(MOEGATE_HAVE_NCCL_HEADERS FALSE)
if(_nccl AND _cuda AND EXISTS ${MOEGATE_TORCH_DIR}/lib/libtorch_cuda.so AND EXISTS ${MOEGATE_TORCH_DIR}/lib/libc10_cuda.so)
  set(MOEGATE_HAVE_NCCL_HEADERS TRUE)
  message(STATUS "NCCL: nccl.h in ${_nccl}, CUDA in ${_cuda}")
  add_library(moe_torch_cuda INTERFACE)
  target_compile_definitions(moe_torch_cuda INTERFACE USE_C10D_NCCL USE_CUDA)
  target_include_directories(moe_torch_cuda SYSTEM INTERFACE ${_nccl} ${_cuda} ${_cuda}/cccl)
  # What libtorch_cuda needs in turn may be absent here; opening the module says what.
  target_link_libraries(moe_torch_cuda INTERFACE moe_torch
    ${MOEGATE_TORCH_DIR}/lib/libtorch_cuda.so ${MOEGATE_TORCH_DIR}/lib/libc10_cuda.so)
  target_link_options(moe_torch_cuda INTERFACE -Wl,--allow-shlib-undefined)
else()
  message(STATUS "NCCL: no nccl.h, no CUDA headers from 12 on, or no libtorch_cuda.so; building without --backend=nccl")
endif()
set(LibTorchWheel_FOUND TRUE)
