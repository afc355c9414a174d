/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/luks.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"

enum { LUKS_SECTOR = 512, LUKS_SLOT_ACTIVE = 0x00ac71f3 };

/* "xts-plain64", "cbc-essiv:sha256": the mode, its IV generator, and that one's hash. */
static int parse_mode(const char *text, struct qcow2_luks_info *ret, struct err *err)
{
	size_t n = strcspn(text, "-"), m;

	if (!text[n])
		return err_set(err, EINVAL, "Unexpected cipher mode string format '%s'", text);
	snprintf(ret->mode, sizeof(ret->mode), "%.*s", (int)n, text);
	text += n + 1;
	m = strcspn(text, ":");
	snprintf(ret->ivgen, sizeof(ret->ivgen), "%.*s", (int)m, text);
	if (text[m])
		snprintf(ret->ivgen_hash, sizeof(ret->ivgen_hash), "%s", text + m + 1);
	return 0;
}

int luks_parse(const struct luks_disk *d, struct qcow2_luks_info *ret, struct err *err)
{
	static const uint8_t magic[6] = { 'L', 'U', 'K', 'S', 0xba, 0xbe };
	struct qcow2_luks_info info = {
		.payload_off = (uint64_t)be32_get(d->payload_sector) * LUKS_SECTOR,
		.iterations = be32_get(d->iterations),
	};
	uint32_t key_bits = be32_get(d->key_bytes) * 8;
	char mode[33];
	int rc;

	if (memcmp(d->magic, magic, sizeof(magic)))
		return err_set(err, EINVAL, "Volume is not in LUKS format");
	if (be16_get(d->version) != 1)
		return err_set(err, ENOTSUP, "LUKS version %u is not supported",
			       be16_get(d->version));
	snprintf(mode, sizeof(mode), "%.32s", d->mode);
	rc = parse_mode(mode, &info, err);
	if (rc)
		return rc;
	/* XTS takes two keys of the cipher's. */
	if (!strcmp(info.mode, "xts"))
		key_bits /= 2;
	snprintf(info.cipher, sizeof(info.cipher), "%.32s-%u", d->cipher, (unsigned)key_bits);
	snprintf(info.hash, sizeof(info.hash), "%.32s", d->hash);
	snprintf(info.uuid, sizeof(info.uuid), "%.40s", d->uuid);
	for (unsigned i = 0; i < LUKS_SLOTS; i++) {
		const struct luks_slot_disk *s = &d->slots[i];

		info.slots[i].is_active = be32_get(s->active) == LUKS_SLOT_ACTIVE;
		info.slots[i].iterations = be32_get(s->iterations);
		info.slots[i].stripes = be32_get(s->stripes);
		info.slots[i].key_off = (uint64_t)be32_get(s->key_sector) * LUKS_SECTOR;
	}
	*ret = info;
	return 0;
}
