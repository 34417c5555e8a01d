#!/usr/bin/env bash
# Regenerates golden files, shows old against new, and refuses to widen a tolerance without --accept.
#   tools/regen_golden.sh [--accept] [CASE...]      CASE with * and ? as in a shell; all by default
#   tools/regen_golden.sh --calibrate [CASE...]     only prints noise over bound, per dtype
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x build/moegate ] || tools/setup.sh
exec build/moegate regen "$@"
