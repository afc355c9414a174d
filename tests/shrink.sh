#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: quick default long asan tsan
# limit: 600
# A file that somebody truncates while it is served: its clients get errors, never invented zeros,
# no flush succeeds any more, and the log says once what happened. The file of a raw disk, of a
# qcow2, of a backing file; and a disk that is only written and flushed.
. "$(dirname "$0")/lib.sh"
need python3 qemu-img

MiB=1048576
direct=
dd if=/dev/zero of="$W/probe" bs=4096 count=1 oflag=direct status=none 2>/dev/null &&
	direct=none

# client NAME: python from standard input, with a connected client c and failing().
client()
{
	{
		cat <<-'END'
		import errno, sys, nbd
		c = nbd.Nbd(sys.argv[1])
		def failing(what, *args):
		    try:
		        what(*args)
		    except nbd.NbdError as e:
		        assert e.errno == errno.EIO, e
		    else:
		        sys.exit(f"{what.__name__}{args[:1]} succeeds")
		END
		cat
	} >"$W/client.py"
	PYTHONPATH=$here python3 "$W/client.py" "$(uri "$1")" || fail "$1: see above"
}

# said NAME FILE LENGTHS: the log has it once.
said()
{
	[ "$(grep -c "'$2' was made shorter by somebody else, from $3 bytes" "$W/$1.log")" = 1 ] ||
		fail "$1: the log does not say once that $2 was made shorter, from $3 bytes"
}

# ends NAME: it ends on SIGTERM; what was written may be lost, and it may say so.
ends()
{
	local pid=${byres[$1]}
	unset "byres[$1]"
	kill -TERM "$pid"
	end_within "$pid" 20 || fail "$1 does not end"
	wait "$pid" || true
	no_report "$1" || fail "$1: see above"
}

for mode in writeback $direct; do
	random_file "$W/disk" $((4 * MiB))
	start_byre "raw-$mode" --loops 2 --cache "$mode" -f raw "$W/disk"
	truncate -s $MiB "$W/disk"
	client "raw-$mode" <<-END
	assert len(set(c.read(0, $MiB))) == 256
	failing(c.read, $MiB, 512)
	failing(c.read, 3 << 20, 65536)
	failing(c.write, 3 << 20, b"x" * 4096)
	failing(c.flush)
	failing(c.flush)
	assert c.read(4096, 4096) != bytes(4096)
	assert not any(flags for _, _, flags in c.map()), "holes in what is lost"
	END
	said "raw-$mode" "$W/disk" "$((4 * MiB)) to $MiB"
	[ "$(stat -c %s "$W/disk")" = $MiB ] || fail "raw, $mode: it is longer again"
	ends "raw-$mode"

	# Opened again, it is what it is now.
	start_byre "again-$mode" --cache "$mode" -f raw "$W/disk"
	client "again-$mode" <<-END
	assert c.size == $MiB
	c.write(0, b"x" * 4096)
	c.flush()
	END
	stop_byre "again-$mode"

	# Nobody reads: the flush finds out.
	random_file "$W/disk" $((4 * MiB))
	start_byre "flush-$mode" --cache "$mode" -f raw "$W/disk"
	client "flush-$mode" <<-END
	import os
	c.write(0, b"x" * 4096)
	c.flush()
	os.truncate("$W/disk", $MiB)
	c.write(2 << 20, b"y" * 4096)
	failing(c.flush)
	failing(c.write, 0, b"z" * 4096)
	END
	said "flush-$mode" "$W/disk" "$((4 * MiB)) to $((2 * MiB + 4096))"
	ends "flush-$mode"
done

# A qcow2, all of which is mapped, and a backing file that is not even written.
random_file "$W/content" $((4 * MiB))
qemu-img convert -f raw -O qcow2 "$W/content" "$W/disk.qcow2"
size=$(stat -c %s "$W/disk.qcow2")
start_byre qcow2 "$W/disk.qcow2"
client qcow2 <<END
import os
assert c.read(0, 512) != bytes(512)
os.truncate("$W/disk.qcow2", $((2 * MiB)))
failing(c.read, 3 << 20, 65536)
failing(c.write, 3 << 20, b"x" * 4096)
failing(c.flush)
END
said qcow2 "$W/disk.qcow2" "$size to $((2 * MiB))"
ends qcow2
[ "$(stat -c %s "$W/disk.qcow2")" = $((2 * MiB)) ] || fail "qcow2: it has another length"

qemu-img create -q -f qcow2 -b content -F raw "$W/over.qcow2"
start_byre backing "$W/over.qcow2"
client backing <<END
import os
c.write(0, b"x" * 100)
os.truncate("$W/content", $MiB)
failing(c.read, 2 << 20, 4096)
assert c.read(65536, 4096) != bytes(4096)
c.write(0, b"y" * 65536)
c.flush()
c.write(3 << 20, b"x" * 100)
failing(c.flush)                        # the rest of the cluster is lost
END
said backing "$W/content" "$((4 * MiB)) to $MiB"
ends backing
