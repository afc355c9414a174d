#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# tools/guest/migrate.sh [-n TIMES] [-p DEVICE_PROPERTIES] [-f FORMAT] - a guest that writes and
# verifies is migrated live, TIMES times (default: 1), from one QEMU to the next, each with a
# connection of its own to the byre that serves its disk over vhost-user. The guest has to go on
# without an error and find what it wrote, and the image has to hold it.
#
# What byre reads into the guest's memory meanwhile, QEMU learns from the dirty log alone: one fio
# does nothing but read, into buffers that the guest itself never writes, so it finds old data there
# if a page is missing in the log. The disk is qcow2, and grows. QEMU is as for boot.sh.
#
# 77: that QEMU is of no use for this. Where it emulates the processor (TCG), it loses writes of the
# guest's to its memory during a migration before version 9.0, of guests without any disk as well.
# shellcheck source=tools/guest/lib.sh
. "$(dirname "$0")/lib.sh"

times=1 properties=num-queues=2 format=qcow2
while getopts n:p:f: option; do
	case $option in
	n) times=$OPTARG ;;
	p) properties=$OPTARG ;;
	f) format=$OPTARG ;;
	*) usage ;;
	esac
done

tell_more()
{
	tail -n 30 "$W"/boot* "$W"/output* "$W"/console*
	grep -v "pages logged\|in flight" "$W/byre.log"
}

# Known once a guest has been started: boot.sh has found out what this machine can do.
is_losing_writes()
{
	local version program
	read -ra program <<<"${QEMU:-qemu-system-x86_64}"
	version=$("${program[@]}" --version | sed -n 's/.*version \([0-9]*\).*/\1/p')
	[ "${version:-0}" -lt 9 ] && grep -q '^tcg' "$("$here/prepare.sh" | tail -n 1)/accelerator"
}

# start NUMBER OPTIONS...: a QEMU; only the first one's guest begins at the beginning.
start()
{
	local i=$1
	shift
	"$here/boot.sh" -t $((seconds * 4 + 200)) -m 384 -j "$W/job" -l "$W/console$i" \
		-o "$W/output$i" -M "$W/monitor$i" "$@" "vub:$W/sock,$properties" \
		>"$W/boot$i" 2>&1 &
	boots[i]=$!
	for _ in $(seq 300); do
		! is_listening "$W/monitor$i" || return 0
		kill -0 "${boots[i]}" 2>/dev/null || break
		sleep 0.1
	done
	fail "QEMU $i does not start"
}

# migrate FROM TO: until it is over; then FROM ends.
migrate()
{
	python3 - "$W/monitor$1" "$W/move$2" <<-'END' || fail "no migration from $1 to $2"
	import socket, sys, time
	s = socket.socket(socket.AF_UNIX)
	s.connect(sys.argv[1])
	def ask(line):
	    s.sendall(line.encode() + b"\n")
	    time.sleep(0.5)
	    return s.recv(1 << 20).decode(errors="replace")
	def value(answer, name):
	    lines = [l for l in answer.splitlines() if l.lower().startswith(name + ":")]
	    return lines[-1].split(":")[1].strip() if lines else "?"
	# Slow at first: the guest reads and writes during several passes over its memory.
	ask("migrate_set_parameter max-bandwidth 24M")
	ask("migrate -d unix:" + sys.argv[2])
	begin = time.time()
	for _ in range(400):
	    answer = ask("info migrate")
	    status = value(answer, "migration status")
	    if status in ("completed", "failed", "cancelled"):
	        break
	    if time.time() - begin > 12:
	        ask("migrate_set_parameter max-bandwidth 1G")
	print("%s after %d s, %s passes, %s down" % (status, time.time() - begin,
	      value(answer, "dirty sync count"), value(answer, "downtime")))
	if status == "completed":
	    s.sendall(b"quit\n")
	    while s.recv(1 << 16):
	        pass
	sys.exit(status != "completed" and answer)
	END
	wait "${boots[$1]}" || true
	unset "boots[$1]"
}

seconds=$((times * 30 + 30))
mkdir "$W/job"
cat >"$W/job/run.sh" <<END
failed=0
fio()
{
	/job/fio/loader --library-path /job/fio /job/fio/fio --filename=/dev/vda --ioengine=libaio \
		--iodepth=16 --direct=1 --verify=crc32c --verify_fatal=1 "\$@"
}
fixed="--name=fixed --offset=56M --size=8M --bs=64k"
fio \$fixed --rw=write --do_verify=0 >/tmp/c || { cat /tmp/c; failed=1; }
fio --name=random --rw=randwrite --bsrange=4k-64k --offset=0 --size=24M --verify_backlog=64 \
	--time_based --runtime=$seconds >/tmp/a 2>&1 &
a=\$!
fio --name=small --rw=randrw --bsrange=512-16k --offset=32M --size=24M --verify_backlog=32 \
	--time_based --runtime=$seconds >/tmp/b 2>&1 &
b=\$!
fio \$fixed --rw=write --verify_only --loops=$((seconds * 2)) >/tmp/c 2>&1 &
c=\$!
wait \$a || { cat /tmp/a; failed=1; }
wait \$b || { cat /tmp/b; failed=1; }
wait \$c || { cat /tmp/c; failed=1; }
grep -hE '(write|read) *:' /tmp/a /tmp/b /tmp/c
! dmesg | grep -E 'I/O error|blocked for more' || failed=1
echo "sum \$(sha256sum </dev/vda | cut -c 1-64)"
exit \$failed
END
take_fio "$W/job"
"$BYRE" create -q -f "$format" "$W/disk" 64M
start_byre --loops 2 --stats -f "$format" --vhost-user "$W/sock" "$W/disk"
start 0
if is_losing_writes; then
	echo "this QEMU loses what guests write when it migrates them without KVM"
	exit 77
fi
writes_again
for i in $(seq "$times"); do
	sleep 5
	start "$i" -i "unix:$W/move$i"
	migrate $((i - 1)) "$i"
done
status=0
wait "${boots[times]}" || status=$?
boots=()
cat "$W/output$times"
[ $status = 0 ] || fail "the guest is not content (status $status)"
end_byre
! grep -q "is stopped" "$W/byre.log" || fail "a queue was stopped"
[ "$(grep -c "a migration" "$W/byre.log")" = "$times" ] || fail "the dirty log was not used"
logged=$(sed -n 's/.* \([0-9]*\) pages logged$/\1/p' "$W/byre.log" | tail -n 1)
[ "${logged:-0}" -gt 0 ] || fail "no page was logged"
[ "$format" = raw ] || qemu-img check -q -f "$format" "$W/disk" || fail "the image is damaged"
qemu-img convert -f "$format" -O raw "$W/disk" "$W/raw"
sum=$(sha256sum <"$W/raw")
grep -qx "sum ${sum%% *}" <(tr -d '\r' <"$W/output$times") || fail "the image holds something else"
echo "$times times migrated ($format, $properties), $logged pages logged, and the guest went on"
