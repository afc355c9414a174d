#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: quick default long asan tsan
# limit: 600
# byre serve as a service: signals, exit status, readiness, sockets handed over by systemd.
. "$(dirname "$0")/lib.sh"
need python3 nbdinfo qemu-io

truncate -s 4M "$W/disk"
socket=$W/x.sock

# ends_with STATUS SIGNAL: start, wait until it serves, signal.
ends_with()
{
	local status=0 pid
	"$BYRE" serve --nbd "unix:$socket" -f raw "$W/disk" >"$W/x.log" 2>&1 </dev/null &
	pid=$!
	wait_for 20 is_up_or_gone $pid "$socket" || fail "it does not listen"
	kill "-$2" $pid
	end_within $pid 20 || fail "SIG$2 does not end it"
	wait $pid || status=$?
	[ $status = "$1" ] || { cat "$W/x.log" >&2; fail "SIG$2: status $status, not $1"; }
	[ ! -e "$socket" ] || fail "SIG$2 leaves the socket behind"
}
ends_with 0 TERM
ends_with 0 INT

# With a client connected and idle it ends all the same; what was written is in the file.
start_byre busy -f raw "$W/disk"
PYTHONPATH=$here python3 - "$(uri busy)" "$W/ready" <<-'END' &
import sys, nbd
c = nbd.Nbd(sys.argv[1])
c.write(4096, b"kept" * 128)
open(sys.argv[2], "w").close()
try:
    nbd.receive(c.s, 1)
except (nbd.ProtocolError, OSError):
    pass
END
client=$!
wait_for 20 test -e "$W/ready" || fail "the client does not get through"
stop_byre busy
end_within $client 10 || fail "the client still holds a connection"
qemu-io -f raw -r -c "read -P 0x6b 4096 1" "$W/disk" >/dev/null
[ "$(dd if="$W/disk" bs=4 skip=1024 count=1 status=none)" = kept ] || fail "the write is lost"

# A socket that a killed server left is taken over; one that is alive is not.
start_byre killed -f raw "$W/disk"
kill_byre killed "$W/disk"
start_byre killed -f raw "$W/disk"
truncate -s 1M "$W/second"
status=0
timeout 120 "$BYRE" serve --nbd "unix:$W/killed.sock" -f raw "$W/second" >"$W/log" 2>&1 || status=$?
[ $status = 1 ] || fail "a second server on the same socket: status $status"
nbdinfo "$(uri killed)" >/dev/null || fail "the first server lost its socket"
stop_byre killed

# Exit status: 1 for what failed, 2 for how it was called.
status=0
"$BYRE" serve --nbd "unix:$socket" "$W/no-such-file" 2>"$W/log" || status=$?
[ $status = 1 ] || fail "a missing file: status $status"
grep -q no-such-file "$W/log" || fail "a missing file: the message does not name it"
for wrong in "--no-such-option $W/disk" "--nbd unix:$socket" "$W/disk" \
	"--nbd carrier-pigeon:x $W/disk" "--nbd unix:$socket --loops 0 $W/disk" \
	"--nbd unix:$socket --cache fast $W/disk"; do
	status=0
	# shellcheck disable=SC2086  # words
	timeout 120 "$BYRE" serve $wrong >"$W/log" 2>&1 || status=$?
	[ $status = 2 ] || { cat "$W/log" >&2; fail "'serve $wrong': status $status, not 2"; }
done

# Readiness is told to NOTIFY_SOCKET, a path or an abstract name, and the end too.
cat >"$W/notified.py" <<'END'
import os, signal, socket, subprocess, sys
address, argv = sys.argv[1], sys.argv[2:]
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind("\0" + address[1:] if address[0] == "@" else address)
s.settimeout(100)
p = subprocess.Popen(argv, env=dict(os.environ, NOTIFY_SOCKET=address), stdin=subprocess.DEVNULL)
def until(word):
    while True:
        if word in s.recv(4096).decode().split("\n"):
            return
until("READY=1")
subprocess.run(["nbdinfo", "--size", f"nbd+unix:///?socket={argv[argv.index('--nbd') + 1][5:]}"],
               check=True, stdout=subprocess.DEVNULL)
p.send_signal(signal.SIGTERM)
until("STOPPING=1")
sys.exit(p.wait(100))
END
for address in "$W/notify" "@byre-test-$$"; do
	python3 "$W/notified.py" "$address" "$BYRE" serve --nbd "unix:$socket" -f raw "$W/disk" \
		>"$W/log" 2>&1 || { cat "$W/log" >&2; fail "NOTIFY_SOCKET=$address"; }
done

# Socket activation: the listening socket is descriptor 3.
cat >"$W/activate.py" <<'END'
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen(8)
os.dup2(s.fileno(), 3)
os.set_inheritable(3, True)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.argv[2], sys.argv[2:])
END
python3 "$W/activate.py" "$W/active.sock" "$BYRE" serve -f raw "$W/disk" >"$W/active.log" 2>&1 &
byres[active]=$!
wait_for 20 is_listening "$W/active.sock" || fail "no socket to activate by"
nbdinfo "$(uri active)" >/dev/null || fail "socket activation"
stop_byre active

# A socket at the path of a --vhost-user is for that image; its file is the manager's, and stays.
python3 "$W/activate.py" "$W/machine.sock" "$BYRE" serve -f raw --vhost-user "$W/machine.sock" \
	"$W/disk" >"$W/machine.log" 2>&1 &
byres[machine]=$!
wait_for 20 is_listening "$W/machine.sock" || fail "no socket to activate by"
"$BYRE" bench -c 1 "vhost-user:$W/machine.sock" >/dev/null || fail "activation for a machine"
stop_byre machine
[ -S "$W/machine.sock" ] || fail "byre removed a socket that is not its own"
