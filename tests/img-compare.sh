#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: quick default long
# limit: 600
# byre compare says what qemu-img compare says, shows progress as it does and ends as it does: for
# images that are the same, that differ, and that cannot be opened, mapped or read.
. "$(dirname "$0")/lib.sh"
. "$here/reference.bash"
cd "$W"

q create -f qcow2 base.qcow2 4M
io base.qcow2 'write 0 128k' 'write 1M 64k' 'write -z 2M 64k'
cp base.qcow2 copy.qcow2
q create -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2 8M
io mid.qcow2 'write 64k 64k' 'write -z 1M 128k' 'write 6M 64k'
q create -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2
io top.qcow2 'write 3M 64k' 'write -c 3200k 64k'
q create -f qcow2 empty.qcow2 0
q create -f qcow2 -o preallocation=metadata prealloc.qcow2 4M
"$qemu10" qemu-img convert -O raw base.qcow2 base.raw
cp base.raw longer.raw
truncate -s 6M longer.raw
cp longer.raw longer2.raw
printf x | dd of=longer2.raw bs=1 seek=5000000 conv=notrunc status=none
cp base.raw other.raw
printf x | dd of=other.raw bs=1 seek=70001 conv=notrunc status=none
head -c 700 /dev/urandom >odd.raw
cp odd.raw odd2.raw
printf '\0' | dd of=odd2.raw bs=1 seek=699 conv=notrunc status=none
cp base.qcow2 unmapped.qcow2
cp top.qcow2 unread.qcow2
spoil unmapped.qcow2 20 entry
spoil unread.qcow2 50 data

while read -r one two; do
	same compare "$one" "$two"
	same compare "$two" "$one"
	same compare -p "$one" "$two"
	same compare -s "$one" "$two"
	same compare -q -p "$one" "$two"
done <<'END'
base.qcow2 copy.qcow2
base.qcow2 base.raw
base.qcow2 mid.qcow2
mid.qcow2 top.qcow2
base.qcow2 longer.raw
base.qcow2 longer2.raw
longer.raw longer2.raw
base.raw other.raw
base.qcow2 other.raw
empty.qcow2 empty.qcow2
empty.qcow2 base.qcow2
empty.qcow2 prealloc.qcow2
prealloc.qcow2 base.qcow2
odd.raw odd2.raw
odd.raw base.raw
unmapped.qcow2 base.qcow2
unread.qcow2 top.qcow2
unread.qcow2 mid.qcow2
nowhere.raw base.raw
base.raw base.qcow2/
END
for options in "-f raw -F raw" "-f raw" "-F raw" "-f qcow2 -F raw" "-f foo" "-F foo" "-T foo" \
	"-T none" "-T writethrough" --image-opts "--image-opts -f raw" "--image-opts -F raw" \
	--nonsense -x -T "--object foo" -U; do
	# shellcheck disable=SC2086  # words
	same compare $options base.qcow2 base.raw
done
same compare
same compare base.qcow2
same compare -p base.qcow2
same compare base.qcow2 base.qcow2 base.qcow2
same compare --image-opts driver=qcow2,file.filename=base.qcow2 driver=raw,file.filename=base.raw
mkdir folder
q rebase -u -b ../base.qcow2 -F qcow2 mid.qcow2
mv mid.qcow2 folder/
"$BYRE" compare -q folder/mid.qcow2 folder/mid.qcow2 || fail "a backing file elsewhere"
status=0
"$BYRE" compare -q --untrusted base.qcow2 folder/mid.qcow2 2>/dev/null || status=$?
[ $status = 2 ] || fail "--untrusted opens a backing file elsewhere ($status)"
echo "$compared compared"
