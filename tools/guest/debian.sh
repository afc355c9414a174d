#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# tools/guest/debian.sh - makes a small real Debian with systemd once: $CACHE/debian/disk.qcow2,
# an ext4 that the small guest's init can hand over to. It runs a job that it finds in /run/job,
# and shuts down. Needs root (debootstrap does). The packages come from where this machine's apt
# gets its own. The last line it prints is the image.
set -eu -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=tools/cache.sh
. ../cache.sh
PATH=$PATH:/usr/sbin:/sbin

image=$CACHE/debian/disk.qcow2
made_by=$(sha256sum <debian.sh | cut -c 1-16)
exit_if_made()
{
	[ "$(cat "$CACHE/debian/made-by" 2>/dev/null)" = "$made_by" ] || return 0
	echo "$image"
	exit
}

exit_if_made
if [ "$(id -u)" != 0 ]; then
	echo "debian.sh: debootstrap needs root" >&2
	exit 77
fi

mkdir -p "$CACHE"
exec 9>"$CACHE/debian.lock"             # of some that begin together one makes it
flock 9
exit_if_made

# The archive that apt itself uses for this release, and the proxy, if it has one.
suite=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
# shellcheck disable=SC2016  # apt's own variable
archive=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $suite" \
	"Component: main" | sed -n 1p)
[ -n "$archive" ] || { echo "debian.sh: apt has no archive of '$suite'" >&2; exit 77; }
eval "$(apt-config shell http_proxy Acquire::http::Proxy https_proxy Acquire::https::Proxy)"
export http_proxy https_proxy

tmp=$(mktemp -d "$CACHE/debian.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
# bootstrap: it does not try a download again by itself.
bootstrap()
{
	rm -rf "$tmp/root"
	debootstrap --variant=minbase --include=systemd,systemd-sysv,udev "$suite" "$tmp/root" \
		"$archive" >"$tmp/log" 2>&1
}

bootstrap || bootstrap || bootstrap || {
	tail -n 20 "$tmp/log" >&2
	echo "debian.sh: debootstrap fails" >&2
	exit 77
}

# A unit that says, once multi-user is reached, whether programs, libraries and settings read as
# they were written. Without a login prompt, which would hang up the line under it.
mkdir -p "$tmp/root/etc/systemd/system/multi-user.target.wants"
cat >"$tmp/root/etc/systemd/system/arrived.service" <<'END'
[Unit]
After=multi-user.target
DefaultDependencies=no
[Service]
Type=oneshot
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
ExecStart=/bin/sh /usr/local/bin/arrived
END
ln -s ../arrived.service "$tmp/root/etc/systemd/system/multi-user.target.wants/"
ln -s /dev/null "$tmp/root/etc/systemd/system/serial-getty@ttyS0.service"
cat >"$tmp/root/usr/local/bin/arrived" <<'END'
cd /
if sha256sum --quiet -c /var/lib/arrived.sums; then
	echo "ARRIVED: $(wc -l </var/lib/arrived.sums) files are right"
else
	echo "ARRIVED WRONG"
fi
END
# A job that the initramfs has left there; its output and status go where the small guest's do.
cat >"$tmp/root/etc/systemd/system/job.service" <<'END'
[Unit]
After=multi-user.target arrived.service
ConditionPathExists=/run/job/run.sh
DefaultDependencies=no
[Service]
Type=oneshot
WorkingDirectory=/run/job
ExecStartPre=/bin/stty -F /dev/ttyS1 raw -echo
ExecStartPre=/bin/stty -F /dev/ttyS2 raw -echo
ExecStart=/bin/sh -c 'sh ./run.sh </dev/null >/dev/ttyS1 2>&1; echo $? >/dev/ttyS2'
ExecStart=/bin/systemctl --no-block poweroff
END
ln -s ../job.service "$tmp/root/etc/systemd/system/multi-user.target.wants/"
echo byre-guest >"$tmp/root/etc/hostname"
echo '/dev/vda / ext4 rw 0 1' >"$tmp/root/etc/fstab"
: >"$tmp/root/etc/machine-id"           # filled in by the first boot
(cd "$tmp/root" && find usr/bin usr/sbin usr/lib etc -type f ! -path etc/machine-id -print0 |
	sort -z | xargs -0 sha256sum >var/lib/arrived.sums)
rm -rf "$tmp/root/var/cache/apt/archives" "$tmp/root/var/lib/apt/lists"
mkfs.ext4 -q -L debian -d "$tmp/root" "$tmp/raw" 1G >/dev/null
qemu-img convert -O qcow2 "$tmp/raw" "$tmp/disk.qcow2"
rm -rf "$CACHE/debian"
mkdir -p "$CACHE/debian"
mv "$tmp/disk.qcow2" "$image"
echo "$made_by" >"$CACHE/debian/made-by"
echo "$image"
