#!/usr/bin/env bash
# Makes or finds the virtual environment of a framework's release and prints the path of its python.
set -Eeuo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# Where .envs is a link to what several clones share, one and the same path must go into the stamps of all.
envs=$(realpath -m "$here/../../.envs")
readonly here envs releases=$here/releases
# Packages of the caller's would count as installed, and come before the pinned ones.
unset PYTHONPATH PYTHONHOME

die() { echo "environment.sh: $*" >&2; exit 2; }
say() { echo "environment: $*" >&2; }
trap 'die "stopped by what is said above (line $LINENO)"' ERR

known() { (cd "$releases" && ls -- *-*.txt) | sed -n 's/^\(.*\)-\([0-9.]*\)\.txt$/\1==\2/p' | grep -v '^torch==' | paste -sd' '; }

usage() {
  cat <<HELP
usage: tools/adapters/environment.sh NAME==VERSION

Makes the pinned virtual environment of a release in .envs/, or finds it there, and prints the path of its python on
standard output. Everything is pinned in tools/adapters/releases/. The PyTorch that a release runs on is made once and
shared (2.7 GB to fetch, 5 GB on disk). Safe to repeat, and to run twice at once.

releases: $(known)
HELP
}

# make <name-version> <site-packages below it>: an environment with exactly the pins of its file.
make_environment() {
  local name=$1 below=$2 venv=$envs/$1 pins=$releases/$1.txt
  local stamp=$venv/moegate.stamp wanted
  wanted=$(cat "$pins" && python3 --version && echo "$below")
  # The stamp is written last, so an environment without one, or with other pins, is made afresh.
  if [[ -s $stamp && $(<"$stamp") == "$wanted" && -x $venv/bin/python ]]; then return; fi
  say "making .envs/$name$([[ $name != torch-* ]] || echo ' (2.7 GB to fetch)')"
  rm -rf "$venv"
  python3 -m venv "$venv" >&2 || die "could not make .envs/$name; on Debian, install python3-venv"
  local site
  site=$(compgen -G "$venv/lib/python3*/site-packages" | head -n 1)
  if [[ -n $below ]]; then echo "$below" >"$site/moegate-torch.pth"; fi
  # All of it is pinned, so pip need not resolve anything; megatron-core asks for Python 3.12 and runs with less.
  "$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-deps --ignore-requires-python \
    --requirement "$pins" </dev/null >&2 ||
    die "could not install what $pins pins; check the network and the disk, and run it again"
  echo "$wanted" >"$stamp"
}

case ${1:-} in
  --help | -h) usage; exit 0 ;;
  '') usage >&2; exit 2 ;;
esac
[[ $# -eq 1 && $1 =~ ^([a-z][a-z0-9-]*)==([0-9]+(\.[0-9]+)*)$ ]] || die "takes one NAME==VERSION, such as torchtitan==0.2.2"
readonly release=${BASH_REMATCH[1]}-${BASH_REMATCH[2]}
[[ -e $releases/$release.txt && $release != torch-* ]] || die "$1 is none of the releases that are pinned: $(known)"
torch=$(sed -n '1s/^# on \(torch-[0-9.]*\)$/\1/p' "$releases/$release.txt")
[[ -n $torch ]] || die "$releases/$release.txt does not say in its first line which torch it is on"

mkdir -p "$envs"
exec 9>"$envs/lock"
flock --nonblock 9 || { say "waiting for another environment.sh to end"; flock 9; }
make_environment "$torch" ""
make_environment "$release" "$(compgen -G "$envs/$torch/lib/python3*/site-packages" | head -n 1)"
echo "$envs/$release/bin/python"
