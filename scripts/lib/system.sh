# System packages: the compiler and the tools that cannot live in the build folder. Installs only what is missing.
# shellcheck shell=bash

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    fail "this needs root: run as root, install sudo, or run by hand: $*"
  fi
}

apt_update() {
  [ -z "${APT_UPDATED:-}" ] || return 0
  say "reading Debian's package lists"
  as_root apt-get -qq -o DPkg::Lock::Timeout=300 update >&2 || say "apt-get update reported errors: going on with the lists at hand"
  APT_UPDATED=1
}

apt_install() {
  command -v apt-get >/dev/null || fail "missing: $*; this is not a Debian system, so install them by its own means"
  apt_update
  say "installing $*"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 \
    install --no-install-recommends "$@" >"$BUILD/apt.log" 2>&1 || {
    tail -n 20 "$BUILD/apt.log" >&2
    fail "apt-get could not install: $*"
  }
}

# A Python with pip; the first of PATH may be one without.
find_pip() {
  local python
  for python in python3 /usr/bin/python3; do
    if "$python" -c 'import pip, zipfile' 2>/dev/null; then
      PYTHON=$python
      return 0
    fi
  done
  return 1
}

cmake_is_recent() { cmake --version 2>/dev/null | awk 'NR == 1 { split($3, v, "."); exit !(v[1] > 3 || (v[1] == 3 && v[2] >= 22)) }'; }
compiler_is_recent() { echo 'int main() { auto f = []<class T>(T x) { return x; }; return f(0); }' | c++ -std=c++20 -x c++ -fsyntax-only - 2>/dev/null; }

# need_system [tools]: what building takes; with `tools` also what scripts/test checks with.
need_system() {
  local missing=()
  compiler_is_recent || missing+=(g++)
  command -v cc >/dev/null || missing+=(gcc)
  cmake_is_recent || missing+=(cmake)
  command -v ninja >/dev/null || missing+=(ninja-build)
  find_pip || missing+=(python3 python3-pip ca-certificates)
  if [ "${1:-}" = tools ]; then
    command -v clang-format-14 >/dev/null || missing+=(clang-format-14)
    command -v clang-tidy-14 >/dev/null || missing+=(clang-tidy-14)
    command -v pkg-config >/dev/null || missing+=(pkg-config)
  fi
  [ ${#missing[@]} = 0 ] || apt_install "${missing[@]}"
  find_pip || fail "no Python with pip: apt-get install python3-pip"
}
