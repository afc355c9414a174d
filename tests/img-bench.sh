#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: quick default long
# limit: 600
# byre bench, called as qemu-img, says what qemu-img says on both outputs and ends as it does, for
# every option and what can be wrong with it; and what it writes is what qemu-img writes.
. "$(dirname "$0")/lib.sh"
. "$here/reference.bash"
cd "$W"
qemu-img create -q -f raw disk.raw 1M
qemu-img create -q -f qcow2 disk.qcow2 1M
qemu-img create -q -f qcow2 -b disk.qcow2 -F qcow2 top.qcow2
: >empty.raw
head -c 10000 /dev/zero >odd.raw
head -c 1M /dev/zero >read-only.raw
chmod 444 read-only.raw

# Grammar.
same bench
same bench disk.raw disk.raw
same bench nowhere.raw
same bench --nonsense disk.raw
same bench -Z disk.raw
same bench disk.raw -c
same bench --object secret,id=a,data=b disk.raw
same bench -f nonsense disk.raw
same bench -f qcow2 disk.raw
same bench --image-opts -f raw driver=raw,file.filename=disk.raw
same bench -c 5 --image-opts driver=raw,file.filename=disk.raw
same bench --count=5 --depth 2 --buffer-size 8k --step-size=16k --offset 4k --aio=threads disk.raw
same bench --fl 4 disk.raw
same bench -qc5 disk.raw

# Numbers.
for option in -c -d -s -S -o; do
	for value in '' 0 1 7 010 +5 ' 5' '5 ' 0x10 0xg 1k 1.5k 1.5 5b 5B -5 -x nan 1e3 2147483648 \
		99999999999999999999; do
		# QEMU 7.2 waits for ever with none under way.
		[ "$option $value $qemu10" = "-d 0 env" ] ||
			same bench -d 1 -c 1 -f raw "$option" "$value" disk.raw
	done
done
for option in --pattern --flush-interval; do
	for value in '' 0 64 255 256 0x40 1k -1 2147483648; do
		same bench -c 2 -d 1 -w -f raw "$option" "$value" disk.raw
	done
done
same bench -o 9223372036854775807 -c 1 disk.raw

# Words.
for cache in writeback none off writethrough directsync unsafe nonsense ''; do
	same bench -c 5 -t "$cache" -f raw disk.raw
done
for aio in threads io_uring native nonsense ''; do
	same bench -c 5 -i "$aio" -f raw disk.raw
	same bench -c 5 -i "$aio" -t none -f raw disk.raw
done
same bench -n disk.raw
same bench -n nowhere.raw
same bench -n -i threads disk.raw
same bench -i nonsense -c nonsense disk.raw

# What belongs together.
same bench --flush-interval 4
same bench --flush-interval 4 nowhere.raw
same bench -w --flush-interval 4 nowhere.raw
same bench -w --flush-interval 4 -d 4 -c 10 -f raw disk.raw
same bench -w --flush-interval 4 -d 2 -c 10 --no-drain -f raw disk.raw
same bench --no-drain -c 3 disk.raw
same bench --pattern 65 -c 3 disk.raw
same bench -w -U -f raw disk.raw
same bench -U -c 5 disk.raw

# Ends of the disk.
same bench -c 1000 -d 3 disk.raw
same bench -c 3 -o 1M disk.raw
same bench -c 3 -o 1044480 disk.raw
same bench -c 3 -o 1044481 disk.raw
same bench -c 3 -s 2M disk.raw
same bench -c 5 -d 1 -S 300000 -s 200000 disk.raw
same bench -c 3 empty.raw
same bench -c 3 odd.raw
same bench -c 3 -s 10240 odd.raw
same bench -w -c 3 -o 1M -f raw disk.raw
for image in disk.qcow2 top.qcow2; do
	same bench -c 500 -f qcow2 "$image"
	same bench -c 5 -o 2M "$image"
done
[ "$(id -u)" = 0 ] || same bench -w -c 1 -f raw read-only.raw
same bench -w -c 1 disk.raw

# What is written.
for args in "-c 20 -d 4 --pattern 65" "-c 9 -d 2 -s 100 -S 513 --pattern 3 -o 77" \
	"-c 300 -d 8 --pattern 9 -S 12288 -o 4k" "-c 40 -t none --pattern 200 -s 8k"; do
	head -c 1M /dev/zero >want.raw
	head -c 1M /dev/zero >got.raw
	# shellcheck disable=SC2086  # words
	"$qemu10" qemu-img bench -w -f raw $args want.raw >/dev/null
	# shellcheck disable=SC2086
	"$BYRE" bench -w -f raw $args got.raw >/dev/null
	cmp want.raw got.raw || fail "bench -w $args wrote something else"
	q create -f qcow2 want.qcow2 1M
	q create -f qcow2 got.qcow2 1M
	# shellcheck disable=SC2086
	"$qemu10" qemu-img bench -w -f qcow2 $args want.qcow2 >/dev/null
	# shellcheck disable=SC2086
	"$BYRE" bench -w -f qcow2 $args got.qcow2 >/dev/null
	"$qemu10" qemu-img compare -q want.qcow2 got.qcow2 || fail "bench -w $args: other content"
	"$qemu10" qemu-img check -q got.qcow2 || fail "bench -w $args: the image is not whole"
done

# byre alone.
outcome got "$BYRE" bench -d 2000000000 -c 2000000000 -s 1M disk.raw
grep -q "Cannot allocate memory for" got || { cat got >&2; fail "a huge depth is no error"; }
mkdir elsewhere
mv disk.qcow2 elsewhere
qemu-img create -q -f qcow2 -b elsewhere/../elsewhere/disk.qcow2 -F qcow2 top.qcow2
"$BYRE" bench -c 3 --untrusted top.qcow2 >/dev/null || fail "--untrusted with a backing file below"
mkdir folder
mv top.qcow2 folder
qemu-img rebase -u -b ../elsewhere/disk.qcow2 -F qcow2 folder/top.qcow2
"$BYRE" bench -c 3 folder/top.qcow2 >/dev/null || fail "a backing file elsewhere"
outcome got "$BYRE" bench -c 3 --untrusted folder/top.qcow2
grep -q "^--- status 1" got || { cat got >&2; fail "--untrusted opens what lies elsewhere"; }
echo "$compared compared"
