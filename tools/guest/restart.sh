#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# tools/guest/restart.sh [-n TIMES] [-p DEVICE_PROPERTIES] [-f FORMAT] [-k SIGNAL[,SIGNAL]...]
# [-b] - a guest writes and verifies while byre, which serves its disk over vhost-user, is killed
# TIMES times (default: 3), by each SIGNAL in turn (default: KILL), and started again 3 s later. The
# guest has to go on without an error and without a lost write. With -b a part of its memory is then
# taken away and given back, while byre lives.
#
# The disk is raw, or qcow2 with its metadata preallocated; what was answered is in the page cache,
# which a kill does not touch. A second disk tells the guest when it has been disturbed enough.
# shellcheck source=tools/guest/lib.sh
. "$(dirname "$0")/lib.sh"

times=3 properties=num-queues=2 format=raw signals=KILL balloon=''
while getopts n:p:f:k:b option; do
	case $option in
	n) times=$OPTARG ;;
	p) properties=$OPTARG ;;
	f) format=$OPTARG ;;
	k) signals=$OPTARG ;;
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
	start_byre --loops 2 --stats -f "$format" --vhost-user "$W/sock" "$W/disk"
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

# kill_by SIGNAL: at any moment of the guest's work, but not before that goes on: QEMU 7.2, cut off
# in the middle of coming back, does not come back again.
kill_by()
{
	writes_again
	sleep 1.$((RANDOM % 10))
	kill "-$1" "$byre" || fail "byre has ended by itself"
	wait "$byre" || true
	sleep 3
	# The kernel takes a ring down behind the process.
	while grep -q ":$(stat -c %i "$W/disk") " /proc/locks; do
		sleep 0.1
	done
	serve_disk
}

mkdir "$W/job"
# fio marks each block it writes with a counter and verifies it some writes later, and all at the
# end.
cat >"$W/job/run.sh" <<'END'
failed=0
write()
{
	/job/fio/loader --library-path /job/fio /job/fio/fio --name="$1" --filename=/dev/vda \
		--ioengine=libaio --iodepth=16 --direct=1 --rw=randwrite --bsrange=4k-64k \
		--offset="$2" --size=24M --verify=crc32c --verify_fatal=1 --verify_backlog=64 \
		--time_based --runtime=6 >"/tmp/$1" 2>&1 || { cat "/tmp/$1"; return 1; }
}
is_enough()
{
	echo 1 >/proc/sys/vm/drop_caches
	[ "$(head -c 6 /dev/vdb)" = enough ]
}
until is_enough || [ $failed = 1 ]; do
	write a 0 &
	a=$!
	write b 32M || failed=1
	wait $a || failed=1
	grep -h 'write:' /tmp/a /tmp/b
done
! dmesg | grep -E 'I/O error|blocked for more' || failed=1
exit $failed
END
take_fio "$W/job"
case $format in
raw) truncate -s 64M "$W/disk" ;;
*) "$BYRE" create -q -f "$format" -o preallocation=metadata "$W/disk" 64M ;;
esac
truncate -s 1M "$W/told"
serve_disk
"$here/boot.sh" -t $((times * 30 + 300)) -m 512 -j "$W/job" -l "$W/console" \
	-M "$W/monitor" "vub:$W/sock,$properties" "$W/told" >"$W/output" 2>&1 &
boots=($!)
read -ra signals <<<"${signals//,/ }"
for ((i = 0; i < times; i++)); do
	kill_by "${signals[i % ${#signals[@]}]}"
done
writes_again
if [ -n "$balloon" ]; then
	blow 320 || fail "the memory is not given up"
	blow 512 || fail "the memory is not taken back"
	said=$(stat -c %s "$W/byre.log")
	writes_again
fi
echo enough | dd of="$W/told" conv=notrunc status=none
status=0
wait "${boots[0]}" || status=$?
boots=()
cat "$W/output"
[ $status = 0 ] || fail "the guest is not content (status $status)"
end_byre
[ "$format" = raw ] || qemu-img check -q -f "$format" "$W/disk" || fail "the image is damaged"
! grep -q "is stopped" "$W/byre.log" || fail "a queue was stopped"
echo "$times times killed (${signals[*]})${balloon:+, memory taken away}, $format, $properties:" \
	"the guest went on"
