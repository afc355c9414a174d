# SPDX-License-Identifier: MIT
# tools/guest/lib.sh - sourced by what boots guests on disks that byre serves.
#
# Gives $here (this folder), $BYRE, and $W, a directory that goes away at the end; byre, where it
# runs, is ended with it, and so are the guests in $boots, an array of processes.
# shellcheck shell=bash
set -eu -o pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)
BYRE=${BYRE:-$top/build/src/cmd/byre}
PATH=$PATH:/usr/sbin:/sbin
program=$(basename "$0")
verbose=
W=$(mktemp -d "${TMPDIR:-/tmp}/byre-guest.XXXXXX")
byre=
declare -a boots=()

finish()
{
	[ ${#boots[@]} = 0 ] || kill "${boots[@]}" 2>/dev/null || true
	[ -z "$byre" ] || kill "$byre" 2>/dev/null || true
	wait
	rm -rf "$W"
}
trap finish EXIT
trap 'exit 143' INT TERM

# fail TEXT: a script that knows more defines tell_more.
fail()
{
	echo "$program: $*" >&2
	[ "$(type -t tell_more)" != function ] || tell_more >&2 || true
	exit 1
}

# The comment at the head of the script.
usage()
{
	awk 'NR > 2 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0" >&2
	exit 2
}

is_listening()
{
	grep -q " 00010000 .* $1\$" /proc/net/unix
}

# start_byre ARGUMENTS...: byre serve; returns when it listens on $W/sock.
start_byre()
{
	touch "$W/byre.log"
	said=$(stat -c %s "$W/byre.log")
	"$BYRE" serve "$@" >>"$W/byre.log" 2>&1 </dev/null &
	byre=$!
	for _ in $(seq 2000); do
		! is_listening "$W/sock" || return 0
		kill -0 $byre 2>/dev/null || break
		sleep 0.05
	done
	cat "$W/byre.log" >&2
	fail "byre does not serve"
}

# serve ARGUMENTS...: byre serves NBD on $W/sock.
serve()
{
	start_byre --nbd "unix:$W/sock" "$@"
}

# take_fio DIR: fio, what it is linked with, and what loads that, in DIR/fio.
take_fio()
{
	local fio loader
	fio=$(command -v fio) || fail "fio is not installed"
	mkdir -p "$1/fio"
	cp "$fio" "$1/fio/fio"
	ldd "$fio" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | while read -r library; do
		cp -L "$library" "$1/fio/"
	done
	loader=$(ldd "$fio" | awk '$1 ~ /^\/.*ld-/ { print $1 }')
	cp -L "$loader" "$1/fio/loader"
}

# writes_again: until byre, which shows --stats, says that the guest of boots[0] writes. What its
# log held up to $said, an offset, is old.
writes_again()
{
	for _ in $(seq 1500); do
		[ -z "$(tail -c "+$((said + 1))" "$W/byre.log" | grep 'write  *[1-9][0-9]*/s')" ] ||
			return 0
		kill -0 "${boots[0]}" 2>/dev/null || break
		sleep 0.2
	done
	fail "the guest does not write"
}

# uri NAME: where QEMU finds the disk.
uri()
{
	echo "nbd+unix:///$1?socket=$W/sock"
}

end_byre()
{
	local status=0
	kill "$byre"
	wait "$byre" || status=$?
	byre=
	[ -z "$verbose" ] || cat "$W/byre.log"
	if [ "$status" != 0 ] || grep -qE 'runtime error:|Sanitizer' "$W/byre.log"; then
		cat "$W/byre.log" >&2
		fail "byre ended with status $status"
	fi
}
