#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# tools/guest/restart.sh [-n TIMES] [-p DEVICE_PROPERTIES] [-k SIGNAL] [-b] - a guest writes and
# verifies while byre, which serves its disk over vhost-user, is killed TIMES times (default: 3) and
# started again 3 s later. The guest has to go on without an error and without a lost write. With
# -b byre lives, and most of the guest's memory is taken away and given back instead.
#
# The disk is raw, and what was answered is in the page cache, which a kill does not touch.
set -eu -o pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)
BYRE=${BYRE:-$top/build/src/cmd/byre}

times=3 properties=num-queues=2 signal=KILL balloon=''
while getopts n:p:k:b option; do
	case $option in
	n) times=$OPTARG ;;
	p) properties=$OPTARG ;;
	k) signal=$OPTARG ;;
	b) balloon=1 ;;
	*) exit 2 ;;
	esac
done

W=$(mktemp -d "${TMPDIR:-/tmp}/byre-restart.XXXXXX")
byre='' boot=''
finish()
{
	[ -z "$boot" ] || kill "$boot" 2>/dev/null || true
	[ -z "$byre" ] || kill "$byre" 2>/dev/null || true
	wait
	rm -rf "$W"
}
trap finish EXIT
trap 'exit 143' INT TERM
# shellcheck source=tools/guest/fio.sh
. "$here/fio.sh"

fail()
{
	echo "restart.sh: $*" >&2
	cat "$W"/byre.log >&2
	exit 1
}

serve()
{
	"$BYRE" serve --loops 2 -f raw --vhost-user "$W/sock" "$W/disk" >>"$W/byre.log" 2>&1 \
		</dev/null &
	byre=$!
}

# blow MIB: the guest keeps that much.
blow()
{
	python3 - "$W/monitor" "balloon $1" <<-'END'
	import socket, sys, time
	s = socket.socket(socket.AF_UNIX)
	s.connect(sys.argv[1])
	s.sendall(sys.argv[2].encode() + b"\n")
	time.sleep(1)
	END
	sleep 2
}

disturb()
{
	if [ -n "$balloon" ]; then
		blow 120
		blow 512
		return
	fi
	sleep 1.$((RANDOM % 10))
	kill "-$signal" "$byre" || fail "byre has ended by itself"
	wait "$byre" || true
	sleep 3
	serve
}

mkdir "$W/job"
# fio marks each block it writes with a counter and verifies it some writes later, and all at the
# end. `stop` ends the writing: the host decides when.
cat >"$W/job/run.sh" <<END
failed=0
for job in a b; do
	at=\$([ \$job = a ] && echo 0 || echo 32M)
	/job/fio/loader --library-path /job/fio /job/fio/fio --name=\$job --filename=/dev/vda \
		--ioengine=libaio --iodepth=16 --direct=1 --rw=randwrite --bsrange=4k-64k \
		--offset=\$at --size=24M --verify=crc32c --verify_fatal=1 --verify_backlog=64 \
		--time_based --runtime=$((times * 6 + 6)) >/tmp/\$job 2>&1 &
	eval \$job=\$!
done
wait \$a || { cat /tmp/a; failed=1; }
wait \$b || { cat /tmp/b; failed=1; }
grep -h 'write:' /tmp/a /tmp/b
! dmesg | grep -E 'I/O error|blocked for more' || failed=1
exit \$failed
END
take_fio "$W/job"
truncate -s 64M "$W/disk"
serve
"$here/boot.sh" -t $((times * 20 + 120)) -m 512 -j "$W/job" -l "$W/console" \
	-M "$W/monitor" "vub:$W/sock,$properties" >"$W/output" 2>&1 &
boot=$!
# fio has begun when the disk is no longer empty.
for _ in $(seq 3000); do
	[ "$(stat -c %b "$W/disk")" = 0 ] || break
	kill -0 $boot 2>/dev/null || { cat "$W/output"; fail "the guest does not begin"; }
	sleep 0.1
done
[ "$(stat -c %b "$W/disk")" != 0 ] || fail "the guest does not begin to write"
for _ in $(seq "$times"); do
	disturb
done
status=0
wait $boot || status=$?
boot=
cat "$W/output"
[ $status = 0 ] || fail "the guest is not content (status $status)"
kill "$byre"
wait "$byre" || fail "byre does not end cleanly"
byre=
! grep -q "is stopped" "$W/byre.log" || fail "a queue was stopped"
[ -z "$balloon" ] || { echo "$times times taken away, and the guest went on"; exit; }
echo "$times times killed ($signal), and the guest went on"
