#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: quick default long asan
# limit: 600
# Image locks, with QEMU as the other program: two writers never, readers together, and the
# message names who holds the image.
. "$(dirname "$0")/lib.sh"
need qemu-nbd qemu-io qemu-img python3

truncate -s 1M "$W/raw"
qemu-img create -q -f qcow2 "$W/base.qcow2" 1M
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 "$W/top.qcow2"

# qemu-nbd listens before it opens.
answers()
{
	python3 "$here/nbd.py" size "nbd+unix:///?socket=$1" >/dev/null
}

# qemu_holds FORMAT FILE [-r]: qemu-nbd has FILE open until qemu_lets_go.
qemu_holds()
{
	qemu-nbd -t -k "$W/qemu.sock" -f "$1" "${@:3}" "$2" 2>"$W/qemu.log" &
	others=($!)
	wait_for 10 answers "$W/qemu.sock" || fail "qemu-nbd: $(cat "$W/qemu.log")"
}

qemu_lets_go()
{
	kill "${others[0]}"
	end_within "${others[0]}" 10
	wait "${others[0]}" || true
	others=()
	rm -f "$W/qemu.sock"
}

qemu_is_refused()
{
	! qemu-io -f "$1" -c "write 0 512" "$2" >"$W/log" 2>&1 ||
		fail "QEMU writes to what byre has open"
	grep -qi lock "$W/log" || { cat "$W/log" >&2; fail "QEMU failed, but not by a lock"; }
}

# QEMU has it for writing: byre does not get it, reading or writing, and says who has it.
qemu_holds raw "$W/raw"
byre_refuses "qemu-nbd.*${others[0]}|${others[0]}.*qemu-nbd" -f raw "$W/raw"
byre_refuses "qemu-nbd" -f raw --read-only "$W/raw"
qemu_lets_go
qemu_holds qcow2 "$W/top.qcow2"
byre_refuses "qemu-nbd" "$W/top.qcow2"
qemu_lets_go
qemu_holds qcow2 "$W/base.qcow2"                        # a backing file that is written to
byre_refuses "base.qcow2" "$W/top.qcow2"
qemu_lets_go

# QEMU reads it: byre may read, and not write.
qemu_holds raw "$W/raw" -r
start_byre reader -f raw --read-only "$W/raw"
stop_byre reader
byre_refuses "in use" -f raw "$W/raw"
qemu_lets_go

# byre has it for writing: QEMU gets nothing; another byre neither.
start_byre writer -f raw "$W/raw"
qemu_is_refused raw "$W/raw"
! qemu-img convert -f raw -O raw "$W/raw" "$W/copy" >"$W/log" 2>&1 ||
	fail "qemu-img copies an image that byre writes to"
grep -qi lock "$W/log" || { cat "$W/log" >&2; fail "qemu-img failed, but not by a lock"; }
qemu-img convert -U -f raw -O raw "$W/raw" "$W/copy"
byre_refuses "byre" -f raw "$W/raw"
stop_byre writer
qemu-io -f raw -c "write 0 512" "$W/raw" >"$W/log"      # and after it, all is free again

# byre reads it: QEMU may read, a second byre too, writing nobody.
start_byre first --read-only "$W/top.qcow2"
start_byre second --read-only "$W/top.qcow2"
qemu-img info "$W/top.qcow2" >"$W/log" || fail "QEMU cannot read what byre reads"
qemu_is_refused qcow2 "$W/top.qcow2"
qemu_is_refused qcow2 "$W/base.qcow2"
