#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long
# limit: 1800
# takes: 60
# Of every kind of damage in tests/damage, and of images with random damage, byre's image tools say
# what qemu-img says: info, map, check, measure, compare; text, JSON, messages and exit codes.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-io python3

python3 "$here/damage" make "$W/kinds"
python3 "$here/damage" random "$W/random" "${SEED:-1}" 60
for folder in "$W/kinds" "$W/random"; do
	"$here/reference.py" images --byre "$BYRE" "$folder"
done
