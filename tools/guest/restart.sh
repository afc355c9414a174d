#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# tools/guest/restart.sh [-n TIMES] [-p DEVICE_PROPERTIES] [-f FORMAT] [-k SIGNAL] [-b] - a guest
# writes and verifies while byre, which serves its disk over vhost-user, is killed TIMES times
# (default: 3) and started again 3 s later. The guest has to go on without an error and without a
# lost write. With -b byre lives, and a part of the guest's memory is taken away and given back
# instead.
#
# The disk is raw, or qcow2 with its metadata preallocated; what was answered is in the page cache,
# which a kill does not touch.
# shellcheck source=tools/guest/lib.sh
. "$(dirname "$0")/lib.sh"

times=3 properties=num-queues=2 format=raw signal=KILL balloon=''
while getopts n:p:f:k:b option; do
	case $option in
	n) times=$OPTARG ;;
	p) properties=$OPTARG ;;
	f) format=$OPTARG ;;
	k) signal=$OPTARG ;;
	b) balloon=1 ;;
	*) usage ;;
	esac
done

tell_more()
{
	cat "$W/byre.log" "$W/output"
}

serve_disk()
{
	start_byre --loops 2 -f "$format" --vhost-user "$W/sock" "$W/disk"
}

# blow MIB: the guest keeps that much; waits until it has.
blow()
{
	python3 - "$W/monitor" "$1" <<-'END'
	import socket, sys, time
	s = socket.socket(socket.AF_UNIX)
	s.connect(sys.argv[1])
	s.sendall(b"balloon " + sys.argv[2].encode() + b"\n")
	for _ in range(120):
	    s.sendall(b"info balloon\n")
	    time.sleep(0.5)
	    if b"actual=" + sys.argv[2].encode() + b"\r" in s.recv(65536):
	        sys.exit(0)
	sys.exit("the balloon does not move")
	END
}

disturb()
{
	if [ -n "$balloon" ]; then
		blow 320 || fail "the memory is not given up"
		blow 512 || fail "the memory is not taken back"
		return
	fi
	sleep 1.$((RANDOM % 10))
	kill "-$signal" "$byre" || fail "byre has ended by itself"
	wait "$byre" || true
	sleep 3
	serve_disk
}

seconds=$((times * 6 + 6))
[ -z "$balloon" ] || seconds=$((times * 25 + 10))
mkdir "$W/job"
# fio marks each block it writes with a counter and verifies it some writes later, and all at the
# end.
cat >"$W/job/run.sh" <<END
failed=0
for job in a b; do
	at=\$([ \$job = a ] && echo 0 || echo 32M)
	/job/fio/loader --library-path /job/fio /job/fio/fio --name=\$job --filename=/dev/vda \
		--ioengine=libaio --iodepth=16 --direct=1 --rw=randwrite --bsrange=4k-64k \
		--offset=\$at --size=24M --verify=crc32c --verify_fatal=1 --verify_backlog=64 \
		--time_based --runtime=$seconds >/tmp/\$job 2>&1 &
	eval \$job=\$!
done
wait \$a || { cat /tmp/a; failed=1; }
wait \$b || { cat /tmp/b; failed=1; }
grep -h 'write:' /tmp/a /tmp/b
! dmesg | grep -E 'I/O error|blocked for more' || failed=1
exit \$failed
END
take_fio "$W/job"
case $format in
raw) truncate -s 64M "$W/disk" ;;
*) "$BYRE" create -q -f "$format" -o preallocation=metadata "$W/disk" 64M ;;
esac
serve_disk
empty=$(stat -c %b "$W/disk")
"$here/boot.sh" -t $((seconds * 3 + 120)) -m 512 -j "$W/job" -l "$W/console" \
	-M "$W/monitor" "vub:$W/sock,$properties" >"$W/output" 2>&1 &
boots=($!)
# fio has begun when the disk is no longer empty.
for _ in $(seq 3000); do
	[ "$(stat -c %b "$W/disk")" = "$empty" ] || break
	kill -0 "${boots[0]}" 2>/dev/null || { cat "$W/output"; fail "the guest does not begin"; }
	sleep 0.1
done
[ "$(stat -c %b "$W/disk")" != "$empty" ] || fail "the guest does not begin to write"
for _ in $(seq "$times"); do
	disturb
done
status=0
wait "${boots[0]}" || status=$?
boots=()
cat "$W/output"
[ $status = 0 ] || fail "the guest is not content (status $status)"
end_byre
[ "$format" = raw ] || qemu-img check -q -f "$format" "$W/disk" || fail "the image is damaged"
! grep -q "is stopped" "$W/byre.log" || fail "a queue was stopped"
[ -z "$balloon" ] || { echo "$times times taken away, and the guest went on"; exit; }
echo "$times times killed ($signal), $format, $properties, and the guest went on"
