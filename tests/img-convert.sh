#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long tsan-long
# limit: 2400
# takes: 60
# byre convert says what qemu-img convert says, shows progress and ends as it does, and makes the
# same image: size, format, content, and what is data, zeros or in the backing file.
. "$(dirname "$0")/lib.sh"
. "$here/reference.bash"
cd "$W"

# ---- images ----

q create -f qcow2 base.qcow2 4M
io base.qcow2 'write -P 1 0 128k' 'write -P 2 1M 64k' 'write -z 2M 64k'
q snapshot -c first base.qcow2
io base.qcow2 'write -P 3 64k 64k' 'write -P 4 3M 4k'
q snapshot -c second base.qcow2
io base.qcow2 'write -P 5 3500k 20k'
q create -f qcow2 -b base.qcow2 -F qcow2 top.qcow2 8M
io top.qcow2 'write -P 6 64k 64k' 'write -z 1M 128k' 'write -P 7 6M 64k' 'write -P 8 7000k 3k' \
	'write -c -P 9 5M 64k'
q create -f qcow2 -b base.qcow2 -F qcow2 same.qcow2
q create -f qcow2 -b base.qcow2 -F qcow2 brief.qcow2 1000k
q create -f qcow2 -b top.qcow2 -F qcow2 over.qcow2 6M
io over.qcow2 'write -P 6 65k 3k' 'write -z 3M 128k'
q create -f qcow2 empty.qcow2 0
q create -f qcow2 blank.qcow2 3M
q create -f qcow2 -o preallocation=metadata prealloc.qcow2 4M
q create -f qcow2 -o extended_l2=on sub.qcow2 4M
io sub.qcow2 'write -P 1 2k 2k' 'write -P 2 100k 4k' 'write -z 64k 8k' 'write -P 3 1M 3M'
q create -f qcow2 -o cluster_size=2M large.qcow2 16M
io large.qcow2 'write -P 1 0 4k' 'write -P 2 5M 3M'
q create -f qcow2 -o data_file=data.raw,data_file_raw=on outside.qcow2 3M
io outside.qcow2 'write -P 1 1M 64k'
q create -f qcow2 marked.qcow2 3M
"$qemu10" qemu-img bitmap --add marked.qcow2 first
"$qemu10" qemu-img bitmap --add marked.qcow2 second
truncate -s 5M sparse.raw
"$qemu10" qemu-io -f raw -c 'write -P 1 8k 4k' -c 'write -P 2 1030k 1M' -c 'write -P 3 4000k 512' \
	sparse.raw >/dev/null
head -c 700 /dev/urandom >odd.raw
head -c 3000000 /dev/urandom >full.raw
: >void.raw
python3 - <<'END_PYTHON'
# Zeros of all lengths between data.
import random
r = random.Random(7)
with open("zeros.raw", "wb") as f:
    while f.tell() < 6 << 20:
        f.write(bytes([r.randrange(1, 256)]) * (r.randrange(1, 20) * 512))
        f.write(bytes(r.choice([512, 1024, 4096, 8192, 12288, 65536, 131072, 300 * 512])))
    f.truncate(6 << 20)
END_PYTHON
q create -f qcow2 squeezed.qcow2 4M
io squeezed.qcow2 'write -c -P 1 0 64k' 'write -c -P 2 64k 64k' 'write -c -P 3 128k 64k'
cp base.qcow2 unmapped.qcow2
cp top.qcow2 unread.qcow2
spoil unmapped.qcow2 20 entry
spoil unread.qcow2 80 data
spoil squeezed.qcow2 1 data

# Where holes are must not change between two looks. Space that is allocated and was never written
# counts as data once somebody has read it; so there is none.
for image in *.qcow2 *.raw; do
	cp --sparse=always "$image" copied
	mv copied "$image"
done
sync ./*

# ---- one conversion by both ----

cat >describe.py <<'END_PYTHON'
import json, os, subprocess, sys
reference = sys.argv[1]

def ask(command, *arguments):
    run = subprocess.run([reference, "qemu-img", command, "-U", "--output=json", *arguments],
                         stdout=subprocess.PIPE, check=True)
    return json.loads(run.stdout)

def describe(file):
    info = ask("info", file)
    kind = info["format"]
    print(f"{file}: {kind}")
    for k in "virtual-size", "backing-filename", "backing-filename-format", "format-specific":
        print(k, info.get(k))
    runs = []
    for r in ask("map", "-f", kind, file):
        # Where nothing is stored it does not matter how it is not stored.
        what = {k: r.get(k) for k in ("data", "zero", "depth", "compressed")}
        if r["zero"] and kind == "raw":
            what["data"] = False
        # What was not written of a cluster is a hole in its file.
        if kind == "qcow2" and what["data"]:
            what["zero"] = False
        if runs and runs[-1][2] == what:
            runs[-1][1] += r["length"]
        else:
            runs.append([r["start"], r["length"], what])
    for r in runs:
        print(*r)

for line in sys.stdin:
    if os.path.exists(line.rstrip()):
        describe(line.rstrip())
    print(".", flush=True)
END_PYTHON

# describe FILE: all that a guest or qemu-img map sees of it, but where in the file it lies. One
# process answers for all files: to start one for each takes longer than the work.
coproc python3 describe.py "$qemu10"
describer=("${COPROC[@]}")
describe()
{
	local line=
	echo "$1" >&"${describer[1]}"
	while read -r line <&"${describer[0]}" && [ "$line" != . ]; do
		echo "$line"
	done
	[ "$line" = . ] || fail "describe.py has ended"
}

# setup COMMAND: makes the target before each of the two; for -n.
setup=:

# convert ARGUMENTS...: both say the same, and make the same image, or both fail.
convert()
{
	compared=$((compared + 1))
	rm -f new data.new wanted
	$setup
	outcome want "$qemu10" qemu-img convert "$@"
	if grep -q 'status 0' want; then
		describe new >want.made
		"$qemu10" qemu-img convert -O raw new wanted
	fi
	rm -f new data.new
	$setup
	outcome got bin/qemu-img convert "$@"
	diff want got >diff || is_known_of_older convert "$@" ||
		{ cat diff >&2; fail "convert $* (< QEMU, > byre)"; }
	grep -q 'status 0' got || return 0
	describe new >got.made
	diff want.made got.made >&2 || fail "convert $*: not the same image (< QEMU, > byre)"
	case $(head -n 1 got.made) in
	"new: qcow2") qemu-img check -q new || fail "convert $*: check" ;;
	esac
	"$qemu10" qemu-img compare -q -F raw new wanted ||
		fail "convert $*: not the same content"
}

# ---- plain copies ----

while read -r options; do
	for image in base top same empty blank prealloc sub large outside; do
		# shellcheck disable=SC2086  # words
		convert $options $image.qcow2 new
	done
done <<'END_TABLE'

-O qcow2
-S 64k -p
-O qcow2 -S 0
-O qcow2 -W -m 4 -o cluster_size=4k
-O qcow2 -o extended_l2=on -t none -T none
END_TABLE
while read -r options; do
	for image in sparse odd full void zeros; do
		# shellcheck disable=SC2086  # words
		convert -f raw $options $image.raw new
	done
done <<'END_TABLE'

-p
-O qcow2
-S 0 -W -m 16
-S 512
-S 8k -m 1
-S 12k
-S 64k
-S 1M
-O qcow2 -S 512
-O qcow2 -S 64k
-O qcow2 -S 0
-t none -T none
-t writethrough
-t directsync
-t unsafe
-r 1G
-O qcow2 -o preallocation=metadata
-O qcow2 -o preallocation=full
-o preallocation=full
-O qcow2 -o data_file=data.new
-O qcow2 -o compat=0.10
-O qcow2 -o cluster_size=512,refcount_bits=1
END_TABLE

# ---- compressed copies ----

while read -r options; do
	for image in base.qcow2 top.qcow2 blank.qcow2 sub.qcow2 odd.raw full.raw zeros.raw; do
		# shellcheck disable=SC2086  # words
		convert -c -O qcow2 $options $image new
	done
done <<'END_TABLE'

-W -m 8
-o compression_type=zstd
-S 0 -o cluster_size=4k
-o extended_l2=on -t none -T none
-o compat=0.10
END_TABLE

# ---- what is said ----

while read -r options; do
	# shellcheck disable=SC2086  # words
	convert $options
done <<'END_TABLE'

sparse.raw
sparse.raw new
-p sparse.raw new
-q -p sparse.raw new
-p full.raw new
-p top.qcow2 new
-O foo sparse.raw new
-O vdx sparse.raw new
-O qcow2 -o foo=1 sparse.raw new
-O qcow2 -o cluster_size=3 sparse.raw new
-O qcow2 -o cluster_size=x sparse.raw new
-O qcow2 -o size=3M sparse.raw new
-O qcow2 -o size=1k sparse.raw new
-O qcow2 -o , sparse.raw new
-o size=3M sparse.raw new
-o foo=1 sparse.raw new
-o preallocation=foo sparse.raw new
-o preallocation=metadata sparse.raw new
-O qcow2 -o preallocation=foo sparse.raw new
-n sparse.raw nowhere.raw
-n -O qcow2 sparse.raw void.raw
-n base.qcow2 odd.raw
-n base.qcow2 void.raw
-c sparse.raw new
-c -C sparse.raw new
-S 4k -C sparse.raw new
-C -S 4k -c --salvage sparse.raw new
--salvage -C sparse.raw new
--target-image-opts sparse.raw new
--target-image-opts -n sparse.raw new
--target-image-opts -n sparse.raw driver=raw,file.filename=nowhere
-n -o size=3M sparse.raw new
--target-is-zero sparse.raw new
-S 100 sparse.raw new
-S x sparse.raw new
-S -1 sparse.raw new
-S 1G sparse.raw new
-S 16M sparse.raw new
-S 33M sparse.raw new
-m 0 sparse.raw new
-m 17 sparse.raw new
-m x sparse.raw new
-m 1k sparse.raw new
-m -1 sparse.raw new
-r x sparse.raw new
-r 0 sparse.raw new
-r -1 sparse.raw new
-r 9E sparse.raw new
-T foo sparse.raw new
-T foo nowhere.raw new
-t foo sparse.raw new
-t foo nowhere.raw new
-l nope base.qcow2 new
-l 1 base.qcow2 new
-l first base.qcow2 new
-l 2 -O qcow2 base.qcow2 new
-l snapshot.foo=1 base.qcow2 new
-l snapshot.name=second base.qcow2 new
-l snapshot.id=1,snapshot.name=first base.qcow2 new
-l snapshot.id=1,snapshot.name=second base.qcow2 new
-l first sparse.raw new
-l first base.qcow2 base.qcow2 new
-l snapshot.name=first base.qcow2 base.qcow2 new
-O qcow2 -B base.qcow2 top.qcow2 new
-O qcow2 -B base.qcow2 -F qcow2 top.qcow2 new
-p -O qcow2 -B base.qcow2 -F qcow2 top.qcow2 new
-O qcow2 -B base.qcow2 -F qcow2 same.qcow2 new
-O qcow2 -B base.qcow2 -F qcow2 base.qcow2 new
-O qcow2 -B base.qcow2 -F qcow2 sparse.raw new
-O qcow2 -B full.raw -F raw zeros.raw new
-O qcow2 -S 0 -B base.qcow2 -F qcow2 top.qcow2 new
-c -O qcow2 -B brief.qcow2 -F qcow2 over.qcow2 new
-O qcow2 -B brief.qcow2 -F qcow2 base.qcow2 new
-O qcow2 -B odd.raw -F raw base.qcow2 new
-O qcow2 -o extent_size_hint=1M sparse.raw new
-o extent_size_hint=0 sparse.raw new
-O qcow2 -F qcow2 top.qcow2 new
-O qcow2 -B nowhere -F qcow2 top.qcow2 new
-O qcow2 -B base.qcow2 -F foo top.qcow2 new
-O qcow2 -B base.qcow2 -F raw top.qcow2 new
-O qcow2 -B base.qcow2 -F qcow2 sparse.raw sparse.raw new
-O qcow2 -o backing_file=base.qcow2 top.qcow2 new
-O qcow2 -o backing_file=base.qcow2,backing_fmt=qcow2 top.qcow2 new
-O qcow2 -o backing_file=base.qcow2 -F qcow2 top.qcow2 new
-B base.qcow2 -F qcow2 top.qcow2 new
-B base.qcow2 top.qcow2 new
-F qcow2 top.qcow2 new
-n -B base.qcow2 -O qcow2 top.qcow2 nowhere
--bitmaps -O qcow2 sparse.raw new
--bitmaps -O raw base.qcow2 new
--skip-broken-bitmaps -O raw base.qcow2 new
--bitmaps base.qcow2 base.qcow2 new
-O foo -o help
--target-image-opts -n -o help
-c -O qcow2 -o preallocation=full sparse.raw new
sparse.raw nowhere/new
-O qcow2 sparse.raw nowhere/new
nowhere.raw new
-f qcow2 sparse.raw new
-f foo sparse.raw new
-q sparse.raw nowhere/new
-p nowhere.raw new
-p sparse.raw nowhere/new
-f raw --image-opts driver=raw,file.filename=sparse.raw new
--image-opts driver=raw,file.filename=sparse.raw new
--image-opts driver=raw,offset=1M,size=512k,file.filename=sparse.raw new
--image-opts driver=raw,file.aio=native,file.filename=sparse.raw new
--image-opts -T none driver=raw,file.aio=native,file.filename=sparse.raw new
--image-opts -T directsync driver=qcow2,file.aio=native,file.filename=top.qcow2 new
--image-opts -T none driver=raw,file.aio=native,cache.direct=off,file.filename=sparse.raw new
--source-image-opts sparse.raw new
sparse.raw sparse.raw
-O qcow2 base.qcow2 base.qcow2
-x
--foo
--object foo sparse.raw new
odd.raw sparse.raw odd.raw new
-O qcow2 full.raw base.qcow2 sparse.raw new
-p zeros.raw top.qcow2 new
-U top.qcow2 new
--salvage top.qcow2 new
unmapped.qcow2 new
-p unmapped.qcow2 new
unread.qcow2 new
squeezed.qcow2 new
-c -O qcow2 squeezed.qcow2 new
-O qcow2 unread.qcow2 new
-O qcow2 -t none -S 0 unread.qcow2 new
END_TABLE
convert sparse.raw ''
convert '' new

# What the target says of its backing file counts, whatever that one's name says of itself.
named()
{
	echo "json:{\"driver\":\"$1\",\"file\":{\"driver\":\"file\",\"filename\":\"$2\"}}"
}
convert -O qcow2 -B "$(named raw base.qcow2)" -F qcow2 top.qcow2 new
convert -O qcow2 -B "$(named raw sparse.raw)" -F qcow2 top.qcow2 new
convert -O qcow2 -B "$(named qcow2 full.raw)" -F raw full.raw new
convert -O qcow2 -B 'json:{"driver":"file","filename":"sparse.raw"}' -F raw top.qcow2 new

# ---- into a target that is there ----

raw_target()
{
	head -c 9M /dev/zero | tr '\0' '\377' >new
}
qcow2_target()
{
	q create -f qcow2 new 9M
	io new 'write -P 255 0 9M'
}
overlay_target()
{
	q create -f qcow2 -b base.qcow2 -F qcow2 new 9M
	io new 'write -P 255 0 1M'
}
for image in base.qcow2 top.qcow2 zeros.raw odd.raw; do
	setup=raw_target
	convert -n $image new
	convert -n -S 0 $image new
	convert -n -p -W $image new
	convert -n --target-image-opts $image driver=raw,file.filename=new
	setup=qcow2_target
	convert -n -O qcow2 $image new
	convert -n -O qcow2 -t none -S 64k $image new
	convert -n --target-image-opts $image driver=qcow2,file.filename=new
done
setup=qcow2_target
for option in read-only=on force-share=on file.read-only=on; do
	convert -n --target-image-opts void.raw "driver=qcow2,$option,file.filename=new"
	convert -n -p --target-image-opts base.qcow2 "driver=qcow2,$option,file.filename=new"
done
convert -n --bitmaps -O qcow2 marked.qcow2 new
setup=overlay_target
convert -n -O qcow2 -B base.qcow2 top.qcow2 new
convert -n -O qcow2 top.qcow2 new
setup=:

# ---- options at random, one of each kind ----

# one_of WORDS...: adds those of one of the arguments, or nothing.
one_of()
{
	local n=$((RANDOM % (2 * $#)))
	# shellcheck disable=SC2206  # words
	[ $n -ge $# ] || options+=(${@:n + 1:1})
}

RANDOM=${SEED:-1}
sources=(base.qcow2 top.qcow2 same.qcow2 brief.qcow2 over.qcow2 empty.qcow2 sub.qcow2 large.qcow2
	outside.qcow2 marked.qcow2 sparse.raw odd.raw full.raw void.raw zeros.raw)
for ((i = 0; i < 40; i++)); do
	options=()
	one_of -c
	one_of -W "-m 1" "-m 16" "-W -m 3"
	one_of "-S 0" "-S 512" "-S 64k" "-S 1M"
	one_of "-t none" "-t writeback" "-t writethrough" "-t directsync" "-t unsafe"
	one_of "-T none" "-T writethrough" "-T directsync"
	one_of -U -q --salvage "-r 4G"
	one_of --bitmaps "-l first" "-l 2" --skip-broken-bitmaps
	one_of "-o cluster_size=4k" "-o cluster_size=2M" "-o extended_l2=on" "-o compat=0.10" \
		"-o compression_type=zstd" "-o refcount_bits=1" "-o preallocation=metadata" \
		"-o lazy_refcounts=on"
	for ((n = 1 + RANDOM % 5 / 4; n > 0; n--)); do
		options+=("${sources[RANDOM % ${#sources[@]}]}")
	done
	convert -O qcow2 "${options[@]}" new
done
echo "$compared compared"
