#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: quick default long tsan
# limit: 600
# A conversion that fails says why and where, and leaves nothing that could be taken for an image:
# a full disk, damage in the source, signals. Progress can be asked for.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-io python3
cd "$W"

random_file source.raw $((8 << 20))
qemu-img convert -O qcow2 source.raw source.qcow2

# fails TEXT ARGUMENTS...: byre convert ends with status 1 and says TEXT.
fails()
{
	local text=$1 status=0
	shift
	timeout 120 "$BYRE" convert "$@" >log 2>&1 </dev/null || status=$?
	[ $status = 1 ] || { cat log >&2; fail "convert $*: status $status"; }
	grep -qF -- "$text" log || { cat log >&2; fail "convert $*: does not say '$text'"; }
}

# ---- a file that cannot become long enough ----

(
	trap '' XFSZ
	ulimit -f 4096
	for options in "" "-O qcow2" "-O qcow2 -t writeback" "-t writeback" "-O qcow2 -W" \
		"-c -O qcow2"; do
		# shellcheck disable=SC2086  # words
		fails "too large" $options source.raw new
		[ "$(wc -l <log)" = 1 ] || { cat log >&2; fail "$options: says too much"; }
		[ ! -e new ] || fail "$options: half an image is left"
		: >new
		ln new link
		# shellcheck disable=SC2086
		fails "too large" $options source.raw new
		[ "$(stat -c %s link)" = 0 ] || fail "$options: half an image is left in a file"
		rm new link
	done
)
# Nor does the signal that comes with it, which is what ends other programs, nor what a file held.
(
	ulimit -f 4096
	fails "too large" source.raw new
	fails "too large" -O qcow2 -t writeback source.raw new
	for options in "-o preallocation=full" \
		"-O qcow2 -o data_file=new.data,preallocation=full"; do
		echo before >new
		echo before >new.data
		# shellcheck disable=SC2086  # words
		fails "too large" $options source.raw new
		! grep -q 'made shorter' log || { cat log >&2; fail "$options: cuts its own file"; }
		! [ -s new ] || fail "$options: something is left"
		rm -f new new.data
	done
)
[ "$(id -u)" != 0 ] || ! mkdir small || ! mount -t tmpfs -o size=4m none small 2>/dev/null || {
	mounted+=("$W/small")
	status=0
	for options in "" "-O qcow2" "-O qcow2 -t none" "-c -O qcow2"; do
		# shellcheck disable=SC2086
		"$BYRE" convert $options source.raw small/new 2>log && status=1
		grep -q 'No space left' log && [ "$(wc -l <log)" = 1 ] || status=1
		[ ! -e small/new ] || status=1
		[ $status = 0 ] || break
	done
	[ $status = 0 ] || { cat log >&2; fail "a full file system $options"; }
	# What an image loses gives room to what it gets (-n): three MiB for three others, of four.
	random_file three $((3 << 20))
	cp three before.raw
	truncate -s 6M before.raw
	truncate -s 3M after.raw
	random_file three $((3 << 20)) 2
	cat three >>after.raw
	for options in "" -c -W; do
		qemu-img convert -f raw -O qcow2 before.raw small/filled
		# shellcheck disable=SC2086
		"$BYRE" convert -n $options -f raw -O qcow2 after.raw small/filled ||
			fail "$options: no room is made"
		qemu-img check -q small/filled || fail "$options: a filled image"
		qemu-img compare -q -f raw -F qcow2 after.raw small/filled ||
			fail "$options: a filled image has other content"
		rm small/filled
	done
	rm three before.raw after.raw
}

# ---- damage in the source ----

python3 - <<'END_PYTHON'
with open("source.qcow2", "r+b") as f:
    f.seek(40)
    f.seek(int.from_bytes(f.read(8), "big"))
    f.seek((int.from_bytes(f.read(8), "big") & 0xfffffffffffe00) + 8 * 53)
    f.write((0x8000000000050200).to_bytes(8, "big"))    # not on a cluster's start
END_PYTHON
fails "error while reading block status at offset $((53 * 65536))" source.qcow2 new
[ ! -e new ] || fail "half an image is left"
for there in no yes; do
	[ $there = no ] || echo before >new.data
	fails "error while reading block status" -O qcow2 -o data_file=new.data,data_file_raw=on \
		source.qcow2 new
	[ ! -e new ] || fail "half an image is left"
	! [ -s new.data ] || fail "half a data file is left"
	[ $there = yes ] || [ ! -e new.data ] || fail "a data file is left"
done
rm new.data
"$BYRE" convert --salvage source.qcow2 new.raw 2>log || { cat log >&2; fail "--salvage"; }
grep -q "warning: error while reading offset $((53 * 65536)): " log ||
	{ cat log >&2; fail "--salvage does not tell what is lost"; }
[ "$(grep -c 'while reading offset' log)" = 128 ] || fail "--salvage tells of other sectors"
cp source.raw wanted.raw
dd if=/dev/zero of=wanted.raw bs=64k count=1 seek=53 conv=notrunc status=none
cmp wanted.raw new.raw || fail "--salvage: not what there is"
"$BYRE" convert -q --salvage source.qcow2 new.raw 2>log || fail "-q --salvage"
! grep -q warning log || fail "-q --salvage is not quiet"
for type in zlib zstd; do
	rm -f packed.qcow2
	qemu-img create -q -f qcow2 -o compression_type=$type packed.qcow2 1M
	qemu-io -c 'write -c -P 7 0 64k' -c 'write -c -P 7 640k 64k' packed.qcow2 >/dev/null
	python3 - <<-'END_PYTHON'
	with open("packed.qcow2", "r+b") as f:
	    f.seek(40)
	    f.seek(int.from_bytes(f.read(8), "big"))
	    f.seek((int.from_bytes(f.read(8), "big") & 0xfffffffffffe00) + 8 * 10)
	    f.seek(int.from_bytes(f.read(8), "big") & 0x3fffffffffffff)
	    f.write(b"\xff" * 20)
	END_PYTHON
	for options in "" "-c -O qcow2" "-O qcow2 -m 1"; do
		# shellcheck disable=SC2086  # words
		fails "error while reading at byte 655360: Input/output error" \
			$options packed.qcow2 new
		[ ! -e new ] || fail "half an image is left"
	done
	"$BYRE" convert --salvage packed.qcow2 new 2>log || { cat log >&2; fail "$type: salvage"; }
	grep -q "warning: error while reading offset 655360: " log ||
		{ cat log >&2; fail "$type: --salvage does not tell what is lost"; }
	qemu-io -f raw -c 'read -P 7 0 64k' -c 'read -P 0 64k 960k' new >io 2>&1 || true
	! grep -qE 'failed|error' io || { cat io >&2; fail "$type: --salvage: other content"; }
	rm new
done

# ---- signals ----

# runs_slowly RATE ARGUMENTS...: starts one that takes long, and waits until it writes.
runs_slowly()
{
	"$BYRE" convert -r "$@" >log 2>&1 </dev/null &
	pid=$!
	others+=("$pid")
	wait_for 20 test -e new || fail "convert $* does not start"
	sleep 0.3
}

for signal in INT TERM HUP; do
	rm -f new
	python3 -c '
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
' "$BYRE" convert -r 64k -O qcow2 source.raw new >log 2>&1 &
	pid=$!
	others+=("$pid")
	wait_for 20 test -e new || fail "convert does not start"
	sleep 0.3
	kill -USR1 $pid
	kill -$signal $pid
	status=0
	wait $pid || status=$?
	[ $status = $((128 + $(kill -l $signal))) ] || fail "SIG$signal: status $status"
	[ ! -e new ] || fail "SIG$signal: half an image is left"
done

# What somebody else has put in its place stays.
rm -f new
runs_slowly 64k -O qcow2 source.raw new
mv new moved
echo another >new
kill -TERM "$pid"
wait "$pid" && fail "SIGTERM does not end it"
[ "$(cat new)" = another ] || fail "another file was removed"
rm new moved

is_larger_than_a_byte()
{
	[ "$(stat -c %s "$1")" -gt 1 ]
}

# A long preallocation is no reason to stay.
truncate -s 64G huge.raw
for options in "-O qcow2" "-O raw" "-O qcow2 -o data_file=new.data"; do
	# shellcheck disable=SC2086  # words
	runs_slowly 64k $options -o preallocation=full huge.raw new
	kill -TERM "$pid" || true       # the disk may be full by now
	end_within "$pid" 60 || fail "$options: SIGTERM does not end a preallocation"
	[ ! -e new ] && [ ! -e new.data ] || fail "$options: half an image is left"
	# A file that was there keeps its name.
	truncate -s 1 new
	ln new link
	# shellcheck disable=SC2086  # words
	"$BYRE" convert $options -o preallocation=full huge.raw new >log 2>&1 </dev/null &
	pid=$!
	others+=("$pid")
	wait_for 20 is_larger_than_a_byte new || fail "$options: does not start"
	kill -TERM "$pid" || true
	end_within "$pid" 60 || fail "$options: SIGTERM does not end a preallocation"
	[ -e new ] && [ "$(stat -c %s link)" = 0 ] || fail "$options: half an image is left"
	[ ! -e new.data ] || fail "$options: half a data file is left"
	rm new link
done
runs_slowly 1M source.raw new
kill -USR1 "$pid"
wait "$pid" || fail "SIGUSR1 ends it"
grep -qE '^    \([0-9.]+/100%\)$' log || { cat log >&2; fail "SIGUSR1: no progress"; }
cmp source.raw new || fail "after SIGUSR1: other content"

# A terminal sees a bar, which is full in the end.
if command -v script >/dev/null; then
	script -qec "'$BYRE' convert -p source.raw new" /dev/null </dev/null >bar
	grep -q '^  \[#*\] 100.0 %  8 MiB, [^,]*$' <(tr '\r' '\n' <bar) ||
		{ cat bar >&2; fail "-p on a terminal"; }
fi

# Nobody who reads what -p says, and there is more to say.
rm new
"$BYRE" convert -p -r 8M source.raw new 2>log | head -c 3 >/dev/null || true
cmp source.raw new || { cat log >&2; fail "a reader that leaves ends it"; }
truncate -s 20M new
"$BYRE" convert source.raw new >log 2>&1 && cmp source.raw new || fail "over a longer file"
! [ -s log ] || { cat log >&2; fail "over a longer file: says something"; }

# An image that is in use is left alone, and so is one that is its own source.
cp source.raw copy.raw
fails 'Failed to get "write" lock' copy.raw copy.raw
cmp source.raw copy.raw || fail "a source was overwritten"
qemu-img create -q -f qcow2 -b copy.raw -F raw over.qcow2
ln copy.raw link.raw
fails "'link.raw' is read by this conversion" -U over.qcow2 link.raw
fails "'link.raw' is read by this conversion" -U -n over.qcow2 link.raw
cmp source.raw copy.raw || fail "a source was overwritten"
for there in no yes; do
	fails "'copy.raw' is read by this conversion" \
		-U -O qcow2 -o data_file=copy.raw copy.raw new.qcow2
	[ $there = no ] || [ "$(cat new.qcow2)" = before ] || fail "a target is not what it was"
	echo before >new.qcow2
done
qemu-img create -q -f qcow2 -o data_file=data.raw new.qcow2 8M
ln -f copy.raw data.raw
fails "'data.raw' is read by this conversion" -U -n -O qcow2 copy.raw new.qcow2
cmp source.raw copy.raw || fail "a source was overwritten"
rm new.qcow2 data.raw

# Where locks are left out otherwise: by a source's description, by that of a backing file, by the
# target's. Under the name qemu-img, too, which overwrites the source.
unlocked()
{
	fails "'$1' is read by this conversion" "${@:2}"
	cmp source.raw copy.raw || fail "a source was overwritten: $*"
}
raw=driver=raw,file.driver=file,file.filename=copy.raw
json='json:{"driver":"raw","file.filename":"copy.raw","file.locking":"off"}'
unlocked copy.raw --image-opts $raw,file.locking=off copy.raw
unlocked link.raw --image-opts $raw,file.locking=off link.raw
unlocked copy.raw --image-opts $raw,force-share=on -O qcow2 copy.raw
unlocked copy.raw --image-opts $raw,file.locking=off -O qcow2 -o data_file=copy.raw new.qcow2
[ ! -e new.qcow2 ] || fail "a target is made"
unlocked copy.raw "$json" copy.raw
unlocked copy.raw -n --image-opts $raw,file.locking=off copy.raw
unlocked copy.raw -n --target-image-opts copy.raw $raw,file.locking=off
qemu-img create -q -f qcow2 -b "$json" -F raw over.qcow2
unlocked copy.raw over.qcow2 copy.raw
ln -s "$BYRE" qemu-img
BYRE=./qemu-img unlocked copy.raw --image-opts $raw,file.locking=off copy.raw
fails 'Failed to get "write" lock' -n --target-image-opts copy.raw $raw
"$BYRE" convert --image-opts $raw,file.locking=off new || fail "without locks"
cmp source.raw new || fail "without locks"
rm qemu-img new

# Locks on a device are locks on its name.
if [ "$(id -u)" = 0 ] && dev=$(losetup -f --show copy.raw 2>/dev/null); then
	mknod other-name b 0x"$(stat -c %t "$dev")" 0x"$(stat -c %T "$dev")"
	fails "'other-name' is read by this conversion" -f raw -O qcow2 "$dev" other-name
	losetup -d "$dev"
	cmp source.raw copy.raw || fail "a source was overwritten"
	rm other-name
fi

# ---- options that cannot be are told before anything is emptied ----

echo before >new.qcow2
fails "compression level 13 is not within 1 and 12" \
	-c -O qcow2 -o compression_level=13 source.raw new.qcow2
fails "compression level 10 is not within 1 and 9" \
	-c -O qcow2 -o compression_level=10,deflate_window=4k source.raw new.qcow2
fails "a window is chosen for deflate only" \
	-c -O qcow2 -o deflate_window=4k,compression_type=zstd source.raw new.qcow2
[ "$(cat new.qcow2)" = before ] || fail "a target was emptied for an option"
rm new.qcow2

# ---- a block device, which stays as long as it is ----

qemu-img convert -O raw source.raw wanted.raw
truncate -s 12M device.img
truncate -s 1M short.img
if [ "$(id -u)" = 0 ] && device=$(losetup -f --show device.img 2>/dev/null); then
	short=$(losetup -f --show short.img)
	status=0
	head -c 12M /dev/zero | tr '\0' '\377' >"$device"
	"$BYRE" convert source.raw "$device" && cmp -n $((8 << 20)) wanted.raw "$device" || status=1
	"$BYRE" convert -O qcow2 source.raw "$device" &&
		"$BYRE" compare -q -f qcow2 -F raw "$device" wanted.raw || status=1
	"$BYRE" convert source.raw "$short" 2>log && status=1
	losetup -d "$device" "$short"
	[ $status = 0 ] || { cat log; fail "a block device"; }
	grep -q 'Cannot grow device files' log || { cat log; fail "a device that is too short"; }
fi
