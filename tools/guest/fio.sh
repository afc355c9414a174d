# SPDX-License-Identifier: MIT
# tools/guest/fio.sh - sourced by scripts whose guests run the host's fio.
# shellcheck shell=bash

# take_fio DIR: fio, what it is linked with, and what loads that, in DIR/fio.
take_fio()
{
	local fio loader
	fio=$(command -v fio) || { echo "fio is not installed" >&2; return 1; }
	mkdir -p "$1/fio"
	cp "$fio" "$1/fio/fio"
	ldd "$fio" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | while read -r library; do
		cp -L "$library" "$1/fio/"
	done
	loader=$(ldd "$fio" | awk '$1 ~ /^\/.*ld-/ { print $1 }')
	cp -L "$loader" "$1/fio/loader"
}
