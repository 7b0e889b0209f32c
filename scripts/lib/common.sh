# What every script starts with: where the checkout and the cache are, messages, locks, hashes.
# shellcheck shell=bash
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
BUILD=$ROOT/build
PINS=$ROOT/scripts/pins.txt
JOBS=${TACTIC_JOBS:-$(nproc)}

say() { printf '%s\n' "tactic: $*" >&2; }
fail() {
  say "error: $*"
  exit 1
}

# The cache outlives checkouts: downloads, models, built engines. Falls back to the build folder where it cannot be written.
choose_cache() {
  CACHE=${TACTIC_CACHE:-${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/tactic}
  if ! mkdir -p "$CACHE" 2>/dev/null || [ ! -w "$CACHE" ]; then
    say "cannot write the cache $CACHE: using build/cache (set TACTIC_CACHE to choose another folder)"
    CACHE=$BUILD/cache
    mkdir -p "$CACHE"
  fi
  CACHE=$(cd "$CACHE" && pwd)
  mkdir -p "$CACHE/downloads" "$CACHE/engine" "$CACHE/models" "$CACHE/texts"
}

# with_lock FILE COMMAND...: one process at a time; others wait and then find the work done.
with_lock() {
  local file=$1
  shift
  (
    flock -n 9 || { say "waiting for another run (lock $file)"; flock 9; }
    "$@"
  ) 9>"$file"
}

sha256_of() { sha256sum -- "$1" | cut -d' ' -f1; }
has_hash() { [ -f "$1" ] && [ "$(sha256_of "$1")" = "$2" ]; }

# pins SET: lines "kind name version sha256" of that set.
pins() {
  awk -F'|' -v set="$1" '!/^#/ { for (i = 1; i <= NF; i++) gsub(/^ +| +$/, "", $i); if ($1 == set) print $2, $3, $4, $5 }' "$PINS"
}
pinned_hash() { pins made | awk -v name="$1" '$2 == name { print $4 }'; }
