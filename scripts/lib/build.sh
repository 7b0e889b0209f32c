# Configures and builds a preset.
# shellcheck shell=bash

# configure PRESET: only when its build files are missing or older than the presets; ninja sees to the rest.
configure() {
  local folder=$BUILD launcher=() log
  [ "$1" = release ] || folder=$ROOT/build-$1
  log=$folder/configure.log
  if [ -e "$folder/build.ninja" ] && [ "$folder/build.ninja" -nt "$ROOT/CMakePresets.json" ]; then return 0; fi
  command -v ccache >/dev/null && launcher=(-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
  mkdir -p "$folder"
  (cd "$ROOT" && cmake --preset "$1" "${launcher[@]}") >"$log" 2>&1 || {
    tail -n 30 "$log" >&2
    fail "cmake --preset $1 failed; its whole output is in $log"
  }
}

# build PRESET [TARGET...]
build() {
  local preset=$1
  shift
  configure "$preset"
  (cd "$ROOT" && cmake --build --preset "$preset" --parallel "$JOBS" ${1:+--target "$@"})
}
