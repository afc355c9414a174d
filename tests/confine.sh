#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: quick default long asan
# limit: 600
# Backing and data files that an image names are opened in its own folder or below --allow, and
# nowhere else; every other name is refused with a message that says what and why.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-io

mkdir -p "$W"/{pool/sub,other,templates}
random_file "$W/content" 1048576

qemu-img convert -f raw -O qcow2 "$W/content" "$W/pool/base.qcow2"
cp "$W/pool/base.qcow2" "$W/pool/sub/"
cp "$W/pool/base.qcow2" "$W/other/"
cp "$W/pool/base.qcow2" "$W/templates/"

# overlay NAME BACKING: $W/pool/NAME.qcow2; nothing is checked when it is made.
overlay()
{
	qemu-img create -q -u -f qcow2 -b "$2" -F qcow2 "$W/pool/$1.qcow2" 1M
}

serves()
{
	local name=$1
	shift
	start_byre "$name" "$@" --read-only "$W/pool/$name.qcow2"
	same_content "$W/content" raw "$(uri "$name")"
	stop_byre "$name"
}

overlay beside base.qcow2
overlay below sub/base.qcow2
overlay dotted ./sub/../base.qcow2
overlay full "$W/pool/base.qcow2"
overlay prefixed file:base.qcow2
for name in beside below dotted full prefixed; do
	serves $name
done
(cd "$W/pool" && start_byre relative --read-only beside.qcow2 && stop_byre relative)

overlay up ../other/base.qcow2
overlay absolute "$W/other/base.qcow2"
ln -s ../other/base.qcow2 "$W/pool/link"
overlay linked link
ln -s ../other "$W/pool/folder"
overlay through folder/base.qcow2
for name in up absolute linked through; do
	byre_refuses "--allow" "$W/pool/$name.qcow2"
	serves $name --allow "$W/other"
	byre_refuses "--allow" --allow "$W/templates" "$W/pool/$name.qcow2"
done
serves up --allow "$W/templates" --allow "$W/other"

overlay missing gone.qcow2
byre_refuses "gone.qcow2" "$W/pool/missing.qcow2"
overlay remote "nbd://127.0.0.1/x"
byre_refuses "nbd:" "$W/pool/remote.qcow2"
overlay json 'json:{"driver":"file","filename":"base.qcow2"}'
byre_refuses "json:" "$W/pool/json.qcow2"
overlay device /dev/zero
byre_refuses "/dev/zero" "$W/pool/device.qcow2"
byre_refuses "/dev/zero" --allow /dev "$W/pool/device.qcow2"
mkfifo "$W/pool/fifo"
overlay pipe fifo
byre_refuses "fifo" "$W/pool/pipe.qcow2"

# A chain that comes back to itself ends with a message, not with memory.
overlay one two.qcow2
overlay two one.qcow2
byre_refuses "one.qcow2|two.qcow2" "$W/pool/one.qcow2"
overlay itself itself.qcow2
byre_refuses "itself.qcow2" "$W/pool/itself.qcow2"

# External data files are held to the same.
qemu-img create -q -f qcow2 -o data_file="$W/pool/data.raw" "$W/pool/data.qcow2" 1M
qemu-io -f qcow2 -c "write -P 7 0 1M" "$W/pool/data.qcow2" >/dev/null
start_byre data --read-only "$W/pool/data.qcow2"
same_content "$W/pool/data.qcow2" qcow2 "$(uri data)"
qemu-img create -q -f qcow2 -o data_file="$W/other/data.raw" "$W/pool/away.qcow2" 1M
byre_refuses "--allow" --read-only "$W/pool/away.qcow2"
start_byre away --allow "$W/other" --read-only "$W/pool/away.qcow2"
