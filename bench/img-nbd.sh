#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# What does an NBD client cost? 4 KiB reads and writes in order, 32 under way, of an export on a
# Unix socket, through the image tools' `bench`: processor time of the client alone, and the system
# calls it makes for an operation. The server is the same for all, byre serve over a raw file in
# the page cache.
# shellcheck source=bench/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=bench/img-lib.sh
. "$bench/img-lib.sh"

ops=$((seconds * 20000))
truncate -s 256M "$W/disk.raw"
head -c 256M /dev/urandom >"$W/disk.raw"
"$BYRE" serve --nbd "unix:$sock" --name disk --cache unsafe "$W/disk.raw" >"$W/log" 2>&1 &
server=$!
for _ in $(seq 200); do
	[ ! -S "$sock" ] || break
	sleep 0.05
done

# argv_of PEER OPTIONS...: the command of one run, a word a line.
argv_of()
{
	img_command "$1"
	printf '%s\n' bench -f raw -d 32 "${@:2}" "nbd+unix:///disk?socket=$sock"
}

# calls PEER OPTIONS...: system calls for an operation.
calls()
{
	local argv
	command -v strace >/dev/null || { echo 0; return; }
	mapfile -t argv < <(argv_of "$@" -c 2000)
	strace -f -c -o "$W/calls" "${argv[@]}" >/dev/null
	awk '$NF == "total" { printf "%.2f\n", $4 / 2000 }' "$W/calls"
}

for run in $(seq "$runs"); do
	for peer in byre "${qemu_imgs[@]}"; do
		mapfile -t reading < <(argv_of "$peer" -c $ops)
		mapfile -t writing < <(argv_of "$peer" -w -c $ops)
		read -r rate reads < <(measure_cpu $ops "${reading[@]}")
		read -r _ writes < <(measure_cpu $ops "${writing[@]}")
		calls="$(calls "$peer") $(calls "$peer" -w)"
		echo "$peer $reads $writes $rate $calls" >>"$W/results"
	done
	[ -n "$json" ] || echo "run $run of $runs done" >&2
done
table "reads 1/cpu-s more" "writes 1/cpu-s more" "read_rate 1/s more" "read_calls 1 less" \
	"write_calls 1 less"
