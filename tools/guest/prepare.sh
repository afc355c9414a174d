#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# tools/guest/prepare.sh - makes what a small guest boots from, once: $CACHE/guest/vmlinuz and
# initrd, from Debian's cloud kernel and static busybox. The packages are unpacked, not installed.
# The last line it prints is that folder.
set -eu -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=tools/cache.sh
. ../cache.sh

guest=$CACHE/guest
made_by=$(cat prepare.sh init | sha256sum | cut -c 1-16)

exit_if_made()
{
	[ "$(cat "$guest/made-by" 2>/dev/null)" = "$made_by" ] || return 0
	echo "$guest"
	exit
}

exit_if_made
PATH=$PATH:/usr/sbin:/sbin
modules="virtio_pci virtio_blk virtio_balloon ext4 crc32c_generic crc32c-intel"

mkdir -p "$CACHE"
# Of some that begin together one makes it; the others wait, and do not make it again under those
# that use it.
exec 9>"$CACHE/guest.lock"
flock 9
exit_if_made
tmp=$(mktemp -d "$CACHE/guest.XXXXXX")
trap 'rm -rf "$tmp"' EXIT

# The metapackage depends on the kernel of the day.
kernel_package()
{
	apt-cache depends linux-image-cloud-amd64 2>/dev/null |
		sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | sed -n 1p
}

apt()
{
	apt-get -qq -o Acquire::Retries=3 -o APT::Sandbox::User=root "$@" >&2
}

download()
{
	local package
	package=$(kernel_package)
	if [ -z "$package" ]; then
		echo "prepare.sh: apt knows no linux-image-cloud-amd64" >&2
		return 1
	fi
	(cd "$tmp" && apt download "$package" busybox-static)
}

fetch()
{
	# The package lists may be absent or old.
	download || { apt update && download; } || exit 1
	for deb in "$tmp"/*.deb; do
		dpkg-deb -x "$deb" "$tmp/unpacked"
	done
}

# The modules and what they need, in an order in which insmod can load them.
load_order()
{
	local dep=$1 name
	for name in $modules; do
		awk -F: -v n="/${name//[-_]/[-_]}[.]ko([.]xz)?\$" '$1 ~ n {
			k = split($2, need, " ")
			for (; k > 0; k--)
				print need[k]
			print $1
		}' "$dep"
	done | awk '!seen[$0]++'
}

make_initrd()
{
	local root=$tmp/root unpacked=$tmp/unpacked version dir file
	version=$(ls "$unpacked/lib/modules")
	dir=$unpacked/lib/modules/$version
	depmod -b "$unpacked" "$version"
	mkdir -p "$root"/{bin,dev,proc,sys,mnt,tmp,job,modules}
	cp "$unpacked/bin/busybox" "$root/bin/busybox"
	cp init "$root/init"
	chmod +x "$root/init"
	load_order "$dir/modules.dep" | while read -r file; do
		case $file in
		*.xz) xz -dc "$dir/$file" >"$root/modules/$(basename "$file" .xz)" ;;
		*) cp "$dir/$file" "$root/modules/" ;;
		esac
		basename "$file" .xz >>"$root/modules/order"
	done
	(cd "$root" && find . | cpio -o -H newc --quiet) >"$tmp/initrd"
	cp "$unpacked/boot/vmlinuz-$version" "$tmp/vmlinuz"
}

fetch
make_initrd
rm -rf "$guest"
mkdir -p "$guest"
mv "$tmp/vmlinuz" "$tmp/initrd" "$guest"
echo "$made_by" >"$guest/made-by"
echo "$guest"
