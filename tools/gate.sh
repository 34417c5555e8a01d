#!/usr/bin/env bash
# Sets everything up if need be, then runs the gate.
set -euo pipefail
case ${1:-} in --help|-h)
  cat <<'HELP'
usage: tools/gate.sh [arguments of `build/moegate run`]

Installs and builds what is missing (tools/setup.sh), then runs `build/moegate run` in the clone's root with
the arguments given, for example  tools/gate.sh issues/torchtitan-2387@tp2.ep2.etp1 --backend=gloo
Options for tools/setup.sh go in the environment:  MOEGATE_SETUP_ARGS="--libtorch /opt/libtorch" tools/gate.sh
Exit status: 0 every case passed; 1 a verdict failed or proves nothing; 2 the command or the machine is at fault.
For the options of the gate itself: build/moegate run --help
HELP
  exit 0 ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck disable=SC2086  # several words on purpose; setup's output must not mix with --json on stdout
tools/setup.sh ${MOEGATE_SETUP_ARGS:-} >&2 || exit 2
exec build/moegate run "$@"
