/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/info.h - what an open image says of itself: features, snapshots, bitmaps, encryption.
 *
 * The memory taken is bounded by the format's limits (64 MiB of snapshot table, 64 MiB of bitmap
 * directory), and by what the file really holds; so is the time. */
#ifndef FMT_QCOW2_INFO_H
#define FMT_QCOW2_INFO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct node;

struct qcow2_snapshot_info {
	char *id, *name;                /* owned */
	uint64_t vm_state_bytes;
	uint32_t date_s, date_ns;
	uint64_t vm_clock_ns;
	uint64_t icount;
	bool has_icount;
};

struct qcow2_bitmap_info {
	char *name;                     /* owned */
	uint64_t granularity;           /* bytes */
	bool is_in_use, is_auto;
};

enum { LUKS_SLOTS = 8 };

/* A LUKS 1 header, as the words in it are shown. */
struct qcow2_luks_info {
	char cipher[48];                /* "aes-256" */
	char mode[33];                  /* "xts" */
	char ivgen[33];                 /* "plain64" */
	char ivgen_hash[33];            /* "": none */
	char hash[33];
	char uuid[41];
	uint64_t payload_off;
	uint32_t iterations;
	struct {
		bool is_active;
		uint32_t iterations, stripes;
		uint64_t key_off;
	} slots[LUKS_SLOTS];
};

struct qcow2_info {
	unsigned version;
	uint64_t cluster_size;
	unsigned refcount_bits;
	bool is_zstd;
	bool is_lazy, is_dirty, is_corrupt, has_extended_l2;
	bool has_data_file, is_data_file_raw;
	bool is_encrypted;
	struct qcow2_luks_info *luks;   /* owned; NULL: AES, or not encrypted */
	struct qcow2_snapshot_info *snapshots;  /* owned */
	size_t nsnapshots;
	struct qcow2_bitmap_info *bitmaps;      /* owned */
	size_t nbitmaps;
};

/* Reads what the qcow2 node @n says. In a fiber of its home loop. 0 or -errno, and nothing in
 * *@ret, where a table is damaged: QEMU then does not open the image at all. */
int qcow2_info_wait(struct node *n, struct qcow2_info *ret, struct err *err);
/* A zeroed @info is fine. */
void qcow2_info_fini(struct qcow2_info *info);

#endif
