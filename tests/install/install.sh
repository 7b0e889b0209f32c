#!/bin/sh
# Installs into a fresh prefix, then builds and runs the examples against it as a stranger would: through
# find_package(tactic) and through pkg-config.
set -eu
build=$1 source=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
prefix=$work/prefix

cmake --install "$build" --prefix "$prefix"
cmake -S "$source/examples" -B "$work/cmake" -G Ninja -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_BUILD_TYPE=Release
cmake --build "$work/cmake"
(cd "$work/cmake" && ctest --output-on-failure --no-tests=error)

# The program, where it was built, runs with the engine that was installed with it: as far as the missing model.
if [ -x "$prefix/bin/tactic" ]; then
  if ldd "$prefix/bin/tactic" | grep -E 'lib(llama|ggml)' | grep -v "$prefix/"; then
    echo "bin/tactic takes the engine's libraries from elsewhere" && exit 1
  fi
  echo "some text" >"$work/text"
  "$prefix/bin/tactic" run -m "$work/none.gguf" -f "$work/text" --no-cache 2>"$work/said" && exit 1
  grep -q "model $work/none.gguf cannot be read" "$work/said" || { cat "$work/said" && exit 1; }
fi

command -v pkg-config >/dev/null || { echo "pkg-config is not here: its half was not tested"; exit 0; }
PKG_CONFIG_PATH=$(dirname "$(find "$prefix" -name tactic.pc)")
export PKG_CONFIG_PATH
libraries=$(pkg-config --variable=libdir tactic)
for file in "$source"/examples/*.c "$source"/examples/*.cpp; do
  [ -e "$file" ] || continue
  case $file in
    *.c) compiler="cc -std=c11" ;;
    *) compiler="c++ -std=c++20" ;;
  esac
  # shellcheck disable=SC2046,SC2086 # one word per flag
  $compiler -Wall -Wextra -Werror "$file" $(pkg-config --cflags --libs tactic) -lm -o "$work/example"
  LD_LIBRARY_PATH=$libraries "$work/example" >/dev/null
done
