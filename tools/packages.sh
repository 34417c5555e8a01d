# shellcheck shell=bash disable=SC2154  # log is set by who sources this
# Installs Debian's packages; for scripts that source it. They set `log`, the file for what is not shown, and have the
# functions `say` (to the user) and `die` (with status 2), and the variable `doing` for what is being done.

# logged <command>: its output goes to the log, and to the screen only if it fails.
logged() {
  "$@" >"$log" 2>&1 </dev/null || { tail -n 30 "$log" >&2; die "failed while $doing; all of it: $log"; }
}

# lacking_packages <package>...: those that Debian does not have installed; none elsewhere, where CMake names what it cannot find.
lacking_packages() {
  local package
  command -v dpkg-query >/dev/null || return 0
  for package in "$@"; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || echo "$package"
  done
}

# lacking_commands <command:package>...: the packages of the commands that are not there.
lacking_commands() {
  local pair
  for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null || echo "${pair##*:}"
  done
}

# install_packages <package>...: does nothing without any.
install_packages() {
  local as_root=()
  [[ $# -gt 0 ]] || return 0
  command -v apt-get >/dev/null || die "please install: $* (these are Debian's names)"
  if [[ $EUID -ne 0 ]]; then
    command -v sudo >/dev/null || die "please install, as root: apt-get install $*"
    as_root=(sudo)
    sudo -n true 2>/dev/null || sudo -v || die "sudo refused; please install, as root: apt-get install $*"
  fi
  say "installing Debian packages: $* (about a minute; log in ${log#"$PWD"/})"
  doing="installing Debian packages"
  as_root+=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y)
  logged "${as_root[@]}" update
  logged "${as_root[@]}" install --no-install-recommends "$@"
}
