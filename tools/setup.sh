#!/usr/bin/env bash
# Installs what moegate needs, configures it and builds it into build/. Safe to repeat: what is there
# already is neither downloaded nor installed again.
set -Eeuo pipefail

usage() {
  cat <<'HELP'
usage: tools/setup.sh [options]

Installs missing Debian packages (as root, or with sudo), puts LibTorch into .venv/, builds into build/.

  --libtorch DIR   use this LibTorch (a folder with lib/ and include/) instead of downloading one
  --download       ignore a torch that python3 has; download the pinned one
  --torch VERSION  LibTorch to download (default 2.11.0)
  --nccl           the whole wheel with NCCL and CUDA, 2.7 GB (default where there is a GPU)
  --cpu            the CPU part alone, 540 MB (default where there is none)
  --judge-only     no LibTorch: build only what judges dumps (moegate check)
  --jobs N         compile N files at a time (default: as many as cores and memory allow)
  --help           this text

Options are remembered in build/ and hold for later runs without options; `rm -r build` forgets them.
Without options a torch of python3 is used where there is one, from 2.11 on; otherwise it is downloaded.
HELP
}

readonly pinned=2.11.0
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
readonly root venv=$root/.venv build=$root/build
readonly stamp=$venv/moegate.stamp log=$build/setup.log remembered=$build/setup.options

say() { echo "setup: $*"; }
die() { echo "setup.sh: $*" >&2; exit 2; }
doing="starting"
trap 'echo "setup.sh: stopped while $doing (line $LINENO)" >&2; exit 2' ERR

# shellcheck source=tools/packages.sh
source tools/packages.sh

# ---- options

libtorch="" download=no version="" want="" judge_only=no jobs="" keep=()
parse() {
  while [[ $# -gt 0 ]]; do
    case $1 in
      --libtorch|--torch|--jobs) [[ $# -ge 2 ]] || die "$1 needs a value; see --help" ;;&
      --libtorch) libtorch=$(realpath -m "$2"); keep+=("$1" "$libtorch"); shift ;;
      --torch)    version=$2; keep+=("$1" "$2"); shift ;;
      --jobs)     jobs=$2; shift ;;
      --download) download=yes; keep+=("$1") ;;
      --nccl)     want=nccl; keep+=("$1") ;;
      --cpu)      want=cpu; keep+=("$1") ;;
      --judge-only) judge_only=yes; keep+=("$1") ;;
      --help|-h)  usage; exit 0 ;;
      *) die "unknown option '$1'; see --help" ;;
    esac
    shift
  done
}
parse "$@"
if [[ ${#keep[@]} -eq 0 && -s $remembered ]]; then
  mapfile -t earlier <"$remembered"
  say "options of an earlier run: ${earlier[*]}"
  parse "${earlier[@]}"
fi
[[ -z $version ]] || download=yes  # a version asked for is not replaced by one that happens to be there
: "${version:=$pinned}"
[[ $version =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] || die "--torch takes a version such as $pinned, not '$version'"
[[ -z $jobs || $jobs =~ ^[1-9][0-9]*$ ]] || die "--jobs takes a whole number from 1, not '$jobs'"
if [[ -z $want ]]; then
  want=cpu
  if nvidia-smi -L >/dev/null 2>&1; then want=nccl; fi
fi
mkdir -p "$build"

# ---- Debian packages

missing_packages() {
  lacking_commands g++:g++ cmake:cmake ninja:ninja-build ccache:ccache git:git python3:python3
  local packages=(libeigen3-dev nlohmann-json3-dev libfmt-dev libcli11-dev libtinyxml2-dev libssl-dev libgtest-dev)
  # The tests of the file formats need it, from whichever python3 has it.
  has_python_with_jsonschema || echo python3-jsonschema
  if [[ $judge_only == no ]]; then
    packages+=(libgloo-dev)
    # Debian ships ensurepip, which `python3 -m venv` needs, in python3-venv.
    python3 -c 'import ensurepip' 2>/dev/null || echo python3-venv
  fi
  lacking_packages "${packages[@]}"
}

has_python_with_jsonschema() {
  local python
  for python in $(type -aP python3); do
    if "$python" -c 'import jsonschema' 2>/dev/null; then return 0; fi
  done
  return 1
}

# ---- LibTorch

# problem_of <torch folder>: says what is wrong with it, nothing if it can be used.
problem_of() {
  local file lacking
  for file in lib/libtorch_cpu.so lib/libc10.so include/ATen/ATen.h; do
    [[ -e $1/$file ]] || { echo "$1 has no $file"; return; }
  done
  lacking=$(ldd "$1/lib/libtorch_cpu.so" 2>/dev/null | awk '/not found/ {print $1}' | sort -u | paste -sd' ')
  [[ -z $lacking ]] || echo "$1/lib/libtorch_cpu.so needs $lacking, not found"
}

# The torch folder of python3, found without importing it; only from 2.11 on, and not our own .venv.
torch_of_python() {
  python3 - "$venv" <<'PY'
import importlib.util, pathlib, re, sys
spec = importlib.util.find_spec("torch")
if spec and spec.submodule_search_locations:
    folder = pathlib.Path(spec.submodule_search_locations[0]).resolve()
    version = folder / "version.py"
    found = re.search(r"__version__ = '(\d+)\.(\d+)", version.read_text()) if version.exists() else None
    ours = folder.is_relative_to(pathlib.Path(sys.argv[1]).resolve())
    if found and not ours and (int(found[1]), int(found[2])) >= (2, 11):
        print(folder)
PY
}

torch_in_venv() { compgen -G "$venv/lib/python3*/site-packages/torch" | head -n 1 || true; }

# The stamp is written last, so a .venv without one is half made; the whole wheel serves as CPU part too.
venv_is_whole() {
  [[ -s $stamp ]] || return 1
  [[ $(<"$stamp") == "$version $want" || $(<"$stamp") == "$version nccl" ]] || return 1
  [[ -n $(torch_in_venv) && -z $(problem_of "$(torch_in_venv)") ]]
}

download_torch() {
  local what=("torch==$version") size="2.7 GB; 5 GB on disk"
  if [[ $want == cpu ]]; then
    size="540 MB; 1.2 GB on disk"
    # libtorch_cpu.so itself needs two small CUDA libraries and nothing else of NVIDIA's.
    what+=("nvidia-cuda-runtime>=13,<14" "nvidia-cuda-cupti>=13,<14")
    [[ $version != "$pinned" ]] || what=("torch==$version" nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85)
    what+=(--no-deps)
  fi
  rm -f "$stamp"
  doing="making the virtual environment .venv"
  python3 -m venv --clear "$venv" >"$log" 2>&1 || die "could not make .venv: $(tail -n 1 "$log")"
  say "downloading LibTorch $version ($want: $size) into .venv"
  local failed="could not download LibTorch $version; check the network, or give --libtorch DIR"
  local pip=("$venv/bin/python" -m pip --disable-pip-version-check)
  "${pip[@]}" install "${what[@]}" </dev/null || die "$failed"
  if [[ $want == nccl ]]; then
    # CUDA's headers include crt/host_config.h and nv/target, whose wheels torch (2.11 both, 2.15 crt) does not ask for.
    local runtime headers lacking=()
    headers=$(torch_in_venv)/../nvidia/cu13/include
    runtime=$("${pip[@]}" show nvidia-cuda-runtime 2>/dev/null | sed -n 's/^Version: \([0-9]*\.[0-9]*\).*/\1/p' || true)
    [[ -e $headers/crt/host_config.h ]] || lacking+=("nvidia-cuda-crt==$runtime.*")
    [[ -e $headers/nv/target ]] || lacking+=("nvidia-cuda-cccl==$runtime.*")
    if [[ -n $runtime && ${#lacking[@]} -gt 0 ]]; then
      "${pip[@]}" install --no-deps "${lacking[@]}" </dev/null || die "$failed"
    fi
  fi
}

# Sets libtorch to a folder that can be used.
find_libtorch() {
  local found problem
  if [[ -n $libtorch ]]; then
    problem=$(problem_of "$libtorch")
    [[ -z $problem ]] || die "--libtorch: $problem"
    say "using LibTorch in $libtorch"
    return
  fi
  doing="looking for LibTorch"
  if [[ $download == no ]]; then
    found=$(torch_of_python)
    [[ $want == cpu || -e $found/lib/libtorch_cuda.so ]] || found=""
    if [[ -n $found && -z $(problem_of "$found") ]]; then
      libtorch=$found
      say "using python3's own LibTorch in $found (--download to fetch the pinned one instead)"
      return
    fi
  fi
  venv_is_whole || { download_torch; fresh=yes; }
  libtorch=$(torch_in_venv)
  problem=$(problem_of "$libtorch")
  [[ -z $problem ]] || die "the downloaded LibTorch cannot be used: $problem"
  [[ -z ${fresh:-} ]] || echo "$version $want" >"$stamp"
}

# ---- configure and build

configure() {
  local options=(-G Ninja "-DMOEGATE_STEP=$([[ $judge_only == yes ]] && echo OFF || echo ON)")
  [[ $judge_only == yes ]] || options+=("-DMOEGATE_TORCH_DIR=$libtorch")
  if command -v ccache >/dev/null; then  # the sloppiness is what precompiled headers need
    options+=("-DCMAKE_CXX_COMPILER_LAUNCHER=env;CCACHE_SLOPPINESS=pch_defines,time_macros;ccache")
  fi
  if [[ -e $build/CMakeCache.txt ]] && ! { grep -qxF "CMAKE_HOME_DIRECTORY:INTERNAL=$root" "$build/CMakeCache.txt" &&
       grep -qxF "CMAKE_GENERATOR:INTERNAL=Ninja" "$build/CMakeCache.txt"; }; then
    say "build/ is of another clone or generator; starting it afresh"
    rm -rf "$build/CMakeCache.txt" "$build/CMakeFiles" "$build/configured"
  fi
  if [[ ! -e $build/build.ninja || ! -e $build/configured || $(<"$build/configured") != "${options[*]}" ]]; then
    say "configuring build/"
    doing="configuring with CMake"
    rm -f "$build/configured"
    logged cmake -S "$root" -B "$build" "${options[@]}"
    echo "${options[*]}" >"$build/configured"
  fi
}

# Cores, but at most one job per 3 GB: files that see LibTorch's headers take that much.
job_count() {
  local kb limit=/sys/fs/cgroup/memory.max count
  kb=$(awk '/^MemAvailable/ {print $2}' /proc/meminfo)
  if [[ -r $limit && $(<"$limit") =~ ^[0-9]+$ ]] && (($(<"$limit") / 1024 < kb)); then
    kb=$(($(<"$limit") / 1024))
  fi
  count=$((kb / 3000000))
  ((count <= $(nproc))) || count=$(nproc)
  ((count >= 1)) || count=1
  echo "$count"
}

mapfile -t missing < <(missing_packages)
install_packages "${missing[@]}"
if [[ $judge_only == no ]]; then find_libtorch; fi
configure
doing="building"
cmake --build "$build" --parallel "${jobs:-$(job_count)}" || die "the build failed; the compiler's message is above"
[[ ${#keep[@]} -eq 0 ]] || printf '%s\n' "${keep[@]}" >"$remembered"
say "done: build/moegate"
