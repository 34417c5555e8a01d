#!/usr/bin/env bash
# Runs adapters_test.py with a python that has PyTorch: that of torchtitan 0.2.2, which other tests need as well.
#   tools/adapters/adapters_test.sh [path of moegate]
set -euo pipefail
cd "$(dirname "$0")"
python=$(./environment.sh torchtitan==0.2.2 | tail -n 1)
exec "$python" adapters_test.py "$@"
