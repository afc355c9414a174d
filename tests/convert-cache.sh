#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: quick default long
# limit: 600
# byre convert leaves the host's page cache as it was: of what was not there before nothing stays,
# of neither end, and what was there stays; --keep-cache keeps all.
. "$(dirname "$0")/lib.sh"
need fincore python3
cd "$W"

random_file source.raw $((24 << 20))
sync -f .

# forget FILE...: drops all pages.
forget()
{
	python3 - "$@" <<-'END'
	import os, sys
	for name in sys.argv[1:]:
	    fd = os.open(name, os.O_RDWR)
	    os.fsync(fd)
	    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
	END
}

# pages_are FILE NUMBER
pages_are()
{
	local n
	n=$(cached_pages "$1")
	[ "$n" = "$2" ] || fail "$what: $n pages of $1 are cached, not $2"
}

forget source.raw
[ "$(cached_pages source.raw)" = 0 ] || skip "the file system keeps pages"
"$BYRE" convert -O qcow2 source.raw source.qcow2 || fail "convert"

# As it was: with nothing of it there, all, and pieces.
leaves_as_it_was()
{
	forget source.raw source.qcow2
	# shellcheck disable=SC2086  # words
	"$BYRE" convert $options -O qcow2 source.raw new.qcow2 || fail "$what"
	pages_are source.raw 0
	pages_are new.qcow2 0
	# shellcheck disable=SC2086
	"$BYRE" convert $options -f qcow2 source.qcow2 new.raw || fail "$what"
	pages_are source.qcow2 0
	pages_are new.raw 0
	cmp -s source.raw new.raw || fail "$what: other content"

	# All was there.
	cat source.raw source.qcow2 >/dev/null
	before=$(cached_pages source.qcow2)
	# shellcheck disable=SC2086
	"$BYRE" convert $options -O qcow2 source.raw new.qcow2 || fail "$what"
	pages_are source.raw $((24 << 8))
	# shellcheck disable=SC2086
	"$BYRE" convert $options -f qcow2 source.qcow2 new.raw || fail "$what"
	pages_are source.qcow2 "$before"

	# A part was there, in pieces.
	forget source.raw
	python3 - <<-'END'
	import os
	fd = os.open("source.raw", os.O_RDONLY)
	os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
	for off in list(range(0, 8 << 20, 64 << 10)) + list(range(8 << 20, 14 << 20, 4096)):
	    os.pread(fd, 4096, off)
	END
	before=$(cached_pages source.raw)
	# shellcheck disable=SC2086
	"$BYRE" convert $options -O qcow2 source.raw new.qcow2 || fail "$what"
	pages_are source.raw "$before"
}

for options in "" "-t none" "-t writeback" "-T writeback" "-T none -t none" "-t writethrough"; do
	what="convert $options"
	at_times leaves_as_it_was
done

# A backing file as well, and a target that is there.
what="a chain"
"$BYRE" create -q -f qcow2 -b source.qcow2 -F qcow2 top.qcow2
leaves_no_chain()
{
	forget source.qcow2 top.qcow2
	"$BYRE" convert top.qcow2 new.raw || fail "$what"
	pages_are source.qcow2 0
	pages_are top.qcow2 0
}
at_times leaves_no_chain

what="into what is there"
leaves_what_is_there()
{
	local before
	forget new.raw source.raw
	# Page by page: what the kernel reads ahead may come only after it was counted.
	python3 - <<-'END'
	import os
	fd = os.open("new.raw", os.O_RDONLY)
	os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
	for off in range(0, 3 << 20, 4096):
	    os.pread(fd, 4096, off)
	END
	before=$(cached_pages new.raw)
	[ "$before" -ge 768 ] || fail "reading"
	forget source.raw
	"$BYRE" convert -n -t writeback source.raw new.raw || fail "$what"
	pages_are source.raw 0
	after=$(cached_pages new.raw)
	[ "$after" -le "$before" ] || fail "$what: $after pages stay"
}
at_times leaves_what_is_there

what="--keep-cache"
keeps_all()
{
	forget source.raw
	"$BYRE" convert --keep-cache -O qcow2 source.raw new.qcow2 || fail "$what"
	[ "$(cached_pages source.raw)" -ge $((20 << 8)) ] || fail "$what: the source is not cached"
	[ "$(cached_pages new.qcow2)" -ge $((20 << 8)) ] || fail "$what: the target is not cached"
}
at_times keeps_all
