# SPDX-License-Identifier: MIT
# tests/qcow2-lib.sh - sourced by scripts that write qcow2 images, behind lib.sh, in a folder of
# their own: the same commands for byre, for QEMU, and for a raw file, the model.
# shellcheck shell=bash

# io_all TARGET FORMAT FILE: the commands of FILE; all of them succeed.
io_all()
{
	qemu-io -f "$2" -d unmap "$1" <"$3" >io.log 2>&1 || { tail io.log >&2; fail "qemu-io $1"; }
	! grep -E 'failed|error|cannot|invalid' io.log >&2 || fail "qemu-io $1: see above"
}

# whole IMAGE WHAT: neither an error nor a leak, and no mark.
whole()
{
	qemu-img check "$1" >check.log 2>&1 || { cat check.log >&2; fail "$2: check"; }
}

# same_as_model IMAGE WHAT
same_as_model()
{
	qemu-img compare -q -f qcow2 -F raw "$1" model.raw >compare.log 2>&1 ||
		{ cat compare.log >&2; fail "$2: the content is not what was written"; }
}

# good IMAGE WHAT: both.
good()
{
	whole "$@"
	same_as_model "$@"
}

# take_turns JUDGE WHAT SEED CLUSTER N SERVE_OPTIONS...: byre, QEMU, and byre again do N random
# things to disk.qcow2 of $size bytes, whose content is model.raw's; JUDGE IMAGE WHAT after each.
take_turns()
{
	local judge=$1 what=$2 seed=$3 cluster=$4 n=$5 turn
	shift 5
	for turn in 1 2 3; do
		python3 "$here/qcow2-write.py" $((seed * 10 + turn)) "$size" "$cluster" "$n" \
			>commands
		if [ $turn = 2 ]; then
			io_all disk.qcow2 qcow2 commands
			io_all model.raw raw commands
		else
			write_byre disk.qcow2 commands "$@"
		fi
		"$judge" disk.qcow2 "$what, turn $turn"
	done
}

# write_byre IMAGE COMMANDS SERVE_OPTIONS...: through byre, and to the model.
write_byre()
{
	local image=$1 commands=$2
	shift 2
	start_byre writer "$@" "$image"
	io_all "$(uri writer)" raw "$commands"
	stop_byre writer
	io_all model.raw raw "$commands"
}
