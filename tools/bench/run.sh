#!/usr/bin/env bash
# Builds the benchmark and prints the table of speed goals.
set -euo pipefail
case ${1:-} in --help|-h)
  cat <<'HELP'
usage: tools/bench/run.sh

Builds moegate and moegate_bench in build/ and prints what is measured against the goals.
Options for tools/setup.sh go in the environment:  MOEGATE_SETUP_ARGS="--libtorch /opt/libtorch" tools/bench/run.sh
MOEGATE_BUILD=DIR names a configured build folder to use instead of build/. Leave the machine otherwise idle.
Exit status: 0 every goal met; 1 one missed; 2 nothing could be measured.
HELP
  exit 0 ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
build=${MOEGATE_BUILD:-build}
if [[ -z ${MOEGATE_BUILD:-} ]]; then
  # shellcheck disable=SC2086  # several words on purpose
  tools/setup.sh ${MOEGATE_SETUP_ARGS:-} >&2 || exit 2
fi
{ cmake -S . -B "$build" -DMOEGATE_BENCH=ON >/dev/null && cmake --build "$build" --parallel 2; } >&2 || exit 2
exec "$build/moegate_bench"
