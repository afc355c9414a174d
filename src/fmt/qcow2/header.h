/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/header.h - the header and its extensions, read and judged. Pure: no I/O. */
#ifndef FMT_QCOW2_HEADER_H
#define FMT_QCOW2_HEADER_H

#include "fmt/qcow2/format.h"

struct err;

struct qcow2_header {
	unsigned version;               /* 2 or 3 */
	bool is_unfinished;             /* QCOW2_VERSION_UNFINISHED */
	unsigned cluster_bits;          /* 9 to 21 */
	unsigned refcount_order;        /* 0 to 6 */
	uint32_t header_length;
	uint64_t size;                  /* bytes, as the header says */
	uint32_t l1_entries;
	uint64_t l1_off;
	uint64_t reftable_off;
	uint32_t reftable_clusters;
	uint32_t nb_snapshots;
	uint64_t snapshots_off;
	uint64_t incompatible;
	uint64_t compatible;
	uint64_t autoclear;
	unsigned compression;           /* QCOW2_COMPRESSION_* */
	unsigned encryption;            /* QCOW2_ENCRYPTION_* */
	uint64_t crypto_off;            /* LUKS: its header in the file */
	uint64_t crypto_len;
	bool is_in_use;                 /* our mark of an image that was not closed: mark.c */
	bool has_void_bitmaps;          /* written by a program that knows none */
	uint32_t nb_bitmaps;            /* 0: none, or void */
	uint64_t bitmaps_off;           /* the directory of bitmaps */
	uint64_t bitmaps_bytes;
	char *backing_name;             /* owned, NULL: none */
	char *backing_format;
	char *data_file_name;
};

/* Reads the header from the first @len bytes of an image. -EAGAIN: at least *@ret_need bytes (at
 * most a cluster) are needed. -EINVAL: damaged or no qcow2; -ENOTSUP: an unknown or
 * unsupported feature, by name. On success *@ret is owned by the caller; else it is untouched. */
int qcow2_header_parse(const void *buf, size_t len, struct qcow2_header *ret, size_t *ret_need,
		       struct err *err);
/* The same for an image that is to be checked: one without a refcount table, or with an impossible
 * snapshot table, will do. */
int qcow2_header_parse_for_check(const void *buf, size_t len, struct qcow2_header *ret,
				 size_t *ret_need, struct err *err);
void qcow2_header_fini(struct qcow2_header *h);

static inline uint64_t qcow2_cluster_size(const struct qcow2_header *h)
{
	return 1ULL << h->cluster_bits;
}

static inline bool qcow2_has_extended_l2(const struct qcow2_header *h)
{
	return h->incompatible & QCOW2_INCOMPAT_EXTENDED_L2;
}

static inline bool qcow2_has_data_file(const struct qcow2_header *h)
{
	return h->incompatible & QCOW2_INCOMPAT_DATA_FILE;
}

/* Guest bytes that one L2 table maps. */
static inline uint64_t qcow2_l2_coverage(const struct qcow2_header *h)
{
	return 1ULL << (2 * h->cluster_bits - 3 - (qcow2_has_extended_l2(h) ? 1 : 0));
}

/* -ENOTSUP, by name, where the content is encrypted; parsing a header does not mind. */
int qcow2_check_encryption(const struct qcow2_header *h, struct err *err);

/* -EIO where [@off, @off + @len) is farther than QEMU reads any file; what is merely behind the end
 * of a file reads as zeros. */
int qcow2_check_reach(uint64_t off, uint64_t len);

/* Checks a table of @bytes at @off: aligned to a cluster, not longer than @max, below 2^63. */
int qcow2_table_check(const struct qcow2_header *h, const char *what, uint64_t off, uint64_t bytes,
		      uint64_t max, struct err *err);

#endif
