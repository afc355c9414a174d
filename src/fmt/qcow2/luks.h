/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/luks.h - the header of LUKS 1, for show: nothing is decrypted. Pure. */
#ifndef FMT_QCOW2_LUKS_H
#define FMT_QCOW2_LUKS_H

#include "base/endian.h"
#include "fmt/qcow2/info.h"

struct luks_slot_disk {
	be32_t active;
	be32_t iterations;
	uint8_t salt[32];
	be32_t key_sector;
	be32_t stripes;
};

struct luks_disk {
	uint8_t magic[6];
	be16_t version;
	char cipher[32];
	char mode[32];
	char hash[32];
	be32_t payload_sector;
	be32_t key_bytes;
	uint8_t digest[20];
	uint8_t salt[32];
	be32_t iterations;
	char uuid[40];
	struct luks_slot_disk slots[LUKS_SLOTS];
};
_Static_assert(sizeof(struct luks_disk) == 592, "a LUKS header has 592 bytes");

/* -EINVAL: no LUKS 1 header, or a cipher mode without an IV generator. */
int luks_parse(const struct luks_disk *d, struct qcow2_luks_info *ret, struct err *err);

#endif
