#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long asan-long tsan-long
# limit: 600
# byre as the guest of somebody else: a disk that qemu-storage-daemon serves over vhost-user-blk
# reads and writes as the file does, is described by the image tools, and is back after the daemon
# was started again. byre's own daemon gives the same.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-storage-daemon

qemus=("")
# shellcheck source=tools/cache.sh
. "$top/tools/cache.sh"
QEMU10=${QEMU10:-$CACHE/qemu10/run}
[ ! -x "$QEMU10" ] || qemus+=("$QEMU10")
sock=$W/disk.vu

# qsd [RUN]: serves $W/disk.qcow2 on $sock with two queues.
qsd()
{
	local node='{"driver":"qcow2","node-name":"d","discard":"unmap","file":{"driver":"file",'
	node+='"filename":"'$W'/disk.qcow2"}}'
	rm -f "$sock"
	local how=type=vhost-user-blk,id=e,node-name=d,writable=on,num-queues=2
	how+=,addr.type=unix,addr.path=$sock
	${1:+"$1"} qemu-storage-daemon --blockdev "$node" --export "$how" >"$W/qsd.log" 2>&1 \
		</dev/null &
	daemon=$!
	others=("$daemon")
	wait_for 20 is_listening "$sock" || { cat "$W/qsd.log" >&2; fail "no daemon"; }
}

end_qsd()
{
	kill "$daemon"
	wait "$daemon" 2>/dev/null || true
	others=()
}

same_as()
{
	"$BYRE" compare -f raw -F raw "$1" "vhost-user:$sock$2" >"$W/log" 2>&1 ||
		fail "the content is another: $(cat "$W/log")"
}

writes_and_reads()
{
	local options=$1
	qemu-img convert -f raw -O qcow2 "$W/source" "$W/disk.qcow2"
	$2 ${3:+"$3"}
	same_as "$W/source" "$options"
	[[ $("$BYRE" info "vhost-user:$sock$options") == *"virtual size: 8 MiB"* ]] || fail "info"
	"$BYRE" bench -c 300 -d 16 -s 16k --random 3 -w --pattern 0xa5 --flush-interval 100 \
		--latency "vhost-user:$sock$options" >"$W/log" || fail "writes"
	grep -q "^Latency: p50 [0-9.]* us, p99 [0-9.]* us" "$W/log" || fail "no latency"
	"$BYRE" bench -c 1 -s 64k -o 128k -w --pattern 7 "vhost-user:$sock$options" >"$W/log" ||
		fail "a write"
	$4
	qemu-img convert -f qcow2 -O raw "$W/disk.qcow2" "$W/written"
	cmp -s -n 65536 -i 131072:0 "$W/written" <(head -c 65536 /dev/zero | tr '\0' '\7') ||
		fail "what was written is not there"
	$2 ${3:+"$3"}
	same_as "$W/written" "$options"
	$4
}

byre_disk()
{
	start_byre disk --vhost-user "$sock" --queues 2 -f qcow2 "$W/disk.qcow2" -f raw "$W/nbd"
}

end_byre_disk()
{
	stop_byre disk
}

random_file "$W/source" $((8 << 20))
truncate -s 1M "$W/nbd"
for qemu in "${qemus[@]}"; do
	for options in "" ,event-idx=off ,indirect=off ,queue-size=16; do
		writes_and_reads "$options" qsd "$qemu" end_qsd
	done
done
for options in "" ,packed=on ,packed=on,indirect=off,event-idx=off; do
	writes_and_reads "$options" byre_disk "" end_byre_disk
done

# A daemon that is started again while somebody reads: it tracks nothing, and closes the socket
# before it is done, but reads may be repeated.
qsd
"$BYRE" bench -c 60000 -d 8 --random 1 "vhost-user:$sock,reconnect=60" >"$W/log" 2>&1 &
reading=$!
for _ in 1 2 3; do
	sleep 0.3
	end_qsd
	qsd
done
wait $reading || { cat "$W/log" >&2; fail "a reader did not outlive the daemon"; }
end_qsd
