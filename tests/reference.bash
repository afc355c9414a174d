# SPDX-License-Identifier: MIT
# tests/reference.bash - sourced after lib.sh: byre, called as qemu-img, beside the QEMU that it is
# to be like. Without that QEMU the test is skipped.
# shellcheck shell=bash
# shellcheck disable=SC2154  # top, W, BYRE: lib.sh
[ ! -e "$top/tools/cache.sh" ] || . "$top/tools/cache.sh"
qemu10=${CACHE:-$top/.cache}/qemu10/run
[ -x "$qemu10" ] || skip "the reference, QEMU 10, is not there"
mkdir -p "$W/bin"
ln -sf "$BYRE" "$W/bin/qemu-img"

# What differs between the two for no reason of theirs: their own paths, and the words of the log
# for damage that was met.
plain()
{
	sed -E "s#^[^ ]*/qemu-img( [a-z]+)?: #qemu-img\1: #
		s#'[^ ']*/qemu-img( [a-z]+)? --help'#'qemu-img\1 --help'#
		/^qcow2: Image is corrupt: /d; /^byre: error: .* is damaged: /d"
}

# outcome OUT PROGRAM...: its outputs and status, in OUT.
outcome()
{
	local out=$1 status=0
	shift
	"$@" >"$out.stdout" 2>"$out.stderr" </dev/null || status=$?
	{
		cat "$out.stdout"
		echo "--- errors"
		plain <"$out.stderr"
		echo "--- status $status"
	} >"$out"
}

# same ARGUMENTS...: both give the same, on both outputs, and end the same.
compared=0
same()
{
	compared=$((compared + 1))
	outcome "$W/want" "$qemu10" qemu-img "$@"
	outcome "$W/got" "$W/bin/qemu-img" "$@"
	diff "$W/want" "$W/got" >"$W/diff" ||
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
