#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long tsan-long
# limit: 600
# The image tools on exports of NBD servers (qemu-nbd, nbdkit, byre serve) say and do what qemu-img
# does: names, errors, chains, holes. What is written arrives. byre serves what another server has.
. "$(dirname "$0")/lib.sh"
. "$here/reference.bash"
need qemu-nbd
cd "$W"
S=$W/s.sock

# like ARGUMENTS...: as same(), but for the lines that only QEMU says (doc/COMPATIBILITY.md).
like()
{
	compared=$((compared + 1))
	outcome "$W/want" "$qemu10" qemu-img "$@"
	outcome "$W/got" "$W/bin/qemu-img" "$@"
	sed -i -E '/^server reported: |^Path must be less |GLib: /d' "$W/want"
	is_known_of_older "$@" || diff "$W/want" "$W/got" >&2 || fail "qemu-img $*: see above"
}

# ---- names and errors ----
truncate -s 1M d.raw
printf x | dd of=d.raw bs=1 seek=100000 conv=notrunc status=none
serve_qemu s d.raw -f raw -r
at="nbd+unix:///exp?socket=$S"
unix='"type":"unix","path":"'$S'"'

if [ "$qemu10" != env ]; then           # the words are those of QEMU 10
	while IFS= read -r name; do
		like info "$name"
	done <<END
$at
nbd:unix:$S:exportname=exp
json:{"driver":"nbd","server":{$unix},"export":"exp"}
json:{"driver":"nbd","server":{$unix},"export":"exp","read-only":true}
json:{"driver":"raw","file":{"driver":"nbd","path":"$S","export":"exp"}}
json:{"driver":"raw","offset":512,"file":{"driver":"nbd","server":{$unix},"export":"exp"}}
json:{"driver":"qcow2","file":{"driver":"nbd","server":{$unix},"export":"exp"}}
json:{"driver":"nbd","server":"x"}
json:{"driver":"nbd","path":1}
json:{"driver":"nbd","server":{"type":"inet","host":"localhost","port":1}}
nbd+unix:///exp?socket=$W/nobody
nbd+unix:///no?socket=$S
nbd+unix://?socket=$S
nbd+unix:///x
nbd+unix://host/x?socket=/a
$at&foo=1
nbd+unix:///exp?foo=$S
nbd://localhost:1/x
nbd://
nbd://:1/x
nbd:///x
nbd://localhost:/x
nbd://localhost:abc/x
nbd://localhost:1//x/y
nbd://localhost:1/x#frag
nbd://localhost:1/%zz
nbd://localhost:1/a%20b
nbd://localhost/x?socket=/a
nbd+tcp://[::1]:1/x
nbd+foo://x
nbd:
nbd:localhost
nbd:localhost:
nbd:localhost:1
nbd:[::1]:1
nbd:[::1
nbd:localhost:1:exportname=q
nbd:unix:$S:exportname=
nbd:unix:$S:exportname=exp:x
nbd:unix:/nosuch/$(printf 'x%.0s' {1..120})
END
	while IFS= read -r options; do
		like info --image-opts "$options"
	done <<END
driver=nbd
driver=raw,file.driver=nbd
file.driver=nbd,file.path=$S,file.export=exp
driver=nbd,path=$S,host=x
driver=nbd,path=$S,port=1
driver=nbd,port=1
driver=nbd,host=localhost,port=1
driver=nbd,server.type=unix,server.path=$S,path=/x
driver=nbd,server.type=unix
driver=nbd,server.type=foo
driver=nbd,server.path=$S
driver=nbd,server.type=inet,server.host=localhost
driver=nbd,server.type=unix,server.path=$S,server.foo=1
driver=nbd,path=$S,export=exp,foo=1
driver=nbd,path=$S,export=exp,filename=nbd://x
file.driver=nbd,file.filename=$at
driver=nbd,path=$S,export=exp,reconnect-delay=x
driver=nbd,path=$S,export=exp,reconnect-delay=5,open-timeout=-1
driver=nbd,path=$S,export=exp,tls-creds=foo
driver=nbd,path=$S,export=exp,x-dirty-bitmap=foo
END
	like info -f nbd d.raw
	like info -f nbd "$at"
	like info -f file "$at"
	like info -f qcow2 "$at"
	like info --output=json "$at"
fi

# ---- every command, also on chains ----
q create -q -f qcow2 -b d.raw -F raw relative.qcow2
serve_qemu r relative.qcow2 -f raw -r
relative="nbd+unix:///exp?socket=$W/r.sock"
q create -f qcow2 -b "$at" -F raw top.qcow2
q create -f qcow2 -u -b "nbd:unix:$S:exportname=no" -F raw lost.qcow2 1M
q create -f qcow2 -b "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"nbd\",\"server\":{$unix},
	\"export\":\"exp\"}}" -F raw described.qcow2
for image in "$at" "$relative" top.qcow2 lost.qcow2 described.qcow2; do
	for command in map "map --output=json" check "measure -O qcow2" "compare d.raw"; do
		# shellcheck disable=SC2086  # words
		like $command "$image"
	done
	[ "$qemu10" = env ] || like info --backing-chain "$image"
	[ "$qemu10" = env ] || like info --output=json "$image"
done
for name in "$at" "nbd:unix:$S:exportname=exp" "nbd:unix:$S:exportname=no"; do
	rm -f new.qcow2
	like create -f qcow2 -b "$name" -F raw new.qcow2
done

# ---- what is written arrives ----
q create -q -f qcow2 w.qcow2 64M
serve_qemu w w.qcow2 -f qcow2 --discard=unmap --detect-zeroes=unmap
"$BYRE" bench -f raw -w -c 2000 -d 32 -s 8192 --pattern 7 -t none \
	"nbd+unix:///exp?socket=$W/w.sock" >/dev/null
truncate -s 64M want.raw
head -c $((2000 * 8192)) /dev/zero | tr '\0' '\7' | dd of=want.raw conv=notrunc status=none
"$BYRE" compare -q want.raw "nbd+unix:///exp?socket=$W/w.sock" ||
	fail "what was written over NBD is not there"

# ---- images made in an export ----
head -c 1M /dev/urandom >new.raw
serve_qemu n new.raw -f raw
new="nbd+unix:///exp?socket=$W/n.sock"
while IFS= read -r arguments; do
	# shellcheck disable=SC2086  # words
	[ "$qemu10" = env ] || like create $arguments
	like info "$new"
	like check "$new"
done <<END
-f raw $new 100k
-f raw $new 10M
-f raw nbd+unix:///exp?socket=$W/nobody 1M
-f qcow2 $new 100k
-f qcow2 -o preallocation=metadata $new 200k
-f qcow2 -o preallocation=full $new 10M
-f qcow2 -o cluster_size=512 $new 1G
END
"$BYRE" create -q -f qcow2 -o cluster_size=4k "$new" 2M
"$BYRE" bench -f qcow2 -w -c 50 -d 4 -s 8192 --pattern 9 "$new" >/dev/null
"$BYRE" check -q "$new" || fail "a qcow2 written in an export is damaged"
if "$BYRE" bench -f qcow2 -w -c 200 -d 4 -s 8192 --pattern 9 "$new" >"$W/full" 2>&1; then
	fail "more was written than the export has"
fi
grep -q "No space left" "$W/full" || fail "a full export is told otherwise"
"$BYRE" check -q "$new" || fail "a qcow2 that filled its export is damaged"

# ---- other servers ----
start_byre mine -r --name exp d.raw
"$BYRE" compare -q "$(uri mine exp)" d.raw || fail "byre's own server gives something else"
start_byre again --loops 2 -r --name exp "$(uri mine exp)"
"$BYRE" compare -q "$(uri again exp)" d.raw || fail "an export of an export is something else"
"$BYRE" bench -c 5000 -d 64 "$(uri again exp)" >/dev/null
stop_byre again

# An image that is served names an export only where that is allowed.
byre_refuses "is an NBD export that is not allowed" -r top.qcow2
byre_refuses "allow: No valid URL" --allow nbd:///x -r top.qcow2
start_byre allowed -r --allow "nbd+unix:///?socket=$S" --name exp top.qcow2
"$BYRE" compare -q "$(uri allowed exp)" d.raw || fail "an overlay over NBD gives something else"
stop_byre allowed
stop_byre mine
byre_refuses "needs a name" -r "$at"
byre_refuses "Permission denied" --name exp "$at"

# A server for one client, though it says that it takes several.
qemu-nbd -t -x exp -k "$W/one.sock" -e 1 -r -f raw d.raw >"$W/one.log" 2>&1 </dev/null &
others+=($!)
wait_for 20 is_listening "$W/one.sock" || fail "qemu-nbd does not listen"
start_byre loops --loops 4 -r --name exp "nbd+unix:///exp?socket=$W/one.sock"
"$BYRE" compare -q "$(uri loops exp)" d.raw || fail "four loops with one connection"
stop_byre loops

# ---- a guest's load: copy on write from an export, and a qcow2 in an export ----
q create -f qcow2 -b "$at" -F raw cow.qcow2
start_byre cow --loops 2 --name exp --allow "nbd+unix:///?socket=$S" cow.qcow2
cp d.raw cow.raw
loads=()
for part in 0 1 2 3; do
	qemu-img bench -f raw -w -c 20 -d 8 -s 5000 -o $((part * 250000)) --pattern $((part + 1)) \
		"$(uri cow exp)" >/dev/null &
	loads[part]=$!
	head -c 100000 /dev/zero | tr '\0' "\\$((part + 1))" |
		dd of=cow.raw oflag=seek_bytes seek=$((part * 250000)) conv=notrunc status=none
done
for load in "${loads[@]}"; do
	wait "$load" || fail "a load on an overlay over NBD"
done
"$BYRE" compare -q "$(uri cow exp)" cow.raw || fail "copy on write from NBD"
stop_byre cow
q check cow.qcow2 >/dev/null || fail "an overlay over NBD is damaged"

truncate -s 32M inside.raw
serve_qemu inside inside.raw -f raw
inside="nbd+unix:///exp?socket=$W/inside.sock"
"$BYRE" create -q -f qcow2 "$inside" 16M
start_byre qcow2 --loops 2 --name exp "$inside"
"$BYRE" bench -f raw -w -c 2000 -d 32 -s 6000 --pattern 5 "$(uri qcow2 exp)" >/dev/null
stop_byre qcow2
"$BYRE" check -q "$inside" || fail "a qcow2 that was served from an export is damaged"
truncate -s 16M want.raw
head -c 12000000 /dev/zero | tr '\0' '\5' | dd of=want.raw conv=notrunc status=none
dd if=/dev/zero of=want.raw oflag=seek_bytes seek=12000000 bs=4777216 count=1 conv=notrunc \
	status=none
"$BYRE" compare -q want.raw "$inside" || fail "a qcow2 in an export has other content"

# ---- a server that dies ----
serve_qemu dies d.raw -f raw -r
start_byre over -r --name exp "nbd+unix:///exp?socket=$W/dies.sock"
kill -KILL "${others[-1]}"
wait "${others[-1]}" 2>/dev/null || true
if "$BYRE" compare "$(uri over exp)" d.raw >"$W/dead" 2>&1; then
	fail "a dead server's data was read"
fi
wait_for 5 grep -q "connection to .* is lost" "$W/over.log" || fail "the loss was not told"
stop_byre over

# One that comes back: requests wait for it.
serve_qemu back d.raw -f raw -r
start_byre waits -r --name exp "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"nbd\",
	\"path\":\"$W/back.sock\",\"export\":\"exp\",\"reconnect-delay\":60}}"
kill -KILL "${others[-1]}"
wait "${others[-1]}" 2>/dev/null || true
"$BYRE" compare -q "$(uri waits exp)" d.raw &
compare=$!
sleep 0.5
rm -f back.sock
serve_qemu back d.raw -f raw -r
wait $compare || fail "requests did not wait for a server that came back"
stop_byre waits

if command -v nbdkit >/dev/null; then
	# kit NAME ARGUMENTS...: nbdkit on $W/NAME.sock.
	kit()
	{
		local name=$1
		shift
		nbdkit -f -U "$W/$name.sock" "$@" >"$W/$name.log" 2>&1 </dev/null &
		others+=($!)
		wait_for 20 is_listening "$W/$name.sock" || fail "nbdkit does not listen"
	}
	kit blocks --filter=blocksize-policy --filter=cow file d.raw blocksize-minimum=4096 \
		blocksize-preferred=4096 blocksize-maximum=64K blocksize-error-policy=error
	"$BYRE" compare -q "nbd+unix:///?socket=$W/blocks.sock" d.raw || fail "blocks of 4096 bytes"
	"$BYRE" bench -f raw -w -c 500 -d 16 -s 1536 "nbd+unix:///?socket=$W/blocks.sock" \
		>/dev/null ||
		fail "writes of parts of blocks"
	kit slow --filter=delay --filter=noparallel file d.raw rdelay=1ms
	"$BYRE" compare -q "nbd+unix:///?socket=$W/slow.sock" d.raw || fail "a slow server"
	kit broken --filter=error file d.raw error=EIO error-pread-rate=100%
	if "$BYRE" compare "nbd+unix:///?socket=$W/broken.sock" d.raw >"$W/broken" 2>&1; then
		fail "errors of the server are no errors"
	fi
	grep -q "Input/output error" "$W/broken" || fail "the error is another one"
	printf 'alice:%064d\n' 7 >keys
	chmod 600 keys
	kit tls --tls=require --tls-psk="$W/keys" file d.raw
	tls="nbds+unix://alice@/?socket=$W/tls.sock&tls-psk-file=$W/keys"
	"$BYRE" compare -q "$tls" d.raw || fail "over TLS"
	for wrong in "${tls/alice/bob}" "nbd+unix:///?socket=$W/tls.sock"; do
		if "$BYRE" info "$wrong" 2>"$W/wrong"; then
			fail "TLS let everybody in"
		fi
	done
	kit simple --no-sr --filter=noextents file d.raw
	"$BYRE" compare -q "nbd+unix:///?socket=$W/simple.sock" d.raw || fail "simple replies"
fi
echo "$compared commands are like QEMU's"
