#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# tools/guest/boot.sh [OPTIONS] DISK... - boots the small guest, runs a job, prints its output.
#
# DISK is a URI or file, raw to QEMU; the first is /dev/vda. The guest's writes are kept in a
# temporary file, except for a DISK that is given as rw:URI. A DISK vub:SOCKET[,PROPERTY=VALUE]...
# is a vhost-user-blk device with those properties, behind the socket; it is written to.
#   -j DIR   becomes /job in the guest; run.sh in it is the job, and its exit status ours
#   -r DEV   boot the system on DEV instead; it finds the job in /run/job
#   -w TEXT  with -r: done, with success, once TEXT is on the console
#   -t SECS  time limit (default 300): 124 when it is over
#   -l FILE  keep the console's output here
#   -o FILE  the job prints to it while it runs
#   -m MIB   memory (default 512)
#   -M SOCK  QEMU's monitor there, and a balloon in the guest
#   -i URI   the guest is one that migrates to URI
# QEMU is the program, and perhaps its first arguments (default: qemu-system-x86_64).
# 125: the guest ended without a status.
set -eu -o pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

job='' root='' text='' limit=300 console='' output='' memory=512 extra=()
while getopts j:r:w:t:l:o:m:M:i: option; do
	case $option in
	j) job=$OPTARG ;;
	r) root=$OPTARG ;;
	w) text=$OPTARG ;;
	t) limit=$OPTARG ;;
	l) console=$OPTARG ;;
	o) output=$OPTARG ;;
	m) memory=$OPTARG ;;
	M) extra+=(-monitor "unix:$OPTARG,server=on,wait=off" -device virtio-balloon-pci) ;;
	i) extra+=(-incoming "$OPTARG") ;;
	*) exit 2 ;;
	esac
done
shift $((OPTIND - 1))

read -ra program <<<"${QEMU:-qemu-system-x86_64}"
guest=$("$here/prepare.sh" | tail -n 1)
tmp=$(mktemp -d "${TMPDIR:-/tmp}/byre-guest.XXXXXX")
qemu=
finish()
{
	[ -z "$qemu" ] || kill "$qemu" 2>/dev/null || true
	wait
	rm -rf "$tmp"
}
trap finish EXIT
trap 'exit 143' INT TERM
: "${console:=$tmp/console}" "${output:=$tmp/output}"

# start ACCELERATOR INITRD KERNEL_ARGUMENTS QEMU_ARGUMENTS...
# The kernel counts ticks for a while to see whether there is a timer, and gives up where a busy
# machine has kept them from QEMU.
start()
{
	local accel=$1 initrd=$2 kernel_args=$3
	shift 3
	: >"$console"
	: >"$output"
	: >"$tmp/status"
	"${program[@]}" -accel "$accel" -cpu max -smp 2 -m "$memory" -nodefaults \
		-no-user-config -display none -no-reboot -kernel "$guest/vmlinuz" \
		-initrd "$initrd" \
		-append "console=ttyS0 quiet panic=-1 no_timer_check $kernel_args" \
		-serial "file:$console" -serial "file:$output" -serial "file:$tmp/status" "$@" \
		</dev/null >"$tmp/qemu.log" 2>&1 &
	qemu=$!
}

# KVM may be there and of no use (nested, emulated): it has to boot a guest with an empty job
# within 8 seconds, which is tried once after each start of this machine, by one at a time.
accelerator()
{
	local id known=$guest/accelerator choice=tcg,thread=multi
	id=$(cat /proc/sys/kernel/random/boot_id)
	exec 9>"$known.lock"
	flock 9
	if [ "$(head -n 1 "$known" 2>/dev/null)" != "$id" ]; then
		if [ -w /dev/kvm ]; then
			mkdir -p "$tmp/empty/job"
			echo true >"$tmp/empty/job/run.sh"
			add_job "$tmp/empty" "$tmp/probe"
			start kvm "$tmp/probe" ""
			wait_for_end 8 || true
			[ ! -s "$tmp/status" ] || choice=kvm
		fi
		printf '%s\n%s\n' "$id" "$choice" >"$known"
	fi
	tail -n 1 "$known"
	exec 9>&-
}

# add_job DIR INITRD: the initrd with DIR's content behind it.
add_job()
{
	{ cat "$guest/initrd" && (cd "$1" && find job | cpio -o -H newc --quiet); } >"$2"
}

has_ended()
{
	! kill -0 "$qemu" 2>/dev/null || { [ -n "$text" ] && grep -q "$text" "$console"; }
}

wait_for_end()
{
	local end=$((SECONDS + $1)) over=0
	until has_ended; do
		[ $SECONDS -lt $end ] || { over=124; break; }
		sleep 0.1
	done
	kill "$qemu" 2>/dev/null || true
	wait "$qemu" 2>/dev/null || true
	qemu=
	return $over
}

drives=() shared=()
# add_device NUMBER SOCKET[,PROPERTIES]: its front end connects again when the socket is gone.
add_device()
{
	local path=${2%%,*} properties=
	[ "$path" = "$2" ] || properties=,${2#*,}
	drives+=(-chardev "socket,id=vub$1,path=$path,$reconnect"
		-device "vhost-user-blk-pci,chardev=vub$1$properties")
	shared=(-object "memory-backend-memfd,id=ram,size=${memory}M,share=on"
		-machine memory-backend=ram)
}

reconnect=reconnect=1
case $("${program[@]}" --version | sed -n 's/.*version \([0-9]*\).*/\1/p') in
[1-9][0-9]) reconnect=reconnect-ms=500 ;;
esac
for disk in "$@"; do
	snapshot=on
	case $disk in
	vub:*) add_device "${#drives[@]}" "${disk#vub:}"; continue ;;
	rw:*) snapshot=off disk=${disk#rw:} ;;
	esac
	drives+=(-drive "if=none,id=disk${#drives[@]},format=raw,snapshot=$snapshot,file=$disk"
		-device "virtio-blk-pci,drive=disk${#drives[@]}")
done

wanted=$text text=
accelerator >"$tmp/accelerator" 2>/dev/null
text=$wanted
initrd=$guest/initrd
if [ -n "$job" ]; then
	mkdir "$tmp/j"
	cp -r "$job" "$tmp/j/job"
	initrd=$tmp/initrd
	add_job "$tmp/j" "$initrd"
fi
start "$(cat "$tmp/accelerator")" "$initrd" "${root:+root=$root rw}" "${drives[@]}" \
	"${shared[@]}" "${extra[@]}"
status=0
wait_for_end "$limit" || status=$?
[ "$output" != "$tmp/output" ] || cat "$output"
[ ! -s "$tmp/qemu.log" ] || sed 's/^/qemu: /' "$tmp/qemu.log" >&2
if [ "$status" = 0 ]; then
	if [ -n "$text" ]; then
		grep -q "$text" "$console" || status=125
	else
		status=$(tr -d '\r\n' <"$tmp/status")
	fi
fi
if [ -z "$status" ] || [ "$status" = 124 ] || [ "$status" = 125 ]; then
	echo "boot.sh: the guest did not finish (${status:-it ended without a status})" >&2
	tail -n 15 "$console" >&2
fi
exit "${status:-125}"
