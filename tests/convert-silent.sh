#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long
# limit: 1200
# takes: 20
# A byre convert whose NBD server does not answer ends by one signal, as qemu-img does, and leaves
# no half image: whether the server is silent at once, or when it is asked for data, and whether it
# has the source, the target or what the target is based on.
. "$(dirname "$0")/lib.sh"
need python3
cd "$W"

# A server that says nothing (mute), or no more than that it has an export of 8 MiB (deaf). What it
# is asked then it takes, and notes in the file LOG.
cat >silent.py <<'END'
import socket, struct, sys, threading

kind, path, log = sys.argv[1:]
REPLY = 0x3e889045565a9


def receive(s, n):
    data = b""
    while len(data) < n:
        more = s.recv(n - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def greet(s):
    s.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
    receive(s, 4)
    while True:
        option, n = struct.unpack(">8xII", receive(s, 16))
        receive(s, n)
        if option == 7:         # GO
            export = struct.pack(">HQH", 0, 8 << 20, 1 | 4 | 32 | 64)
            s.sendall(struct.pack(">QIII", REPLY, option, 3, len(export)) + export)
            s.sendall(struct.pack(">QIII", REPLY, option, 1, 0))
            return
        s.sendall(struct.pack(">QIII", REPLY, option, 1 << 31 | 1, 0))


def serve(s, f):
    def note(word):
        print(word, file=f, flush=True)

    try:
        if kind == "deaf":
            greet(s)
        while kind == "deaf":
            command, n = struct.unpack(">4x2xH8x8xI", receive(s, 28))
            if command == 1:
                note("write")
                receive(s, n)
            elif command != 2:
                note("command")
        note("mute")
        receive(s, 1 << 20)
    except (EOFError, ConnectionError):
        pass


listening = socket.socket(socket.AF_UNIX)
listening.bind(path)
listening.listen(16)
while True:
    s = listening.accept()[0]
    # Of its own time: what is noted late, of one that was ended, is in a file that has gone.
    threading.Thread(target=serve, args=(s, open(log, "a")), daemon=True).start()
END

for kind in mute deaf; do
	python3 silent.py $kind "$W/$kind.sock" $kind.log >server.log 2>&1 </dev/null &
	others+=($!)
	wait_for 20 is_listening "$W/$kind.sock" || { cat server.log >&2; fail "no server"; }
done
mute="nbd+unix:///?socket=$W/mute.sock"
deaf="nbd+unix:///?socket=$W/deaf.sock"
random_file source.raw $((4 << 20))
"$BYRE" create -q -f qcow2 there.qcow2 8M

# ends SIGNAL KIND ARGUMENTS...: byre convert, once the server of KIND waits with what it was asked.
ends()
{
	local signal=$1 kind=$2 status=0
	shift 2
	rm -f $kind.log
	# A shell's background jobs ignore INT.
	env --default-signal=INT "$BYRE" convert "$@" >log 2>&1 </dev/null &
	pid=$!
	others+=("$pid")
	wait_for 20 test -s $kind.log || { cat log >&2; fail "convert $*: asks for nothing"; }
	kill -"$signal" "$pid"
	end_within "$pid" 5 || fail "convert $*: SIG$signal does not end it"
	wait "$pid" 2>/dev/null || status=$?
	[ $status = $((128 + $(kill -l "$signal"))) ] ||
		{ cat log >&2; fail "convert $*, SIG$signal: status $status"; }
	! [ -s log ] || { cat log >&2; fail "convert $*, SIG$signal: says something"; }
}

for signal in INT TERM HUP; do
	for options in "-O raw" "-O qcow2" "-c -O qcow2" "-O qcow2 -o data_file=new.data"; do
		# shellcheck disable=SC2086  # words
		ends $signal deaf -f raw $options "$deaf" new
		[ ! -e new ] && [ ! -e new.data ] || fail "$options: half an image is left"
	done
done
ends TERM mute "$mute" new
ends TERM deaf "$deaf" new              # which is asked for its format
ends TERM mute -O qcow2 -B "$mute" -F raw source.raw new
ends TERM deaf source.raw "$deaf" new
[ ! -e new ] || fail "half an image is left"

# A name that was there stays, and what it has links to.
echo before >new
ln new link
ends TERM deaf -f raw "$deaf" new
[ "$(stat -c %s link)" = 0 ] && [ -e new ] || fail "a file that was there is not empty"
rm new link
echo before >new
ends TERM mute "$mute" new
[ "$(cat new)" = before ] || fail "a file that was not changed yet is emptied"

# With -n an image is as after a crash: it opens.
ends TERM deaf -n -f raw -O qcow2 "$deaf" there.qcow2
"$BYRE" check -q there.qcow2 || [ $? = 3 ] || fail "an image that was there is broken"

# The target is silent: as it is opened, or as it is written.
ends TERM mute -n source.raw "$mute"
ends TERM deaf -n source.raw "$deaf"
grep -q write deaf.log || fail "nothing was written"
ends TERM deaf -O qcow2 source.raw "$deaf"
ends TERM deaf source.raw "$deaf"

# The second signal does not wait.
rm -f deaf.log new
"$BYRE" convert -f raw "$deaf" new >log 2>&1 </dev/null &
pid=$!
others+=("$pid")
wait_for 20 test -s deaf.log || fail "convert does not start"
kill -TERM $pid
kill -HUP $pid 2>/dev/null || true
end_within $pid 5 || fail "a second signal does not end it"
