#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: quick default long
# limit: 600
# byre map says what qemu-img map says: of everything that an image can hold where, plain and as
# JSON, and of what can be wrong with its command line.
. "$(dirname "$0")/lib.sh"
. "$here/reference.bash"
cd "$W"

truncate -s 1M raw.img
"$qemu10" qemu-io -f raw -c 'write 64k 64k' raw.img >/dev/null
head -c 700 /dev/urandom >odd.raw
q create -f qcow2 base.qcow2 4M
io base.qcow2 'write 0 128k' 'write 1M 64k' 'write -z 2M 64k'
q create -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2 8M
io mid.qcow2 'write 64k 64k' 'write -z 1M 128k' 'write 6M 64k'
q create -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2
io top.qcow2 'write 3M 64k' 'write -c 3200k 64k' 'write -c 3264k 64k'
q create -f qcow2 -b raw.img -F raw onraw.qcow2 3M
io onraw.qcow2 'write 2M 64k'
q create -f qcow2 -b odd.raw -F raw onodd.qcow2 1M
q create -f qcow2 -o preallocation=metadata prealloc.qcow2 4M
io prealloc.qcow2 'write 1M 64k'
q create -f qcow2 -o preallocation=full full.qcow2 1M
q create -f qcow2 -o extended_l2=on extended.qcow2 4M
io extended.qcow2 'write 4k 4k' 'write 1M 64k' 'write -z 1028k 4k' 'write -zu 1032k 4k'
q create -f qcow2 -o extended_l2=on,backing_file=base.qcow2,backing_fmt=qcow2 subclusters.qcow2 8M
io subclusters.qcow2 'write 4k 4k' 'write 132k 4k' 'write 4100k 4k'
q create -f qcow2 -o data_file=data.raw,data_file_raw=on data-raw.qcow2 4M
io data-raw.qcow2 'write 64k 64k' 'write -z 1M 64k' 'write -zu 2M 64k'
q create -f qcow2 -o data_file=data2.raw data.qcow2 4M
io data.qcow2 'write 64k 64k' 'write -z 1M 64k' 'write -zu 2M 64k'
q create -f qcow2 zeros.qcow2 4M
io zeros.qcow2 'write 0 128k' 'write -z 0 64k' 'write 192k 64k' 'discard 192k 64k'
q create -f qcow2 -o cluster_size=512 small.qcow2 1M
io small.qcow2 'write 1k 1k' 'write 3k 512' 'write 100k 300k'
q create -f qcow2 -o cluster_size=2M large.qcow2 1T
io large.qcow2 'write 500G 1M'
q create -f qcow2 empty.qcow2 0
q create -f qcow2 -o compat=0.10 old.qcow2 1M
io old.qcow2 'write 0 64k'
cp base.qcow2 bad.qcow2
"$qemu10" qemu-io -f raw -c 'write -P 0x55 0x400a0 8' bad.qcow2 >/dev/null || true
python3 - <<'END'
with open("bad.qcow2", "r+b") as f:
    f.seek(0x40000 + 8 * 20)
    f.write((0x8000000000050200).to_bytes(8, "big"))
END

for image in *.img *.raw *.qcow2; do
	same map "$image"
	same map --output=json "$image"
	same map --output=json -f raw "$image"
done
for options in "--start-offset 100" "--start-offset 64k --max-length 1000" "--max-length 0" \
	"--start-offset 5M" "-s 2M -l 100M" "--start-offset 1x" "--max-length -1" \
	"--start-offset 8E" "--start-offset 100G" "--max-length 1.5k" "--start-offset=" -U \
	"-f foo" "-f raw" --nonsense -x -f "--output xml" "--output human" "--object foo"; do
	# shellcheck disable=SC2086  # words
	same map $options base.qcow2
	# shellcheck disable=SC2086
	same map --output=json $options base.qcow2
done
# The older QEMU reads odd numbers otherwise: it is no reference for them.
odd_numbers=(0 +1 ' 1k' .5k 1. 1.0 1.1 1e3 1.5e1k 1.1T 7.9E 8E 16E 0x10 0x10k -0 -5k -0x5 inf
	9007199254740993.0 0.0005k 18446744073709551616)
[ "$qemu10" != env ] || odd_numbers=(0 1k -1)
for number in "${odd_numbers[@]}"; do
	same map --output=json --start-offset "$number" base.qcow2
	same map --output=json -l "$number" base.qcow2
done
same map
same map ''
same map base.qcow2 mid.qcow2
same map nowhere.qcow2
same map -f qcow2 odd.raw
same map --image-opts driver=qcow2,file.filename=top.qcow2
same map --image-opts -f qcow2 driver=qcow2,file.filename=top.qcow2
same map --output=json 'json:{"driver":"qcow2","file":{"driver":"file","filename":"top.qcow2"}}'
mkdir elsewhere
mv base.qcow2 elsewhere/
q rebase -u -b elsewhere/base.qcow2 -F qcow2 mid.qcow2
same map top.qcow2
same map "$W/top.qcow2"

# --untrusted keeps to the image's folder.
mkdir folder
q rebase -u -b ../elsewhere/base.qcow2 -F qcow2 mid.qcow2
mv mid.qcow2 folder/
"$BYRE" map folder/mid.qcow2 >/dev/null || fail "a backing file elsewhere is not opened"
! "$BYRE" map --untrusted folder/mid.qcow2 >/dev/null 2>&1 ||
	fail "--untrusted opens a backing file elsewhere"
echo "$compared compared"
