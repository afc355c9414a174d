#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long
# limit: 2400
# takes: 60
# byre convert from, to and over exports of NBD servers (qemu-nbd, nbdkit, byre serve) says what
# qemu-img convert says, ends as it does and makes the same bytes. What reads as zeros is not sent
# as data. A server that is read-only, full, broken or gone is told of.
. "$(dirname "$0")/lib.sh"
. "$here/reference.bash"
need qemu-nbd nbdkit
[ "$qemu10" != env ] || skip "the words are those of QEMU 10"
cd "$W"

# ---- servers ----

# kit NAME ARGUMENTS...: nbdkit on $W/NAME.sock.
kit()
{
	local name=$1
	shift
	rm -f "$W/$name.sock"
	nbdkit -f -U "$W/$name.sock" "$@" >"$W/$name.log" 2>&1 </dev/null &
	others+=($!)
	wait_for 20 is_listening "$W/$name.sock" || fail "nbdkit does not listen"
}

# at NAME [EXPORT]
at()
{
	echo "nbd+unix:///${2:-}?socket=$W/$1.sock"
}

# ---- one conversion by both ----

# setup COMMAND: makes what is written to anew, before each of the two. made: what that is.
setup=:
made=new

# convert ARGUMENTS...: both say the same, and what they made has the same bytes.
convert()
{
	compared=$((compared + 1))
	for who in want got; do
		rm -f new
		$setup
		if [ $who = want ]; then
			outcome want "$qemu10" qemu-img convert "$@"
		else
			outcome got bin/qemu-img convert "$@"
		fi
		sed -i -E '/^server reported: |GLib: /d' $who
		grep -q 'status 0' $who || continue
		[ ! -e $made ] || {
			"$qemu10" qemu-img info -U --output=json $made |
				grep '^    "\(virtual-size\|format\)"' >>$who ||
				fail "convert $*: no image"
			"$qemu10" qemu-img convert -U -O raw $made $who.raw
		}
	done
	diff want got >&2 || fail "convert $* (< QEMU, > byre)"
	! grep -q 'status 0' got || [ ! -e $made ] || cmp want.raw got.raw >&2 ||
		fail "convert $*: other bytes"
}

# ---- from an export ----

truncate -s 6M base.raw
"$qemu10" qemu-io -f raw -c 'write -P 1 8k 4k' -c 'write -P 2 1030k 1M' -c 'write -P 3 4000k 512' \
	base.raw >/dev/null
head -c 1000700 /dev/urandom >odd.raw
q convert -f raw -O qcow2 base.raw inner.qcow2
q create -f qcow2 -b base.raw -F raw over.qcow2 8M
io over.qcow2 'write -P 6 64k 64k' 'write -z 1M 128k' 'write -P 7 6M 64k' 'write -c -P 9 5M 64k'
serve_qemu plain base.raw -f raw -r
serve_qemu odd odd.raw -f raw -r
serve_qemu inner inner.qcow2 -f raw -r
serve_qemu over over.qcow2 -f qcow2 -r
start_byre mine -r --name exp over.qcow2

unix()
{
	echo "\"server\":{\"type\":\"unix\",\"path\":\"$W/$1.sock\"},\"export\":\"exp\""
}

# Sources: each server, by each kind of name.
while IFS= read -r source; do
	convert "$source" new
	convert -O qcow2 "$source" new
	[[ $source == nbd+* ]] || continue
	convert -p -S 64k "$source" new
	convert -O qcow2 -W -m 16 "$source" new
	convert -c -O qcow2 "$source" new
done <<END
$(at plain exp)
$(at odd exp)
$(at inner exp)
$(at over exp)
$(at mine exp)
nbd:unix:$W/plain.sock:exportname=exp
json:{"driver":"nbd",$(unix plain)}
json:{"driver":"raw","offset":1048576,"size":2097152,"file":{"driver":"nbd",$(unix plain)}}
json:{"driver":"qcow2","file":{"driver":"nbd",$(unix inner)}}
json:{"driver":"raw","file":{"driver":"nbd","path":"$W/inner.sock","export":"exp"}}
END
while IFS= read -r options; do
	convert --image-opts "$options" new
done <<END
driver=nbd,path=$W/plain.sock,export=exp
driver=nbd,server.type=unix,server.path=$W/plain.sock,export=exp
driver=qcow2,file.driver=nbd,file.path=$W/inner.sock,file.export=exp
driver=raw,size=1M,file.driver=nbd,file.path=$W/plain.sock,file.export=exp
driver=raw,file.driver=nbd,file.path=$W/nobody.sock,file.export=exp
driver=raw,file.driver=nbd,file.path=$W/plain.sock,file.export=other
driver=nbd,path=$W/plain.sock,export=exp,foo=1
driver=nbd
END
while IFS= read -r arguments; do
	# shellcheck disable=SC2086  # words
	convert $arguments
done <<END
-f raw $(at inner exp) new
-f qcow2 $(at plain exp) new
-f nbd $(at plain exp) new
-T none $(at plain exp) new
-l 1 $(at inner exp) new
-p $(at nobody exp) new
$(at plain no) new
-O qcow2 $(at plain no) new
nbd:nowhere new
nbd:// new
nbd+unix:///x new
base.raw $(at plain exp) odd.raw new
-U $(at plain exp) new
-C $(at plain exp) new
--salvage $(at plain exp) new
--bitmaps -O qcow2 $(at inner exp) new
-r 1G $(at plain exp) new
END

# ---- an export as the backing file ----

while IFS= read -r name; do
	q create -f qcow2 -b "$name" -F raw chain.qcow2 7M
	io chain.qcow2 'write -P 4 2M 64k'
	convert chain.qcow2 new
	convert -O qcow2 chain.qcow2 new
	convert -O qcow2 -B "$name" -F raw chain.qcow2 new
	convert -c -O qcow2 -B "$name" -F raw over.qcow2 new
	convert -O qcow2 -o "backing_file=$name,backing_fmt=raw" chain.qcow2 new
	convert -O qcow2 -B "$name" chain.qcow2 new
done <<END
$(at plain exp)
nbd:unix:$W/plain.sock:exportname=exp
END
convert -O qcow2 -B "$(at plain no)" -F raw over.qcow2 new
convert -O qcow2 -B "$(at nobody)" -F raw over.qcow2 new

# ---- into an export ----

# Each server has a file of its own, which is filled anew before each conversion.
full_target()
{
	head -c 9M /dev/zero | tr '\0' '\377' | dd of=$made conv=notrunc status=none
}
zero_target()
{
	dd if=/dev/zero of=$made bs=1M count=9 conv=notrunc status=none
}
qcow2_target()
{
	full_target
	q create -f qcow2 inside.raw 8M
	dd if=inside.raw of=$made conv=notrunc status=none
}
for made in target.raw unmap.raw own.raw kit.raw; do
	full_target
done
serve_qemu target target.raw -f raw
serve_qemu unmap unmap.raw -f raw --discard=unmap --detect-zeroes=unmap
start_byre own --name exp -f raw own.raw
kit kit file kit.raw
kit nozero --filter=nozero --filter=noextents file kit.raw
kit blocks --filter=blocksize-policy file kit.raw blocksize-minimum=4096 \
	blocksize-preferred=64K blocksize-maximum=1M blocksize-error-policy=error
kit onlyread -r file kit.raw
while read -r name export made; do
	target=$(at $name $export)
	setup=full_target
	for image in base.raw odd.raw over.qcow2 "$(at plain exp)"; do
		convert -n "$image" "$target"
	done
	convert -n -S 0 base.raw "$target"
	convert -n -p -W -m 16 base.raw "$target"
	convert -n -t none base.raw "$target"
	convert -n -t writethrough odd.raw "$target"
	convert base.raw "$target"
	convert -p odd.raw base.raw "$target"
	convert -n -O qcow2 base.raw "$target"
	convert -n base.raw base.raw "$target"
	setup=zero_target
	convert -n --target-is-zero base.raw "$target"
	setup=qcow2_target
	convert -n -O qcow2 base.raw "$target"
	convert -n -c -O qcow2 over.qcow2 "$target"
	convert -O qcow2 odd.raw "$target"
	convert -c -O qcow2 odd.raw "$target"
	convert -O qcow2 -o cluster_size=4k,preallocation=metadata base.raw "$target"
done <<END
target exp target.raw
unmap exp unmap.raw
own exp own.raw
kit / kit.raw
nozero / kit.raw
blocks / kit.raw
END
made=target.raw
setup=full_target
while IFS= read -r options; do
	convert -n --target-image-opts over.qcow2 "$options"
done <<END
driver=nbd,path=$W/target.sock,export=exp
driver=raw,offset=512k,file.driver=nbd,file.path=$W/target.sock,file.export=exp
driver=raw,file.driver=nbd,file.path=$W/target.sock,file.export=no
driver=qcow2,file.driver=nbd,file.path=$W/target.sock,file.export=exp
driver=nbd
END
for target in "json:{\"driver\":\"nbd\",$(unix target)}" "nbd:unix:$W/target.sock:exportname=exp" \
	"$(at plain exp)" "$(at onlyread)" "$(at nobody)" "$(at target no)" nbd:// ; do
	convert -n base.raw "$target"
	convert -p base.raw "$target"
	convert -n -O qcow2 base.raw "$target"
	convert -O qcow2 base.raw "$target"
done

# ---- what is sent ----

# sent KIND: the bytes of all commands of one kind that nbdkit's log has.
sent()
{
	python3 - "$1" <<-'END'
	import re, sys
	text = open("commands").read()
	print(sum(int(n, 16) for n in re.findall(rf" {sys.argv[1]} .*?count=(0x[0-9a-f]+)", text)))
	END
}

# The data is 1.1 MiB of 6, in three places.
setup=:
kit log --filter=log file base.raw logfile=commands
"$BYRE" convert "$(at log)" new || fail "convert from nbdkit"
[ "$(sent Read)" -gt 1000000 ] || fail "nbdkit's log has $(sent Read) bytes of reads"
[ "$(sent Read)" -lt 1700000 ] || fail "holes were read: $(sent Read) bytes"
rm commands
kit log2 --filter=log file kit.raw logfile=commands
"$BYRE" convert -n base.raw "$(at log2)" || fail "convert to nbdkit"
[ "$(sent Write)" -lt 1700000 ] || fail "zeros were written as data: $(sent Write) bytes"
[ "$(sent Zero)" -gt 4000000 ] || fail "zeros were not written: $(sent Zero) bytes"

# ---- servers that fail ----

made=new
kit unread --filter=error file base.raw error=EIO error-pread-rate=100%
kit unmapped --filter=error file base.raw error=EIO error-extents-rate=100%
kit unwritten --filter=error file kit.raw error=EIO error-pwrite-rate=100%
kit unzeroed --filter=error file kit.raw error=EIO error-zero-rate=100%
kit nospace --filter=error file kit.raw error=ENOSPC error-pwrite-rate=100% \
	error-zero-rate=100%
kit full full 16M
while IFS= read -r arguments; do
	# shellcheck disable=SC2086  # words
	convert $arguments
done <<END
$(at unread) new
-p -O qcow2 $(at unread) new
-c -O qcow2 $(at unread) new
$(at unmapped) new
base.raw $(at unread) new
-n base.raw $(at unwritten)
-n -p base.raw $(at unwritten)
-n -S 0 base.raw $(at unwritten)
-n -O qcow2 base.raw $(at unwritten)
base.raw $(at unwritten)
-n base.raw $(at unzeroed)
base.raw $(at unzeroed)
-n base.raw $(at nospace)
-n base.raw $(at full)
-n -O qcow2 base.raw $(at full)
base.raw $(at full)
-O qcow2 base.raw $(at full)
END

# One that dies meanwhile: what was asked, and where it stopped.

is_at_it()
{
	grep -qE " (Read|Write) .*offset=0x[1-9a-f]" dying.commands
}

truncate -s 64M large.raw
head -c 40M /dev/urandom | dd of=large.raw conv=notrunc status=none
for what in reading writing; do
	cp large.raw dying.raw
	rm -f dying.commands
	# It would take many times as long as to see that it has begun.
	kit dying --filter=log --filter=delay file dying.raw rdelay=1 wdelay=1 \
		logfile=dying.commands
	arguments=("$(at dying)" new)
	[ $what = reading ] || arguments=(-n large.raw "$(at dying)")
	status=0
	timeout 60 "$BYRE" convert -f raw -m 1 "${arguments[@]}" >log 2>&1 &
	pid=$!
	wait_for 20 is_at_it || fail "$what does not begin"
	kill -KILL "${others[-1]}"
	wait "${others[-1]}" 2>/dev/null || true
	wait $pid || status=$?
	[ $status = 1 ] || { cat log >&2; fail "$what, the server is dead: status $status"; }
	grep -q "connection to 'nbd+unix:.*dying.sock' is lost" log &&
		grep -qE "error while ($what at byte|reading block status at offset) [0-9]+:" log ||
		{ cat log >&2; fail "$what, the server is dead: not told"; }
	[ ! -e new ] || fail "half an image is left"
done
echo "$compared conversions are like QEMU's"
