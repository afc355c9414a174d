# SPDX-License-Identifier: MIT
# bench/lib.sh - sourced by the benchmarks: servers to compare, what they cost, medians, tables.
#
# Each benchmark asks one question. Peers take turns within each run, so that a slow minute of the
# machine falls on all of them; the medians of all runs count. Options of all:
#	-n RUNS     (default 5)      -s SECONDS a run (default 5)
#	--json      a JSON line a peer instead of the table
# Peers: byre; qemu-nbd and qemu-storage-daemon as they come (aio=threads, cache=writeback) and with
# io_uring; the newer QEMU's, with io_uring, where tools/qemu10 has unpacked one.
# shellcheck shell=bash
set -eu -o pipefail
bench=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(dirname "$bench")
# shellcheck source=tools/cache.sh
. "$top/tools/cache.sh"
BYRE=${BYRE:-$top/build/src/cmd/byre}
export PYTHONPATH=$top/tests

# shellcheck disable=SC2034  # the benchmarks use it
runs=5
seconds=5 json=''
# shellcheck disable=SC2034  # as above
while [ $# -gt 0 ]; do
	case $1 in
	-n) runs=$2; shift 2 ;;
	-s) seconds=$2; shift 2 ;;
	--json) json=1; shift ;;
	*) sed -n 's/^# \{0,1\}//p' "$0" | sed 1,2d >&2; exit 2 ;;
	esac
done
for tool in qemu-img qemu-nbd qemu-storage-daemon fio python3 "$BYRE"; do
	command -v "$tool" >/dev/null && continue
	echo "$0: $tool is missing (tools/deps bench; ./run)" >&2
	exit 1
done

W=$(mktemp -d "${TMPDIR:-/tmp}/byre-bench.XXXXXX")
server=
sock=$W/sock
finish()
{
	[ -z "$server" ] || kill "$server" 2>/dev/null || true
	wait 2>/dev/null || true
	rm -rf "$W"
}
trap finish EXIT
trap 'exit 143' INT TERM

peers=(byre qemu-nbd qemu-nbd-uring qemu-storage-daemon qemu-storage-daemon-uring)
qemu10=$CACHE/qemu10/run
if [ -x "$qemu10" ]; then
	peers+=(qemu10-nbd-uring qemu10-storage-daemon-uring)
fi

# Set by those that write: IMAGE is served writable.
writable=''

# qsd_node IMAGE AIO: the block device for qemu-storage-daemon.
qsd_node()
{
	local read_only=true
	[ -z "$writable" ] || read_only=false
	printf '{"driver":"qcow2","node-name":"d","read-only":%s,"file":{"driver":"file",' \
		$read_only
	printf '"filename":"%s","read-only":%s,"aio":"%s"}}' "$1" $read_only "$2"
}

# command_of PEER IMAGE: prints the command that serves IMAGE on $sock, a word a line.
command_of()
{
	local newer=() aio=threads reading=(--read-only) export=type=nbd,id=e,node-name=d,name=
	[ -z "$writable" ] || { reading=(); export+=,writable=on; }
	[ "${1#qemu10}" = "$1" ] || newer=("$qemu10")
	[ "${1%-uring}" = "$1" ] || aio=io_uring
	case $1 in
	byre) set -- "$BYRE" serve --nbd "unix:$sock" "${reading[@]}" "$2" ;;
	*-nbd*) set -- qemu-nbd -t "${reading[@]}" -e 8 -k "$sock" --aio=$aio -f qcow2 "$2" ;;
	*) set -- qemu-storage-daemon \
		--nbd-server "addr.type=unix,addr.path=$sock,max-connections=0" \
		--blockdev "$(qsd_node "$2" $aio)" --export "$export" ;;
	esac
	printf '%s\n' "${newer[@]}" "$@"
}

# launch PEER COMMAND...: runs it until it listens on $sock; $server is its pid.
launch()
{
	local peer=$1
	shift
	rm -f "$sock"
	"$@" >"$W/server.log" 2>&1 </dev/null &
	server=$!
	for _ in $(seq 400); do
		! grep -q " 00010000 .* $sock\$" /proc/net/unix || return 0
		kill -0 "$server" 2>/dev/null || break
		sleep 0.02
	done
	cat "$W/server.log" >&2
	echo "$0: $peer does not serve" >&2
	exit 1
}

# start PEER IMAGE
start()
{
	local argv
	mapfile -t argv < <(command_of "$@")
	launch "$1" "${argv[@]}"
}

stop()
{
	kill "$server"
	wait "$server" 2>/dev/null || true
	server=
}

# Nanoseconds of processors that the server has used, all its threads and what has ended of them
# together, and its children that have ended (those in clock ticks).
cpu_ns()
{
	python3 - "$server" <<-'END'
	import os, sys, time
	pid = int(sys.argv[1])
	with open(f"/proc/{pid}/stat") as f:
	    children = sum(map(int, f.read().rsplit(")", 1)[1].split()[13:15]))
	clock = ~pid << 3 | 2               # what clock_getcpuclockid() gives for a process
	print(time.clock_gettime_ns(clock) + children * 10**9 // os.sysconf("SC_CLK_TCK"))
	END
}

# measure_fio PEER URI FIO_OPTIONS...: a line "PEER IOPS CPU_US_PER_OP" to $W/results.
measure_fio()
{
	local peer=$1 uri=$2 before after
	shift 2
	before=$(cpu_ns)
	fio --name=bench --ioengine=nbd --uri="$uri" --time_based --runtime="$seconds" \
		--norandommap --randseed=1 --group_reporting --output-format=json \
		--output="$W/fio.json" "$@" >/dev/null
	after=$(cpu_ns)
	python3 - "$W/fio.json" "$peer" $((after - before)) >>"$W/results" <<-'END'
	import json, sys
	job = json.load(open(sys.argv[1]))["jobs"][0]
	assert job["error"] == 0, "fio failed"
	side = job["write" if job["write"]["total_ios"] else "read"]
	ops = side["total_ios"]
	seconds = int(sys.argv[3]) / 1e9
	print(sys.argv[2], round(side["iops"]), round(seconds / ops * 1e6, 2))
	END
}

# table "NAME UNIT BETTER" ...: medians of $W/results (a peer, then a number a column), as a table
# with each peer's ratio to byre, or as JSON. BETTER is more or less.
table()
{
	python3 - "$W/results" "$(basename "$0" .sh)" "${json:-0}" "$@" <<-'END'
	import json, statistics, sys
	path, bench, as_json, *columns = sys.argv[1:]
	columns = [c.split() for c in columns]
	rows = {}
	for line in open(path):
	    peer, *values = line.split()
	    rows.setdefault(peer, []).append([float(v) for v in values])
	medians = {p: [statistics.median(c) for c in zip(*v)] for p, v in rows.items()}
	spread = {p: [(min(c), max(c)) for c in zip(*v)] for p, v in rows.items()}
	if as_json == "1":
	    for p, m in medians.items():
	        print(json.dumps({"bench": bench, "peer": p, "runs": len(rows[p])} | {
	            n: {"median": m[k], "min": spread[p][k][0], "max": spread[p][k][1], "unit": u}
	            for k, (n, u, _) in enumerate(columns)}))
	    sys.exit()
	def quotient(a, b, k):
	    return a[k] / b[k] if b[k] else 1 if a[k] == 0 else float("inf")
	runs = len(next(iter(rows.values())))
	print(f"{bench}: medians of {runs} runs [least .. most]; byre against the peer")
	for k, (name, unit, better) in enumerate(columns):
	    print(f"  {name} ({unit}, {better} is better)")
	    for p, m in medians.items():
	        ratio = quotient(*(m, medians["byre"])[::1 if better == "less" else -1], k)
	        low, high = spread[p][k]
	        note = "" if p == "byre" else f"   byre x {ratio:.2f}"
	        print(f"    {p:28} {m[k]:10g} [{low:g} .. {high:g}]{note}")
	END
}
