/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/format.h - the bytes of a qcow2 image, as the specification has them. */
#ifndef FMT_QCOW2_FORMAT_H
#define FMT_QCOW2_FORMAT_H

#include "base/bits.h"
#include "base/endian.h"

#define QCOW2_MAGIC 0x514649fbU         /* "QFI\xfb" */
/* Byre's, set in the version of an image that is being made: one that nobody knows, so that nobody
 * opens it (Q11). */
#define QCOW2_VERSION_UNFINISHED 0x80000000U

enum {
	QCOW2_HEADER_V2_BYTES = 72,
	QCOW2_HEADER_V3_BYTES = 104,
	QCOW2_CLUSTER_BITS_MIN = 9,
	QCOW2_CLUSTER_BITS_MAX = 21,            /* QEMU's limit */
	QCOW2_SUBCLUSTERS = 32,
	QCOW2_BACKING_NAME_MAX = 1023,
	QCOW2_L1_BYTES_MAX = 32 << 20,          /* QEMU's limit */
	QCOW2_REFTABLE_BYTES_MAX = 8 << 20,     /* QEMU's limit */
	QCOW2_SNAPSHOTS_MAX = 65536,
	QCOW2_SNAPSHOT_EXTRA_MAX = 1024,
	QCOW2_SNAPSHOT_TABLE_BYTES_MAX = 64 << 20,
	QCOW2_BACKING_FORMAT_MAX = 15,          /* QEMU's limit */
	QCOW2_BITMAPS_MAX = 65535,
	QCOW2_BITMAP_DIRECTORY_BYTES_MAX = 1024 * 65535,        /* QEMU's limit */
};

struct qcow2_header_disk {
	be32_t magic;
	be32_t version;
	be64_t backing_file_offset;
	be32_t backing_file_size;
	be32_t cluster_bits;
	be64_t size;
	be32_t crypt_method;
	be32_t l1_size;
	be64_t l1_table_offset;
	be64_t refcount_table_offset;
	be32_t refcount_table_clusters;
	be32_t nb_snapshots;
	be64_t snapshots_offset;
	/* version 3 */
	be64_t incompatible_features;
	be64_t compatible_features;
	be64_t autoclear_features;
	be32_t refcount_order;
	be32_t header_length;
	/* additional fields: present where header_length covers them */
	uint8_t compression_type;
	uint8_t padding[7];
};
_Static_assert(sizeof(struct qcow2_header_disk) == 112, "additional fields end at 112");

enum qcow2_incompatible {
	QCOW2_INCOMPAT_DIRTY = 1 << 0,
	QCOW2_INCOMPAT_CORRUPT = 1 << 1,
	QCOW2_INCOMPAT_DATA_FILE = 1 << 2,
	QCOW2_INCOMPAT_COMPRESSION = 1 << 3,
	QCOW2_INCOMPAT_EXTENDED_L2 = 1 << 4,
	QCOW2_INCOMPAT_KNOWN = (1 << 5) - 1,
};

enum qcow2_compatible { QCOW2_COMPAT_LAZY_REFCOUNTS = 1 << 0 };
enum qcow2_autoclear {
	QCOW2_AUTOCLEAR_BITMAPS = 1 << 0,
	QCOW2_AUTOCLEAR_DATA_FILE_RAW = 1 << 1,
	QCOW2_AUTOCLEAR_KNOWN = (1 << 2) - 1,
};

#define QCOW2_EXT_END 0U
#define QCOW2_EXT_BACKING_FORMAT 0xe2792acaU
#define QCOW2_EXT_FEATURE_NAMES 0x6803f857U
#define QCOW2_EXT_BITMAPS 0x23852875U
#define QCOW2_EXT_CRYPTO 0x0537be77U
#define QCOW2_EXT_DATA_FILE 0x44415441U
#define QCOW2_EXT_IN_USE 0x62797265U    /* "byre": ours, see mark.c */

struct qcow2_ext_disk {
	be32_t type;
	be32_t len;
};

struct qcow2_feature_disk {
	uint8_t type;           /* 0 incompatible, 1 compatible, 2 autoclear */
	uint8_t bit;
	char name[46];          /* padded with zeros, not always ended by one */
};

struct qcow2_snapshot_disk {
	be64_t l1_table_offset;
	be32_t l1_size;
	be16_t id_size;
	be16_t name_size;
	be32_t date_s;
	be32_t date_ns;
	be64_t vm_clock_ns;
	be32_t vm_state_size;
	be32_t extra_size;
	/* extra data, id, name, padding to 8 bytes */
};
_Static_assert(sizeof(struct qcow2_snapshot_disk) == 40, "snapshot entries start with 40 bytes");

struct qcow2_snapshot_extra_disk {      /* there may be less of it, or more */
	be64_t vm_state_size;
	be64_t disk_size;
	be64_t icount;
};

enum { QCOW2_COMPRESSION_DEFLATE, QCOW2_COMPRESSION_ZSTD };
enum { QCOW2_ENCRYPTION_NONE, QCOW2_ENCRYPTION_AES, QCOW2_ENCRYPTION_LUKS };

struct qcow2_ext_crypto_disk {
	be64_t offset;
	be64_t length;
};

struct qcow2_ext_bitmaps_disk {
	be32_t nb_bitmaps;
	be32_t reserved;
	be64_t directory_size;
	be64_t directory_offset;
};

struct qcow2_bitmap_disk {              /* then: extra data, the name, up to a multiple of 8 */
	be64_t table_off;
	be32_t table_entries;
	be32_t flags;
	uint8_t type;
	uint8_t granularity_bits;
	be16_t name_size;
	be32_t extra_size;
};
_Static_assert(sizeof(struct qcow2_bitmap_disk) == 24, "directory entries start with 24 bytes");

/* L1 and L2 entries, in the machine's byte order. */
#define QCOW2_OFFSET_MASK 0x00fffffffffffe00ULL /* bits 9-55 */
#define QCOW2_COPIED (1ULL << 63)
#define QCOW2_COMPRESSED (1ULL << 62)
#define QCOW2_ZERO 1ULL

/* Entry @i of a refcount block, or of a part of one: 1 << @order bits each. */
static inline uint64_t qcow2_refcount_at(unsigned order, const uint8_t *block, uint64_t i)
{
	switch (order) {
	case 3: return block[i];
	case 4: return be16_load(block + 2 * i);
	case 5: return be32_load(block + 4 * i);
	case 6: return be64_load(block + 8 * i);
	default: break;
	}
	/* Less than a byte: the lowest bits come first. */
	return block[i << order >> 3] >> (i << order & 7) & ((1U << (1U << order)) - 1);
}

/* @value fits. */
static inline void qcow2_refcount_put(unsigned order, uint8_t *block, uint64_t i, uint64_t value)
{
	unsigned shift = i << order & 7;
	uint8_t mask;

	switch (order) {
	case 3: block[i] = (uint8_t)value; return;
	case 4: be16_store(block + 2 * i, (uint16_t)value); return;
	case 5: be32_store(block + 4 * i, (uint32_t)value); return;
	case 6: be64_store(block + 8 * i, value); return;
	default: break;
	}
	mask = (uint8_t)(((1U << (1U << order)) - 1) << shift);
	block += i << order >> 3;
	*block = (uint8_t)((*block & ~mask) | value << shift);
}

#endif
