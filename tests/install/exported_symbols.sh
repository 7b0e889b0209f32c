#!/bin/sh
# libtactic.so shows the C API and nothing else: every defined dynamic symbol starts with tactic_.
library=$1
shown=$(nm -D --defined-only "$library" | awk '$2 != "A" { print $3 }' | sed 's/@.*//') || exit 1
foreign=$(printf '%s\n' "$shown" | grep -v '^tactic_')
[ -z "$foreign" ] || { echo "symbols that are not of the C API:"; printf '%s\n' "$foreign"; exit 1; }
printf '%s\n' "$shown" | grep -q '^tactic_' || { echo "$library shows no tactic_ symbol at all"; exit 1; }
