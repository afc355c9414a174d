#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: quick default long
# limit: 600
# byre measure works out what qemu-img measure does, for every option that changes the size, and
# says what it says where something is wrong.
. "$(dirname "$0")/lib.sh"
. "$here/reference.bash"
cd "$W"

truncate -s 1M raw.img
"$qemu10" qemu-io -f raw -c 'write 64k 64k' -c 'write 200k 4k' raw.img >/dev/null
head -c 700 /dev/urandom >odd.raw
q create -f qcow2 base.qcow2 4M
io base.qcow2 'write 0 128k' 'write 1M 64k' 'write -z 2M 64k'
q create -f qcow2 -b base.qcow2 -F qcow2 top.qcow2 8M
io top.qcow2 'write 3M 64k' 'write -c 3200k 64k' 'write 6M 64k'
q create -f qcow2 -o preallocation=metadata prealloc.qcow2 4M
io prealloc.qcow2 'write 1M 64k'
q create -f qcow2 -o extended_l2=on extended.qcow2 4M
io extended.qcow2 'write 4k 4k' 'write 1M 64k' 'write -z 1028k 4k'
q create -f qcow2 -o data_file=data.raw,data_file_raw=on data.qcow2 4M
q create -f qcow2 empty.qcow2 0
q create -f qcow2 -o compat=0.10 old.qcow2 1M
q create -f qcow2 -o cluster_size=512 bitmaps.qcow2 1G
for name in a bcdefghij long-name-of-a-bitmap; do
	"$qemu10" qemu-img bitmap --add -g 512 bitmaps.qcow2 $name
done
"$qemu10" qemu-img bitmap --add -g 1M bitmaps.qcow2 coarse
cp base.qcow2 snapshots.qcow2
q snapshot -c s1 snapshots.qcow2
io snapshots.qcow2 'write 3M 512k'
q snapshot -c 1 snapshots.qcow2
q resize snapshots.qcow2 8M
cp base.qcow2 unmapped.qcow2
python3 - <<'END'
with open("unmapped.qcow2", "r+b") as f:
    f.seek(0x40000 + 8 * 20)
    f.write((0x8000000000050200).to_bytes(8, "big"))
END

same measure
while read -r options; do
	# shellcheck disable=SC2086  # words
	same measure $options
done <<'END'
base.qcow2
-O qcow2 base.qcow2
-O qcow2 raw.img
--size 1G
--size 1G -O qcow2
--size 1T -O qcow2 -o cluster_size=512
--size 1G -O qcow2 --output=json
-O raw --output=json base.qcow2
-O qcow2 --output=json base.qcow2
-O qcow2 --output=json raw.img
--size 1G -O qcow2 -o preallocation=full
--size 1G -O qcow2 -o preallocation=falloc
--size 1G -O qcow2 -o preallocation=metadata
--size 1G -O raw -o preallocation=full
-O qcow2 -o preallocation=full base.qcow2
--size 1G -O qcow2 -o extended_l2=on
--size 1G -O qcow2 -o refcount_bits=1
--size 1G -O qcow2 -o refcount_bits=3
--size 1G -O qcow2 -o cluster_size=3
--size 1G -O qcow2 -o compat=0.10,refcount_bits=1
--size 1G -O qcow2 -o compat=9
--size 1G -O qcow2 -o foo=1
--size 1G -O raw -o foo=1
--size 1G -O raw -o size=5
--size 1G -O qcow2 -o data_file=x
--size 1G -O foo
--size 1G -O vmdk
--size 1G -O qed
--size 1G base.qcow2
a b
nonexist
--size x
--size -1
--size 1000 -O qcow2
--size 0 -O qcow2
--size 1000
--size 8E
--size 7E -O qcow2
--size 100P -O qcow2
-l foo base.qcow2
-l foo raw.img
--size 1G -l foo
--image-opts --size 1G
-f qcow2 --size 1G
--size 1G -U
--size 1G -O qcow2 -o backing_file=base.qcow2
--size 1G -O qcow2 -o encryption=on
--size 1G -O qcow2 -o help
--size 1G -O qcow2 -o preallocation=foo
--size 1G -O qcow2 -o cluster_size=8k,extended_l2=on
--size 1G -O qcow2 -o nocow=on
--size 1G -O qcow2 -o cluster_size=64k -o refcount_bits=1
-O qcow2 -o backing_file=base.qcow2 top.qcow2
-O qcow2 top.qcow2
--size 1G -O raw -o preallocation=foo
--size 1G -O qcow2 -o cluster_size=abc
--size 1G -O qcow2 -o cluster_size=-1
--size 1G -O qcow2 -o refcount_bits=abc
--size 1G -O qcow2 -o refcount_bits=-1
--size 1G -O qcow2 -o refcount_bits=0
--size 1G -O qcow2 -o refcount_bits=128
--size 1G -O qcow2 -o extended_l2=foo
--size 1G -O qcow2 -o extended_l2
--size 1G -O qcow2 -o noextended_l2
--size 1G -O qcow2 -o cluster_size
--size 1G -O qcow2 -o ,
--size 1G -O qcow2 -o cluster_size=64k,,refcount_bits=1
--size 1G -O qcow2 -o cluster_size=1M,cluster_size=512
--size 1G -O qcow2 -o compat=v3
--size 1G -O qcow2 -o compat=0.10,cluster_size=3
--size 1G -O qcow2 -o refcount_bits=3,cluster_size=3
--size 1G -O qcow2 -o compat=9,cluster_size=3
--size 1G -O qcow2 -o preallocation=foo,compat=9
--size 1T -O qcow2 -o cluster_size=512,preallocation=foo
--size 128G -O qcow2 -o cluster_size=512
--size 137438953473 -O qcow2 -o cluster_size=512
-O foo nonexist
-O qcow2 -o foo=1 nonexist
-l foo nonexist
-O qcow2 --output=xml --size 1G
--size 1.5
--size 1G x y
-O qcow2 unmapped.qcow2
-l foo
-f raw
--size 1G -O qcow2 -o encrypt.format=zz
--size 1G -O qcow2 -o encrypt.iter-time=zz
-O qcow2 bitmaps.qcow2
-O qcow2 -o cluster_size=2M bitmaps.qcow2
-O qcow2 -o cluster_size=512 bitmaps.qcow2
-O raw bitmaps.qcow2
-O qcow2 -o compat=0.10 bitmaps.qcow2
-O qcow2 old.qcow2
-O qcow2 -l s1 snapshots.qcow2
-O qcow2 -l 1 snapshots.qcow2
-O qcow2 -l 2 snapshots.qcow2
-O qcow2 -l snapshot.id=1 snapshots.qcow2
-O qcow2 -l snapshot.name=1 snapshots.qcow2
-O qcow2 -l snapshot.name=s1,snapshot.id=1 snapshots.qcow2
-O qcow2 -l snapshot.name=s1,snapshot.id=2 snapshots.qcow2
-O qcow2 -l snapshot.foo=1 snapshots.qcow2
-O qcow2 -l snapshot.id= snapshots.qcow2
-O qcow2 snapshots.qcow2
-x
--size
-O qcow2 prealloc.qcow2
-O qcow2 extended.qcow2
-O qcow2 data.qcow2
-O qcow2 odd.raw
-O qcow2 empty.qcow2
-O qcow2 -o cluster_size=4k extended.qcow2
-O qcow2 -o cluster_size=2M top.qcow2
--size 3G -O qcow2 -o refcount_bits=64,cluster_size=512
--size 777777777 -O qcow2 -o refcount_bits=64,cluster_size=1k
--size 77777777777 -O qcow2 -o refcount_bits=2,cluster_size=4k
--size 7777777777777 -O qcow2 -o extended_l2=on,cluster_size=128k
--size 10P -O qcow2 -o cluster_size=2M
--size 2E -O qcow2 -o cluster_size=2M
--size 1E -O qcow2 -o cluster_size=2M,extended_l2=on
--size 1E -O qcow2 -o cluster_size=2M
END
same measure -l '' snapshots.qcow2
same measure --size 1G -O qcow2 -o ''
same measure --size ''
same measure -s 1G
same measure --o
same measure --s
# The older QEMU reads odd numbers otherwise: it is no reference for them.
odd_numbers=(+1 ' 1k' .5k 1.0 1.5e1k 1.1T 8E 16E -0 -5k 0x10k 9007199254740993.0)
[ "$qemu10" != env ] || odd_numbers=(1k -1)
for number in "${odd_numbers[@]}"; do
	same measure --size "$number"
	for option in size cluster_size refcount_bits encrypt.iter-time extended_l2; do
		same measure --size 1M -O qcow2 -o "$option=$number"
	done
done
for word in yes no true false y n YES 1 ''; do
	same measure --size 1M -O qcow2 -o "extended_l2=$word"
done

# The numbers are true: what is made has that size.
for options in cluster_size=64k cluster_size=4k,refcount_bits=64 extended_l2=on,cluster_size=16k; do
	rm -f made.qcow2
	q create -f qcow2 -o "$options,preallocation=falloc" made.qcow2 100M
	size=$("$BYRE" measure --size 100M -O qcow2 -o "$options" | sed -n 's/^fully.*: //p')
	[ "$(stat -c %s made.qcow2)" -le "$size" ] || fail "$options: larger than measured"
done
echo "$compared compared"
