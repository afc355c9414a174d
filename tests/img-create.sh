#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long
# limit: 2400
# takes: 70
# byre create -f qcow2 makes, byte for byte, the image that QEMU 10 makes, for all combinations of
# options, and says what it says, right or wrong; its images are whole for QEMU 7.2, too.
. "$(dirname "$0")/lib.sh"
. "$here/reference.bash"
cd "$W"

q create -f raw base.raw 5M
cp base.raw a,b
q create -f qcow2 base.qcow2 3M
q create -f qcow2 -u -b gone -F raw orphan.qcow2 1M
mkdir folder
q create -f raw folder/below.raw 1M

compare=cmp

# What is there of the files that were to be made.
made()
{
	local file
	for file in new.qcow2 data.raw folder/new.qcow2; do
		[ ! -e $file ] || stat -c '%n %s' $file
	done
}

# same_bytes ONE OTHER: as cmp(1), but holes are not read.
same_bytes()
{
	python3 - "$@" <<-'END'
	import os, sys
	def parts(fd):
	    end, at = os.fstat(fd).st_size, 0
	    while at < end:
	        try:
	            at = os.lseek(fd, at, os.SEEK_DATA)
	        except OSError:
	            return
	        hole = os.lseek(fd, at, os.SEEK_HOLE)
	        while at < hole:
	            n = min(hole - at, 1 << 20)
	            yield at, n
	            at += n
	one, other = (os.open(name, os.O_RDONLY) for name in sys.argv[1:])
	same = os.fstat(one).st_size == os.fstat(other).st_size
	for fd in one, other:
	    for at, n in parts(fd):
	        same = same and os.pread(one, n, at) == os.pread(other, n, at)
	sys.exit(not same)
	END
}

# create ARGUMENTS...: both say the same, and make the same files or none.
create()
{
	rm -rf new.qcow2 data.raw folder/new.qcow2 wanted
	mkdir -p wanted/folder
	compared=$((compared + 1))
	outcome want "$qemu10" qemu-img create -f qcow2 "$@"
	made >want.made
	for file in new.qcow2 data.raw folder/new.qcow2; do
		[ ! -e $file ] || mv $file wanted/$file
	done
	outcome got bin/qemu-img create -f qcow2 "$@"
	made >got.made
	diff want got >diff || is_known_of_older create "$@" ||
		{ cat diff >&2; fail "create $* (< QEMU, > byre)"; }
	diff want.made got.made >&2 || fail "create $*: other files (< QEMU, > byre)"
	for file in new.qcow2 data.raw folder/new.qcow2; do
		[ ! -e wanted/$file ] || $compare wanted/$file $file ||
			fail "create $*: $file is not QEMU's"
	done
}

# ---- the bytes of images ----

for cluster in 512 1k 4k 8k 64k 2M; do
	for size in 0 1 100M 10G; do
		create -o cluster_size=$cluster new.qcow2 $size
		for bits in 1 8 64; do
			create -o cluster_size=$cluster,refcount_bits=$bits new.qcow2 $size
		done
		create -o cluster_size=$cluster,compat=0.10 new.qcow2 $size
	done
	create -o cluster_size=$cluster -b base.raw -F raw new.qcow2
	create -o cluster_size=$cluster,compat=0.10 -b base.qcow2 -F qcow2 new.qcow2
	create -o cluster_size=$cluster,data_file=data.raw new.qcow2 3000000
	create -o cluster_size=$cluster,data_file=data.raw -b base.raw -F raw new.qcow2 7M
done

for preallocation in metadata falloc full; do
	for cluster in 512 4k 64k 2M; do
		for bits in 1 16 64; do
			for size in 0 1000 3000000 33M; do
				create -o cluster_size=$cluster,refcount_bits=$bits \
					-o preallocation=$preallocation new.qcow2 $size
			done
		done
	done
	create -o preallocation=$preallocation,data_file=data.raw new.qcow2 3000000
	create -o preallocation=$preallocation,data_file=data.raw,data_file_raw=on new.qcow2 3M
	create -o preallocation=$preallocation,extended_l2=on new.qcow2 30000000
	create -o preallocation=$preallocation,extended_l2=on -b base.raw -F raw new.qcow2
	create -o preallocation=$preallocation,compat=0.10 new.qcow2 3M
done
compare=same_bytes
create -o preallocation=metadata new.qcow2 40G
create -o preallocation=metadata,cluster_size=4k,refcount_bits=64 new.qcow2 2G
create -o preallocation=metadata,cluster_size=1k,refcount_bits=32 new.qcow2 100M
create -o preallocation=metadata,extended_l2=on,cluster_size=16k,refcount_bits=1 new.qcow2 2G
create -o preallocation=metadata,cluster_size=2M,refcount_bits=64 new.qcow2 700G
compare=cmp
create -o data_file=data.raw,data_file_raw=on new.qcow2 1000000
create -o compression_type=zstd,lazy_refcounts=on,extended_l2=on new.qcow2 1G

# ---- what is said ----

create new.qcow2
while read -r options; do
	# shellcheck disable=SC2086  # words
	create $options new.qcow2 1M
done <<'END'

-q
-o size=1M
-o cluster_size=3
-o cluster_size=0
-o cluster_size=4M
-o cluster_size=x
-o cluster_size=-1
-o cluster_size=99E
-o compat=1.1
-o compat=v3
-o compat=v2
-o compat=1.0
-o compat=0.10,refcount_bits=1
-o compat=0.10,lazy_refcounts=on
-o compat=0.10,extended_l2=on
-o compat=0.10,extended_l2=on,cluster_size=3
-o compat=0.10,compression_type=zstd
-o compat=0.10,compression_type=zlib
-o compat=0.10,data_file=data.raw
-o compat=0.10,data_file=data.raw,compression_type=zstd,refcount_bits=3
-o compat=0.10,data_file=data.raw,compression_type=zstd
-o compat=0.10,data_file_raw=on,lazy_refcounts=on
-o compression_type=foo
-o preallocation=foo
-o preallocation=foo,compression_type=foo,cluster_size=3
-o preallocation=foo,compat=foo
-o refcount_bits=0
-o refcount_bits=3
-o refcount_bits=128
-o refcount_bits=-1
-o refcount_bits=99999999999
-o refcount_bits=0x10
-o refcount_bits=x
-o extended_l2=on,cluster_size=4k
-o extended_l2=yes
-o lazy_refcounts
-o nolazy_refcounts
-o data_file_raw=on
-o data_file=
-o data_file=data.raw,data_file_raw=on -b base.raw -F raw
-o data_file=nowhere/data.raw
-o nocow=on,extent_size_hint=4k
-o nocow=x
-o extent_size_hint=x
-o foo=1
-o cluster_size=4k -o cluster_size=8k,lazy_refcounts=on
-o cluster_size=4k,cluster_size=8k
-o ,
-o encrypt.iter-time=x
-o encryption=x
-F raw
-F foo
-u -F raw
-b base.raw
-b base.qcow2
-b base.raw -F raw
-b base.qcow2 -F qcow2
-b base.raw -F qcow2
-b base.raw -F foo
-b base.raw -F file
-b a,b -F raw
-b file:base.raw -F raw
-b nowhere -F raw
-b nowhere
-b orphan.qcow2 -F qcow2
-b orphan.qcow2
-b new.qcow2 -F qcow2
-u -b nowhere
-u -b nowhere -F raw
-u -b nowhere -F foo
-u -b nowhere -F vmdk
-u -b new.qcow2 -F raw
-b base.raw -F raw -o preallocation=metadata
-b base.raw -F raw -o preallocation=falloc,lazy_refcounts=on,compat=0.10
-b base.raw -F raw -o preallocation=off
-b base.raw -o backing_fmt=raw
-b base.qcow2 -o backing_file=base.raw,backing_fmt=raw
-o backing_file=base.raw,backing_fmt=raw
-o backing_file=
-o backing_file=,backing_fmt=raw
END
create -b base.raw -F raw new.qcow2
create -b base.qcow2 -F qcow2 new.qcow2
create -b '' -F raw new.qcow2 1M
create -b base.raw -F '' new.qcow2 1M
create -u -b nowhere -F raw new.qcow2
create -o size=1M -b base.raw -F raw new.qcow2
create -o size=1M new.qcow2
create -o size=1M new.qcow2 2M
create -o size=-1 new.qcow2
create new.qcow2 1x
create -o foo=1 new.qcow2 1x
create new.qcow2 -1
create new.qcow2 9E
create new.qcow2 1E
create -o cluster_size=512 new.qcow2 1T
create -o preallocation=metadata,cluster_size=512 new.qcow2 1T
create new.qcow2 1M 2M
create
create nowhere/new.qcow2 1M
create -o preallocation=x nowhere/new.qcow2 1M
create . 1M
create '' 1M
create -b below.raw -F raw folder/new.qcow2
create -b base.raw -F raw folder/new.qcow2
create -b "$W/base.raw" -F raw folder/new.qcow2
long=$(printf 'x%.0s' $(seq 1021))
create -u -b "./$long" -F raw new.qcow2 1M
create -u -b "./${long:0:890}" -F raw -o cluster_size=1k new.qcow2 1M
create -u -b "./${long:0:250}" -F qcow2 -o cluster_size=512 new.qcow2 1M
create -u -b "./${long:0:375}" -F qcow2 -o cluster_size=512 new.qcow2 1M

# ---- what is byre's own ----

# An image in use is left alone, and so is one that the options are wrong for.
"$BYRE" create -q -f qcow2 kept.qcow2 1M || fail "create"
cp kept.qcow2 copy.qcow2
! "$BYRE" create -f qcow2 -o preallocation=foo kept.qcow2 2M >/dev/null 2>&1 ||
	fail "preallocation=foo was accepted"
cmp kept.qcow2 copy.qcow2 || fail "an image was lost to a slip of the hand"
mkfifo commands
qemu-io kept.qcow2 <commands >held 2>&1 &
holder=$!
others+=("$holder")
exec {holding}>commands
echo "read 0 512" >&"$holding"
wait_for 20 grep -q "read 512/512" held || fail "qemu-io does not hold the image"
! "$BYRE" create -q -f qcow2 kept.qcow2 2M 2>log || fail "an image in use was overwritten"
grep -q 'Failed to get' log || { cat log; fail "not refused for its lock"; }
cmp kept.qcow2 copy.qcow2 || fail "an image in use was changed"
exec {holding}>&-
wait "$holder" || fail "qemu-io"
! "$BYRE" create -f qcow2 -o encrypt.format=luks luks.qcow2 1M >log 2>&1 ||
	fail "an encrypted image was promised"
grep -q 'Encrypted images are not supported' log || fail "encryption is not refused by name"
[ ! -e luks.qcow2 ] || fail "what was refused is there"

# Preallocation of what cannot be there takes little memory.
( ulimit -v 1500000 && "$BYRE" create -q -f qcow2 -o preallocation=metadata big.qcow2 1T ) ||
	fail "metadata of 1 TiB"
qemu-img check -q big.qcow2 || fail "metadata of 1 TiB: check"
[ "$(stat -c %s big.qcow2)" -gt $((1 << 40)) ] || fail "metadata of 1 TiB: not all mapped"
rm big.qcow2

# Whole for the old QEMU, and its space allocated where that was asked for.
for options in '' preallocation=metadata preallocation=falloc preallocation=full,cluster_size=4k \
	extended_l2=on compat=0.10 refcount_bits=1,preallocation=full,cluster_size=512; do
	"$BYRE" create -q -f qcow2 ${options:+-o $options} new.qcow2 5M
	qemu-img check -q new.qcow2 || fail "create -o $options: check"
	blocks=$(stat -c %b new.qcow2)
	case $options in
	*falloc* | *full*) [ "$blocks" -ge 10240 ] || fail "create -o $options: $blocks blocks" ;;
	*) [ "$blocks" -lt 1000 ] || fail "create -o $options: $blocks blocks" ;;
	esac
	"$qemu10" qemu-io -c 'write -P 7 1M 1M' -c 'read -P 7 1M 1M' -c 'read -P 0 2M 1M' \
		new.qcow2 >log || { cat log; fail "create -o $options: qemu-io"; }
	! grep -q failed log || { cat log; fail "create -o $options: content"; }
	qemu-img check -q new.qcow2 || fail "create -o $options: check after writing"
done
echo "$compared compared"
