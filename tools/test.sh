#!/usr/bin/env bash
# Sets everything up if need be, then runs the tests; JUnit goes to build/ctest.xml.
set -euo pipefail
case ${1:-} in --help|-h)
  cat <<'HELP'
usage: tools/test.sh [arguments of ctest]

Installs and builds what is missing (tools/setup.sh), then runs ctest with the arguments given, for example
  tools/test.sh -L unit        the tests with the label unit
  tools/test.sh -R layering    the tests whose name matches
Options for tools/setup.sh go in the environment:  MOEGATE_SETUP_ARGS="--libtorch /opt/libtorch" tools/test.sh
HELP
  exit 0 ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck disable=SC2086  # several words on purpose
tools/setup.sh ${MOEGATE_SETUP_ARGS:-} >&2 || exit 2
exec ctest --test-dir build --output-on-failure --no-tests=error --output-junit "$PWD/build/ctest.xml" -j2 "$@"
