#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: quick default long
# limit: 1800
# takes: 25
# byre info says what qemu-img info says, as text and as JSON: of every feature of qcow2, of chains,
# of names as json: and --image-opts, of damage and of wrong command lines. byre create makes the
# raw images that qemu-img create makes. --untrusted stays in the folder of the image.
. "$(dirname "$0")/lib.sh"
. "$here/reference.bash"
cd "$W"
export TZ=Asia/Kathmandu                # dates are local

secret=(--object "secret,id=s,data=abc")
luks=encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10
bk()
{
	q create -f qcow2 -u -b "$1" -F raw "$2" 1M
}

# ---- images ----
truncate -s 1M a.raw
printf odd >odd.raw
: >empty
q create -f qcow2 plain.qcow2 10M
q create -f qcow2 -o compat=0.10 old.qcow2 1M
q create -f qcow2 -o lazy_refcounts=on,cluster_size=2M,refcount_bits=1 lazy.qcow2 1G
q create -f qcow2 -o compression_type=zstd,extended_l2=on,cluster_size=16k,refcount_bits=64 \
	new.qcow2 3000000
q create -f qcow2 -o cluster_size=512 empty.qcow2 0
# QEMU measures how fast it derives keys, and gives up where others keep the processor.
essiv=encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256
wait_for 60 q create -f qcow2 "${secret[@]}" -o "$luks,$essiv,encrypt.cipher-alg=aes-128" \
	essiv.qcow2 1M
q create -f qcow2 "${secret[@]}" -o encrypt.format=aes,encrypt.key-secret=s aes.qcow2 1M
wait_for 60 q create -f qcow2 "${secret[@]}" -o "$luks,data_file=luks.data" luks-data.qcow2 1M
q create -f qcow2 -o data_file=raw.data,data_file_raw=on raw-data.qcow2 1M
q create -f qcow2 -o data_file=gone.data data.qcow2 1M
"$qemu10" qemu-img bitmap --add data.qcow2 one
rm gone.data
q create -f qcow2 -b a.raw -F raw base.qcow2
q create -f qcow2 -b base.qcow2 -F qcow2 chain.qcow2
q snapshot -c first chain.qcow2
q snapshot -c "a long name of a snapshot" chain.qcow2
"$qemu10" qemu-img bitmap --add -g 128k chain.qcow2 one
"$qemu10" qemu-img bitmap --add --disable chain.qcow2 "two words"
q create -f qcow2 snaps.qcow2 1M
q snapshot -c abc snaps.qcow2
q snapshot -c def snaps.qcow2
q create -f qcow2 bitmaps.qcow2 1M
"$qemu10" qemu-img bitmap --add bitmaps.qcow2 one
"$qemu10" qemu-img bitmap --add --disable bitmaps.qcow2 two
mkdir sub
bk x.raw sub/x.qcow2
bk ./x.raw sub/dot.qcow2
bk "$W/a.raw" sub/absolute.qcow2
bk ../a.raw sub/up.qcow2
bk file:a.raw sub/protocol.qcow2
bk 'json:{"driver":"raw","file":{"driver":"file","filename":"a.raw"},"offset":512}' json.qcow2
bk $'\xc3\xa9\xff\x7f\t"\\/\xf0\x9f\x98\x80\xe2\x82x' strange.qcow2
bk nbd://localhost/x remote
q create -f qcow2 loop.qcow2 1M
"$qemu10" qemu-img rebase -u -b loop.qcow2 -F qcow2 loop.qcow2

images=(*.raw *.qcow2 sub/*.qcow2 empty gone "" sub ./gone:x foo:x file:a.raw file:gone file:)
for image in "${images[@]}"; do
	same info "$image"
	same info --output=json "$image"
	same info --backing-chain --output=json -U "$image"
done
same info remote                        # its chain would need a server
mv a.raw b.raw
same info -b chain.qcow2
same info -b "json:{'driver':'raw','offset':512,'file':{'filename':'b.raw'}}"
mv b.raw a.raw

# ---- names ----
while IFS= read -r json; do
	same info "json:$json"
done <<'END'
x
{"a"}
{"a":}
{"a":1,}
{a:1}
{"a":1}x
{"a":tru}
{"a":1 "b":2}
{"a":"\q"}
{"a":"x
{"a":1,"a":2}
"text"
{"a":[1,2
{"a":[1 2]}
{'a':1}
{"a":01}
{"a":-}
{"a":1e}
{1:2}
[]
{
{}
{"driver":"foo"}
{"driver":"qcow2"}
{"driver":5,"file":{"filename":"plain.qcow2"}}
{"driver":"","file":{"filename":"plain.qcow2"}}
{"file.driver":"file","file":{"filename":"plain.qcow2"}}
{"driver":"q\u0063ow2","file":{"filename":"plain.qcow2"}}
{"driver":"qcow2","file":"foo"}
{"driver":"qcow2","file.filename":"nbd://foo"}
{"driver":"raw","filename":"a.raw"}
{"driver":"raw","file":{"driver":"","filename":"a.raw"}}
{"driver":"raw","file":{"driver":"file","filename":3}}
{"driver":"raw","file":{"driver":"file","filename":"gone"}}
{"driver":"raw","file":{"driver":"file","filename":"\ud83d\ude00"}}
{"driver":"raw","file":{"driver":"file","filename":"\ud83d"}}
{"driver":"raw","file":{"driver":"file","filename":"a.raw","x":{"y":1}}}
{"driver":"raw","file":{"filename":"a.raw"},"size":524288,"offset":"512"}
{"driver":"raw","file":{"filename":"a.raw"},"size":1048577}
{"driver":"raw","file":{"filename":"a.raw"},"size":1000}
{"driver":"raw","file":{"filename":"a.raw"},"size":true}
{"driver":"raw","file":{"filename":"a.raw"},"size":-512}
{"driver":"raw","file":{"filename":"a.raw"},"offset":2000000}
{"driver":"raw","file":{"filename":"a.raw"},"read-only":"maybe"}
{"driver":"raw","file":{"filename":"a.raw"},"cache":{"direct":"on","x":1}}
{"driver":"raw","file":{"filename":"a.raw","read-only":false},"discard":"x"}
{"driver":"qcow2","file":{"filename":"plain.qcow2"},"l2-cache-size":"x"}
{"driver":"qcow2","file":{"filename":"plain.qcow2"},"overlap-check":"x"}
{"driver":"qcow2","file":{"filename":"plain.qcow2"},"lazy-refcounts":"x"}
{"driver":"qcow2","file":{"filename":"plain.qcow2"},"detect-zeroes":"x"}
{"driver":"qcow2","file":{"filename":"plain.qcow2","locking":"x"}}
{"driver":"qcow2","file":{"filename":"chain.qcow2"},"backing":null}
{"driver":"qcow2","file.filename":"chain.qcow2","file.locking":"off","file.aio":"io_uring"}
{"driver":"qcow2","file.filename":"chain.qcow2","l2-cache-size":1048576,"overlap-check":"all"}
{"driver":"qcow2","file.filename":"chain.qcow2","node-name":"x","read-only":true,"discard":"on"}
{"driver":"file","filename":"a.raw"}
{"driver":"file","filename":"gone"}
{"a":"\u0000"}
{"a" 1,K}
{"a":%s}
"x"K
{"a":1}}
{"driver":"raw",,"file":{"filename":"a.raw"}}
{"driver":"raw","file":{}}
{"driver":"raw","file":{"filename":true}}
{"driver":"raw","file":{"driver":5,"filename":"a.raw"}}
{"driver":["raw"],"file":{"filename":"a.raw"}}
{"file":{"filename":"a.raw"},"offset":512}
{"file":{"filename":"plain.qcow2"},"offset":512}
{"file":{"filename":"a.raw"},"l2-cache-size":512}
{"driver":"raw","file":{"filename":"a.raw"},"read-only":"yes"}
{"driver":"raw","file":{"filename":"a.raw"},"read-only":"n"}
{"driver":"raw","file":{"filename":"a.raw"},"node-name":"a b"}
{"driver":"raw","file":{"filename":"a.raw"},"node-name":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}
{"driver":"raw","file":{"filename":"a.raw","aio":"native"}}
{"driver":"raw","file":{"filename":"a.raw","aio":"native","cache":{"direct":true}}}
{"driver":"raw","file":{"filename":"a.raw","aio-max-batch":"x"}}
{"driver":"raw","file":{"filename":"a.raw"},"size":0}
{"driver":"raw","file":{"filename":"a.raw"},"size":-0}
{"driver":"raw","file":{"filename":"a.raw"},"size":5.12e2}
{"driver":"raw","file":{"filename":"a.raw"},"size":1e400}
{"driver":"raw","file":{"filename":"a.raw"},"size":18446744073709551616}
{"driver":"raw","file":{"filename":"a.raw"},"offset":"8E"}
{"driver":"qcow2","file":{"filename":"plain.qcow2"},"cache-clean-interval":-1}
END
while IFS= read -r options; do
	same info --image-opts "$options"
	same map --image-opts "$options"
done <<'END'
driver=qcow2,file.driver=file,file.filename=chain.qcow2
driver=qcow2,file.filename=plain.qcow2,file.filename=chain.qcow2
driver=qcow2,file.filename=plain.qcow2,foo=bar
driver=qcow2,file.filename=raw-data.qcow2,data-file.filename=raw.data
driver=raw,file.filename=a,,b
driver=raw,file.filename=a.raw,noread-only
driver=raw,file.filename=a.raw,
driver=raw,,file.filename=a.raw
driver=raw,=3,file.filename=a.raw
driver=raw,offset=512,file.filename=a.raw
driver=raw,offset=512,size=1k,file.filename=a.raw
driver=raw,size=10G,file.filename=a.raw
driver=raw,offset=x,file.filename=a.raw
file.filename=plain.qcow2
file.filename=plain.qcow2,foo
file.filename=gone
plain.qcow2

filename=a.raw
file=a.raw
driver=file,filename=a.raw
driver=raw,offset=+512,file.filename=a.raw
driver=raw,file.filename=a.raw,help
END
same info --image-opts $'driver=raw,offset=\t512,file.filename=a.raw'
: >x:y
same info file:x:y
same info :x
same map --image-opts \
	driver=qcow2,file.filename=chain.qcow2,backing.driver=raw,backing.file.filename=a.raw
same map --image-opts driver=qcow2,file.filename=plain.qcow2,data-file.filename=a.raw

# ---- the command line ----
same info
same info a b
same info --nonsense
same info -x
same info -f
same info --o
same info --output=xml a.raw
same info -f foo a.raw
same info -f foo gone
same info -f qcow2 a.raw
same info -f raw plain.qcow2
same info -f raw --image-opts file.filename=x
same info -f raw 'json:{"driver":"qcow2","file.filename":"plain.qcow2"}'
same info -bU -- plain.qcow2
same info plain.qcow2 --output json
same nonsense
same
for object in secret,id=s,data=x secret,id=s secret,data=x secret foo "" secret,id=1,data=x \
	secret,id=s,data=x,foo=1 secret,id=s,data=x,file=y secret,id=s,file=gone \
	secret,id=s,data=x,format=y secret,id=s,data=x,keyid=y '{"qom-type":"secret","id":"s"}' \
	'{"qom-type":5}' '{"qom-type":"secret","id":"s","data":5}' '{' \
	'{"qom-type":"secret","id":"s","data":"x"}'; do
	same info --object "$object" a.raw
done
same info --object secret,id=s,data=x --object secret,id=s,data=y a.raw

# ---- damage ----
# poked IMAGE OFFSET HEX: both judge IMAGE with these bytes changed.
poked()
{
	cp "$1" poked.qcow2
	poke poked.qcow2 "$(($2))" "$3"
	sync poked.qcow2                # what it takes on the disk changes when that is done
	same info --output=json poked.qcow2
}

# be64 FILE OFFSET
be64()
{
	python3 -c 'import sys
with open(sys.argv[1], "rb") as f:
    f.seek(int(sys.argv[2]))
    print(int.from_bytes(f.read(8), "big"))' "$1" "$2"
}

while read -r off hex; do
	poked chain.qcow2 "$off" "$hex"
done <<'END'
4 00000004
20 00000008
32 00000003
36 7fffffff
40 0000000000000200
40 7fffffffffff0000
48 0000000000000000
56 00000000
56 00010000
60 00010001
64 0000000000000001
64 7fffffffffff0000
24 8000000000000000
24 7fffffffffffffff
24 00000000000001ff
72 0000000000000001
72 0000000000000002
72 0000000000000008
72 8000000000000120
72 ffffffffffffffff
80 ffffffffffffffff
96 00000007
96 00000006
100 00000060
100 00020000
104 02
8 00000000000000ff00000400
112 e2792acaffffffff
112 e2792aca00000010
112 2385287500000010
112 0537be7700000010
END
# Bitmaps that a program has left behind are void: a warning.
poked chain.qcow2 95 00
at=$(be64 snaps.qcow2 64)
while read -r off hex; do
	poked snaps.qcow2 "at + $off" "$hex"
done <<'END'
36 ffffffff
36 00000010
36 00000008
12 ffff
14 ffff
16 ffffffff00000001
24 ffffffffffffffff
24 0000123456789abc
32 ffffffff
40 ffffffffffffffff
40 0000123456789abc
56 ffffffffffffffff
END
extension=$(python3 -c 'print(open("bitmaps.qcow2", "rb").read(65536).index(
    bytes.fromhex("2385287500000018")) + 8)')
at=$(be64 bitmaps.qcow2 $((extension + 16)))
table=$(be64 bitmaps.qcow2 "$at")
while read -r off hex; do
	poked bitmaps.qcow2 "$off" "$hex"
done <<END
$((extension)) 00000001
$((extension)) 00000003
$((extension)) 00000000
$((extension)) 00010000
$((extension + 4)) 00000001
$((extension + 8)) 0000000000000000
$((extension + 8)) 0000000000000001
$((extension + 8)) ffffffffffffffff
$((extension + 16)) 0000000000000001
$((extension + 16)) 7fffffffffff0000
$((extension + 16)) 0000000100000000
$((at)) 0000000000000001
$((at)) 0000000100000000
$((at + 8)) 00000000
$((at + 8)) 00000002
$((at + 12)) 00000001
$((at + 12)) 00000003
$((at + 12)) 00000004
$((at + 16)) 02
$((at + 17)) 08
$((at + 17)) 40
$((at + 18)) ffff
$((at + 20)) 00000008
$((at + 56)) 6f6e65
$((table)) 0000000000000002
$((table)) 0000000000010001
$((table)) 0000000100000000
END

# ---- create ----
# same_file ARGUMENTS...: the same, and the file that comes of it.
same_file()
{
	local want
	rm -f new.raw
	outcome "$W/want" "$qemu10" qemu-img create "$@"
	[ -e new.raw ] || [ "$qemu10" != env ] || return 0      # not with the installed one
	want=$(stat -c '%s bytes, %b blocks, mode %a' new.raw)
	rm -f new.raw
	same create "$@"
	[ "$(stat -c '%s bytes, %b blocks, mode %a' new.raw)" = "$want" ] ||
		fail "create $*: not $want but $(stat -c '%s bytes, %b blocks' new.raw)"
}

same_file new.raw 1M
same_file -q new.raw 1.5M
same_file new.raw 1000
same_file new.raw 0
same_file -f raw new.raw 0x1000
same_file -o preallocation=off new.raw 1M
same_file -o preallocation=falloc new.raw 1M
same_file -o preallocation=full,size=1000 new.raw
same_file -o preallocation=off,size=3k -o preallocation=falloc new.raw
same_file -- new.raw ' 1k'
same_file -o nocow=yes new.raw .5k
same_file -o extent_size_hint=4k,nocow=on,preallocation=off new.raw 1M
for arguments in "" "new.raw" "new.raw 1M x" "new.raw x" "new.raw -1" "new.raw 8E" "new.raw 7E" \
	"-f foo new.raw 1M" "-o preallocation=foo new.raw 1M" "-o foo=1 new.raw 1M" \
	"-o size=2M new.raw 1M" "-o size=x new.raw" "-o nocow=x new.raw 1M" "-o , new.raw 1M" \
	"-b a.raw new.raw 1M" "-F raw new.raw 1M" "gone/new.raw 1M" "sub 1M" "foo:x 1M" \
	"--size 1M new.raw" "new.raw x y" "-o size=8E new.raw" \
	"-o size=18446744073709551615 new.raw" "-o extent_size_hint=4G new.raw 1M" \
	"-o size=1, new.raw" "--o new.raw 1M" "-f foo -o size=1,help" \
	"--object secret new.raw 1M" "-o preallocation=metadata new.raw 1M"; do
	# shellcheck disable=SC2086  # words
	same create $arguments
done

# ---- output that nobody reads ----
# A reader that leaves is no failure to qemu-img; output that is lost is one to byre.
for i in $(seq 3000); do
	echo "write $((i * 1024)) 512"
done >writes
q create -f qcow2 -o cluster_size=512 parts.qcow2 4M
"$qemu10" qemu-io parts.qcow2 <writes >/dev/null
"$W/bin/qemu-img" map parts.qcow2 | true
for command in "info a.raw" "map parts.qcow2" "check parts.qcow2" "measure --size 1M" "--help"; do
	# shellcheck disable=SC2086  # words
	if "$BYRE" $command >/dev/full 2>lost.err; then fail "$command: its output was lost"; fi
	grep -q "could not be written" lost.err || fail "$command: no word about lost output"
done

# ---- untrusted ----
# refused COMMAND IMAGE OPTIONS...: it fails and names what it does not open.
refused()
{
	local status=0 wanted
	"$BYRE" "$1" "${@:3}" --untrusted "$2" >refused.out 2>refused.err || status=$?
	case $1 in compare) wanted=2 ;; *) wanted=1 ;; esac
	[ "$status" = $wanted ] || { cat refused.err >&2; fail "$* --untrusted: status $status"; }
	grep -qE "a\.raw|json:" refused.err || { cat refused.err >&2; fail "$* --untrusted"; }
}

"$BYRE" info --untrusted sub/up.qcow2 >/dev/null || fail "info opens a backing file"
"$BYRE" info -b --untrusted chain.qcow2 >/dev/null || fail "a chain within the folder"
for command in map check "compare sub/up.qcow2" measure "info -b"; do
	# shellcheck disable=SC2086  # words
	refused ${command%% *} sub/up.qcow2 ${command#"${command%% *}"}
done
refused map json.qcow2

# ---- locks ----
python3 - <<'END' &
import fcntl, os, signal, struct
# As a writer that shares nothing: it uses read, write and resize, and refuses the latter two.
for name in ("plain.qcow2", "a.raw"):
    fd = os.open(name, os.O_RDWR)
    for byte in (100, 101, 103, 201, 203):
        fcntl.fcntl(fd, 37, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, byte, 1, 0))
open("locked", "w").close()
signal.pause()
END
others+=($!)
wait_for 10 test -e locked || fail "no locks"
for image in plain.qcow2 a.raw; do
	same info "$image"
	same info -U "$image"
	same map "$image"
	same create "$image" 1M
done
same map chain.qcow2
same map base.qcow2
echo "$compared comparisons"
