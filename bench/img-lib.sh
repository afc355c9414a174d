# SPDX-License-Identifier: MIT
# bench/img-lib.sh - sourced by the benchmarks of the image tool, behind lib.sh.
# shellcheck shell=bash

# The programs that meson builds beside byre.
# shellcheck disable=SC2034  # the benchmarks use it
programs=$(dirname "$BYRE")/../../bench
qemu_imgs=(qemu-img)
[ ! -x "$qemu10" ] || qemu_imgs+=(qemu10-img)

# img_command PEER: prints the image tool that PEER is, a word a line.
img_command()
{
	case $1 in
	byre*) echo "$BYRE" ;;
	qemu10-*) printf '%s\n' "$qemu10" qemu-img ;;
	*) echo qemu-img ;;
	esac
}

# img_peers: prints what bench/least.py takes, PEER:COMMAND, a line each.
img_peers()
{
	local peer
	for peer in byre "${qemu_imgs[@]}"; do
		echo "$peer:$(img_command "$peer" | paste -s -d ' ')"
	done
}

# measure_cpu OPS COMMAND...: prints operations a second, and operations a second of processor time,
# user and system together.
measure_cpu()
{
	python3 - "$@" <<-'END'
	import resource, subprocess, sys, time
	start = time.monotonic()
	subprocess.run(sys.argv[2:], stdout=subprocess.DEVNULL, check=True)
	wall = time.monotonic() - start
	used = resource.getrusage(resource.RUSAGE_CHILDREN)
	cpu = used.ru_utime + used.ru_stime
	print(round(int(sys.argv[1]) / wall), round(int(sys.argv[1]) / cpu))
	END
}
