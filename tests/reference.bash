# SPDX-License-Identifier: MIT
# tests/reference.bash - sourced after lib.sh: byre, called as qemu-img, beside the QEMU that it is
# to be like: QEMU 10 where tools/qemu10 has unpacked it, else the one installed, where what it is
# known to do otherwise is let pass (tests/reference.py). QEMU10=env: as if it were not there.
#
# "$qemu10" PROGRAM ARGUMENTS...: runs a program of the reference.
# shellcheck shell=bash
# shellcheck disable=SC2154  # top, W, BYRE: lib.sh
. "$top/tools/cache.sh"
qemu10=${QEMU10:-$CACHE/qemu10/run}
if [ -x "$qemu10" ]; then
	# A run of the reference that does not end (seen once in very many, on a busy machine) says
	# nothing of byre: it is tried again, and what it said until then is not heard. Of byre's
	# own that is a failure.
	exec 9>&2
	cat >"$W/reference" <<-END
	#!/bin/sh
	case \$1 in
	qemu-img | qemu-io) ;;
	*) exec "$qemu10" "\$@" ;;
	esac
	said=$W/reference.said.\$\$ status=0
	timeout -k 5 50 "$qemu10" "\$@" >\$said.out 2>\$said.err || status=\$?
	[ \$status = 124 ] || cat \$said.out
	[ \$status = 124 ] || cat \$said.err >&2
	rm \$said.out \$said.err
	[ \$status = 124 ] || exit \$status
	echo "tried again, for it did not end: \$*" >&9
	exec "$qemu10" "\$@"
	END
	chmod +x "$W/reference"
	qemu10=$W/reference
else
	qemu10=env
fi
need qemu-img qemu-io python3
mkdir -p "$W/bin"
ln -sf "$BYRE" "$W/bin/qemu-img"

# What differs between the two for no reason of theirs: their own paths, the words of the log for
# damage that was met, and times; plain() of tests/reference.py has the same.
plain()
{
	sed -E "s#^[^ ]*/qemu-img( [a-z]+)?: #qemu-img\1: #
		s#'[^ ']*/qemu-img( [a-z]+)? --help'#'qemu-img\1 --help'#
		s/ in [0-9.]+ seconds/ in N seconds/
		/^qcow2: Image is corrupt: /d; /^byre: error: .* is damaged: /d" "$@"
}

# outcome OUT PROGRAM...: its outputs and status, in OUT.
outcome()
{
	local out=$1 status=0
	shift
	{
		timeout -k 10 120 "$@" 2>"$out.stderr" </dev/null || status=$?
		echo "--- errors"
	} >"$out.stdout"
	case $status in
	124 | 137) fail "did not end: $*" ;;
	esac
	{
		plain "$out.stdout" "$out.stderr"
		echo "--- status $status"
	} >"$out"
}

# is_known_of_older ARGUMENTS...: the outcomes WANT and GOT differ as the installed QEMU and 10 do.
is_known_of_older()
{
	[ "$qemu10" = env ] && "$here/reference.py" older "$W/want" "$W/got" "$*"
}

# same ARGUMENTS...: both give the same, on both outputs, and end the same.
compared=0
same()
{
	compared=$((compared + 1))
	outcome "$W/want" "$qemu10" qemu-img "$@"
	outcome "$W/got" "$W/bin/qemu-img" "$@"
	diff "$W/want" "$W/got" >"$W/diff" || is_known_of_older "$@" ||
		{ cat "$W/diff" >&2; fail "$* (< QEMU, > byre)"; }
}

# q COMMAND...: the reference's qemu-img, quietly. io IMAGE COMMAND...: its qemu-io.
q()
{
	"$qemu10" qemu-img "$1" -q "${@:2}"
}

io()
{
	local image=$1 command args=()
	shift
	for command; do
		args+=(-c "$command")
	done
	"$qemu10" qemu-io "${args[@]}" "$image" >/dev/null
}

# spoil IMAGE CLUSTER WHAT: of a cluster that the first L2 table maps, "entry": leads nowhere a
# cluster can be; or "data": what its compressed data begins with is none.
spoil()
{
	python3 - "$@" <<-'END'
	import sys
	def number(f, at):
	    f.seek(at)
	    return int.from_bytes(f.read(8), "big")
	with open(sys.argv[1], "r+b") as f:
	    table = number(f, number(f, 40)) & 0xfffffffffffe00
	    at = table + 8 * int(sys.argv[2])
	    if sys.argv[3] == "entry":
	        f.seek(at)
	        f.write((0x8000000000050200).to_bytes(8, "big"))
	    else:
	        f.seek(number(f, at) & 0x3fffffffffffff)
	        f.write(b"\xff" * 20)
	END
}
