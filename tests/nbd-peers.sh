#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: quick default long asan tsan
# limit: 600
# Other people's NBD clients: nbdinfo, nbdcopy both ways and over several connections, qemu-io,
# qemu-img and fio with verification, on one loop and on two.
. "$(dirname "$0")/lib.sh"
need nbdinfo nbdcopy qemu-io qemu-img fio python3

random_file "$W/source" $((24 << 20)) 1

info()
{
	nbdinfo --json "$1" >"$W/info.json"
	python3 - "$W/info.json" "$2" "$3" <<-'END'
	import json, sys
	e = json.load(open(sys.argv[1]))["exports"][0]
	want = {"is_read_only": sys.argv[3] == "ro", "can_multi_conn": True,
	        "can_df": True, "export-size": int(sys.argv[2])}
	if sys.argv[3] == "rw":
	    want |= {"can_flush": True, "can_fua": True, "can_trim": True, "can_zero": True}
	wrong = {k: e.get(k) for k, v in want.items() if e.get(k) != v}
	assert not wrong, f"nbdinfo says {wrong}"
	assert "base:allocation" in e["contexts"], "no base:allocation"
	END
}

copies()
{
	nbdcopy --connections=4 "$W/source" "$1"
	nbdcopy --connections=4 --requests=64 "$1" "$W/copy"
	cmp "$W/source" "$W/copy" || fail "nbdcopy does not bring back what it wrote"
	nbdcopy --synchronous --connections=1 "$1" - | cmp - "$W/source" ||
		fail "nbdcopy --synchronous reads something else"
}

qemu_io()
{
	qemu-io -f raw "$1" -c "write -P 0x11 1M 64k" -c "write -z 1040k 16k" \
		-c "write -z -u 2M 1M" -c "discard 4M 1M" -c "write -f -P 0x22 5M 512" -c "flush" \
		-c "read -P 0x11 1M 16k" -c "read -P 0 1040k 16k" -c "read -P 0 2M 1M" \
		-c "read -P 0x22 5M 512" >"$W/qemu-io.log" 2>&1 ||
		{ cat "$W/qemu-io.log" >&2; fail "qemu-io"; }
	! grep -qiE "fail|error|mismatch" "$W/qemu-io.log" ||
		{ cat "$W/qemu-io.log" >&2; fail "qemu-io reads something else than it wrote"; }
}

verified_by_fio()
{
	fio --name=verify --ioengine=nbd --uri="$1" --rw=randrw --bsrange=512-64k --iodepth=16 \
		--size=16M --verify=crc32c --verify_fatal=1 --verify_backlog=256 --randseed=7 \
		--verify_state_save=0 --minimal >"$W/fio.log" 2>&1 ||
		{ cat "$W/fio.log" >&2; fail "fio's verification"; }
}

for loops in 1 2; do
	rm -f "$W/disk"
	truncate -s 24M "$W/disk"
	start_byre "loops$loops" --loops $loops -f raw "$W/disk"
	uri=$(uri "loops$loops")
	info "$uri" $((24 << 20)) rw
	copies "$uri"
	qemu_io "$uri"
	verified_by_fio "$uri"
	same_content "$W/disk" raw "$uri"
	stop_byre "loops$loops"
done

# A qcow2 image, read-only: the same to each.
qemu-img convert -f raw -O qcow2 "$W/source" "$W/disk.qcow2"
start_byre qcow2 --loops 2 --read-only "$W/disk.qcow2"
info "$(uri qcow2)" $((24 << 20)) ro
nbdcopy --connections=4 "$(uri qcow2)" - | cmp - "$W/source" || fail "nbdcopy of a qcow2"
! qemu-io -f raw -c "write 0 512" "$(uri qcow2)" >"$W/log" 2>&1 ||
	fail "a read-only disk was written to"
[[ $(nbdinfo --list "$(uri qcow2)") == *disk.qcow2* ]] ||
	fail "the list of exports lacks the file's name"
nbdcopy "$(uri qcow2 disk.qcow2)" - | cmp - "$W/source" || fail "the export by its file's name"
! nbdinfo "$(uri qcow2 no-such)" 2>"$W/log" || fail "an export that is not there"

# TCP, and several disks of one server.
cp "$W/source" "$W/a"
: >"$W/empty"
# An address of this process: no other test listens there.
at=127.$((1 + $$ / 62500)).$((1 + $$ / 250 % 250)).$((1 + $$ % 250)):10809
start_byre tcp --nbd "tcp:$at" --name a -f raw "$W/a" \
	--name e -f raw --read-only "$W/empty" --name q --read-only "$W/disk.qcow2"
nbdcopy "nbd://$at/a" - | cmp - "$W/source" || fail "over TCP"
[ "$(nbdinfo --size "nbd://$at/e")" = 0 ] || fail "an empty disk"
[ "$(nbdinfo --list --json "$(uri tcp)" | grep -c '"export-name"')" -ge 3 ] || fail "three exports"
