#!/usr/bin/env bash
# Runs everything that looks at the sources without running them. Installs what is missing as tools/setup.sh does.
set -Eeuo pipefail

usage() {
  cat <<'HELP'
usage: tools/lint.sh [KIND...]

  scripts   shellcheck on every shell script
  python    ruff (.ruff.toml) and mypy (.mypy.ini)
  format    clang-format (.clang-format): nothing would change
  tidy      clang-tidy (.clang-tidy) on every C++ file, as build/compile_commands.json compiles it; minutes
  analyze   clang's static analyzer on the same; takes ten times as long, so it runs only when it is asked for

All but the last by default, in this order; stops at the first that finds something, with exit status 1 (2 where it could
not look). ruff, mypy and clang-tidy are of pinned versions, in .venv-lint/; the rest is Debian's.
HELP
}

readonly pins=(ruff==0.17.6 mypy==2.4.1 clang-tidy==23.1.4)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly venv=$PWD/.venv-lint build=$PWD/build
readonly log=$build/lint.log

say() { echo "lint: $*"; }
die() { echo "lint.sh: $*" >&2; exit 2; }
found() { echo "lint.sh: $*" >&2; exit 1; }
doing="starting"
trap 'echo "lint.sh: stopped while $doing (line $LINENO)" >&2; exit 2' ERR
# shellcheck source=tools/packages.sh
source tools/packages.sh

# sources <pattern>...: files of the clone, those that are not committed yet too.
sources() { git ls-files --cached --others --exclude-standard -- "$@" | while read -r file; do [[ ! -e $file ]] || echo "$file"; done; }

lint_scripts() {
  local files
  mapfile -t files < <(sources '*.sh' .ci/run)
  doing="running shellcheck"
  shellcheck -x "${files[@]}" || found "shellcheck has something to say, above"
  say "scripts: shellcheck is content with ${#files[@]} files"
}

# The environment is there, whole, where its list of pins is this one.
make_venv() {
  [[ $(cat "$venv/pins" 2>/dev/null) == "${pins[*]}" ]] && return
  say "fetching ${pins[*]} into .venv-lint"
  doing="making the virtual environment .venv-lint"
  logged python3 -m venv --clear "$venv"
  doing="fetching ${pins[*]}"
  logged "$venv/bin/python" -m pip --disable-pip-version-check install "${pins[@]}"
  echo "${pins[*]}" >"$venv/pins"
}

lint_python() {
  make_venv
  doing="running ruff"
  "$venv/bin/ruff" check --quiet . || found "ruff has something to say, above"
  doing="running mypy"
  "$venv/bin/mypy" || found "mypy has something to say, above"
  say "python: ruff and mypy are content"
}

lint_format() {
  local files
  mapfile -t files < <(sources '*.h' '*.cc')
  doing="running clang-format"
  clang-format --dry-run -Werror "${files[@]}" || found "clang-format would change files, above; clang-format -i FILE"
  say "format: clang-format would change none of ${#files[@]} files"
}

# Files of the clone that build/compile_commands.json compiles, each once.
compiled_files() {
  python3 - "$build" <<'PY'
import json, pathlib, sys
build = pathlib.Path(sys.argv[1])
files = {pathlib.Path(entry["file"]) for entry in json.loads((build / "compile_commands.json").read_text())}
for file in sorted(files):
    if file.is_relative_to(build.parent) and not file.is_relative_to(build) and file.exists():
        print(file.relative_to(build.parent))
PY
}

# tidy <option>...: on all files, as many at a time as there are cores. What clang does not know of g++'s options and of
# its precompiled header is no finding.
tidy() {
  local files
  make_venv
  [[ -e $build/compile_commands.json ]] || die "there is no build/compile_commands.json; run tools/setup.sh first"
  doing="reading build/compile_commands.json"
  mapfile -t files < <(compiled_files)
  doing="running clang-tidy"
  say "$kind: clang-tidy on ${#files[@]} files, $(nproc) at a time"
  printf '%s\n' "${files[@]}" | xargs -P "$(nproc)" -n 1 "$venv/bin/clang-tidy" -p "$build" --quiet \
    --extra-arg=-Wno-unknown-warning-option --extra-arg=-Wno-ignored-gch "$@" 2>"$log" ||
    found "clang-tidy has something to say, above"
  say "$kind: clang-tidy is content with ${#files[@]} files"
}

lint_tidy() { tidy; }

lint_analyze() { tidy '--checks=-*,clang-analyzer-*'; }

case ${1:-} in --help|-h) usage; exit 0 ;; esac
kinds=("$@")
[[ $# -gt 0 ]] || kinds=(scripts python format tidy)
for kind in "${kinds[@]}"; do
  case $kind in scripts|python|format|tidy|analyze) ;; *) die "\"$kind\" is no kind of lint; see --help" ;; esac
done
mkdir -p "$build"
mapfile -t missing < <(
  lacking_commands git:git python3:python3 shellcheck:shellcheck clang-format:clang-format
  python3 -c 'import ensurepip' 2>/dev/null || echo python3-venv)
install_packages "${missing[@]}"
for kind in "${kinds[@]}"; do "lint_$kind"; done
