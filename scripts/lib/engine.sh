# The engine: llama.cpp from its pinned source package, built once per source, flags and compiler, and kept in the cache.
# shellcheck shell=bash

# Dynamic backends (GGML_BACKEND_DL) are what lets libtactic-llama.so be loaded. They exclude GGML_NATIVE, so the processor's
# instruction sets are named one by one: an engine built for less would make every comparison with stock unfair.
cpu_flags() {
  local flags pair option names name on
  flags=" $(awk -F: '/^flags/ { print $2; exit }' /proc/cpuinfo) "
  for pair in GGML_SSE42:sse4_2 GGML_AVX:avx GGML_AVX2:avx2 GGML_FMA:fma GGML_F16C:f16c GGML_BMI2:bmi2 GGML_AVX_VNNI:avx_vnni \
    GGML_AVX512:avx512f,avx512cd,avx512vl,avx512dq,avx512bw GGML_AVX512_VBMI:avx512vbmi \
    GGML_AVX512_VNNI:avx512_vnni GGML_AVX512_BF16:avx512_bf16; do
    option=${pair%%:*} names=${pair#*:} on=ON
    for name in ${names//,/ }; do [[ $flags == *" $name "* ]] || on=OFF; done
    echo "-D$option=$on"
  done
}

engine_options() {
  echo -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DGGML_BACKEND_DL=ON -DGGML_NATIVE=OFF -DGGML_OPENMP=ON -DGGML_CCACHE=OFF \
    -DCMAKE_BUILD_RPATH_USE_ORIGIN=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=ON \
    -DLLAMA_OPENSSL=OFF
  cpu_flags
}
ENGINE_TARGETS=(llama llama-server llama-bench llama-cli llama-completion)

engine_key() {
  { pins engine; engine_options; echo "${ENGINE_TARGETS[@]}"; c++ --version | head -n 1; uname -m; } | sha256sum | cut -c1-16
}

build_engine() {  # folder of the finished engine
  local work=$1.building launcher=()
  [ -e "$1/complete" ] && return 0
  fetch_set engine
  if [ ! -e "$work/source/complete" ]; then
    rm -rf "$work"
    mkdir -p "$work/source"
    say "unpacking the engine's source"
    # models/ and the rest hold vocabularies, pictures and tests: 100 MB that no target here needs
    tar -xzf "$CACHE/downloads/llama-cpp-python_0.3.36" -C "$work/source" --strip-components=3 --wildcards \
      --exclude='llama_cpp_python-*/vendor/llama.cpp/models' --exclude='llama_cpp_python-*/vendor/llama.cpp/media' \
      --exclude='llama_cpp_python-*/vendor/llama.cpp/docs' --exclude='llama_cpp_python-*/vendor/llama.cpp/tests' \
      'llama_cpp_python-*/vendor/llama.cpp/*'
    touch "$work/source/complete"
  fi
  command -v ccache >/dev/null && launcher=(-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
  say "building the engine (llama.cpp) once, about six minutes on two cores; log: $1.log"
  # shellcheck disable=SC2046 # one word per option
  cmake -S "$work/source" -B "$work/build" -G Ninja $(engine_options) "${launcher[@]}" >"$1.log" 2>&1 &&
    show_progress "$1.log" cmake --build "$work/build" --parallel "$JOBS" --target "${ENGINE_TARGETS[@]}" || {
    tail -n 30 "$1.log" >&2
    fail "the engine did not build; the whole log is $1.log"
  }
  rm -rf "$1"
  mkdir -p "$1.new"
  mv "$work/build/bin" "$work/source" "$1.new/"
  engine_options >"$1.new/options.txt"
  touch "$1.new/complete"
  mv "$1.new" "$1"
  rm -rf "$work"
}

# show_progress LOG COMMAND...: ninja's counter on a terminal, one line a tenth otherwise.
show_progress() {
  local log=$1 line shown=0 tenth
  shift
  "$@" 2>&1 | tee -a "$log" | while IFS= read -r line; do
    [[ $line =~ ^\[([0-9]+)/([0-9]+)\] ]] || continue
    tenth=$((10 * BASH_REMATCH[1] / BASH_REMATCH[2]))
    if [ -t 2 ]; then
      printf '\rtactic: %d of %d files' "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}" >&2
    elif [ "$tenth" -gt "$shown" ]; then
      shown=$tenth
      say "engine $((10 * tenth))%"
    fi
  done
  if [ -t 2 ]; then echo >&2; fi
}

# need_engine: build/engine -> the cached engine; its programs and libraries copied to build/bin, where they run in place.
need_engine() {
  local folder
  folder=$CACHE/engine/$(engine_key)
  [ -e "$folder/complete" ] || with_lock "$folder.lock" build_engine "$folder"
  ln -sfn "$folder" "$BUILD/engine"
  if [ "$(cat "$BUILD/bin/.engine" 2>/dev/null)" != "$folder" ] || [ ! -x "$BUILD/bin/llama-cli" ]; then
    mkdir -p "$BUILD/bin"
    cp -af "$folder/bin/." "$BUILD/bin/"
    echo "$folder" >"$BUILD/bin/.engine"
  fi
}
