/* SPDX-License-Identifier: MIT */
/* fmt/raw/probe.c - a table of magic numbers.
 *
 * Whoever can write to a disk whose format is found by probing can make it look like another one,
 * and a format may name other files. So this recognises rather too much: a magic with an unknown
 * version counts. What QEMU finds by probing must be found here. */
#include "fmt/raw/probe.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "base/bits.h"
#include "base/endian.h"

struct magic {
	const char *format;
	const char *bytes;
	unsigned len;
	unsigned off;
};

#define MAGIC(format, text) { format, text, sizeof(text) - 1, 0 }

static const struct magic magics[] = {
	MAGIC("qed", "QED\0"),
	MAGIC("vmdk", "KDMV"),
	MAGIC("vmdk", "COWD"),
	{ "vdi", "\x7f\x10\xda\xbe", 4, 64 },
	MAGIC("vhdx", "vhdxfile"),
	MAGIC("vpc", "conectix"),
	MAGIC("luks", "LUKS\xba\xbe"),
	MAGIC("parallels", "WithoutFreeSpace"),
	MAGIC("parallels", "WithouFreSpacExt"),
	MAGIC("bochs", "Bochs Virtual HD Image"),
	MAGIC("cloop", "#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 "
		       "/dev/cloop $1\n"),
};

static const char *skip_line(const char *p, const char *end)
{
	const char *nl = memchr(p, '\n', (size_t)(end - p));

	return nl ? nl + 1 : end;
}

/* A text of comments and empty lines, then "version=": the header of a VMDK that lies in other
 * files. */
static bool is_vmdk_text(const char *p, const char *end)
{
	static const char title[] = "# Disk DescriptorFile", version[] = "version=";

	if ((size_t)(end - p) >= sizeof(title) - 1 && !memcmp(p, title, sizeof(title) - 1))
		return true;
	while (p < end) {
		const char *at = p;

		while (at < end && (*at == ' ' || *at == '\t' || *at == '\r'))
			at++;
		if (at == end || (*at != '#' && *at != '\n'))
			break;
		p = skip_line(at, end);
	}
	return (size_t)(end - p) >= sizeof(version) - 1 && !memcmp(p, version, sizeof(version) - 1);
}

const char *probe_format(const void *head, size_t len)
{
	const char *p = head;

	len = MIN(len, (size_t)PROBE_BYTES);
	if (len >= 8 && !memcmp(p, "QFI\xfb", 4))
		return be32_load(p + 4) == 1 ? "qcow" : "qcow2";
	for (unsigned i = 0; i < ARRAY_SIZE(magics); i++) {
		const struct magic *m = &magics[i];

		if (len >= m->off + m->len && !memcmp(p + m->off, m->bytes, m->len))
			return m->format;
	}
	return is_vmdk_text(p, p + len) ? "vmdk" : "raw";
}
