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
