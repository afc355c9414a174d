/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/map.h - from guest offsets to host offsets. Pure: looks at the cache, starts nothing.
 *
 * Specification: "Cluster mapping", "L2 table entry", "Extended L2 Entries". */
#ifndef FMT_QCOW2_MAP_H
#define FMT_QCOW2_MAP_H

#include <stdbool.h>
#include <stdint.h>

struct qcow2;

enum ext_kind {
	EXT_DATA,               /* host_off: where the run lies in the data file */
	EXT_ZERO,               /* reads as zeros */
	EXT_BACKING,            /* not in this layer */
	EXT_COMPRESSED,         /* host_off: the L2 entry; the run ends with its cluster */
	EXT_MISS,               /* the slice is not cached, or the cluster pending: ask the home
				 * loop */
	EXT_PENDING,            /* load_wait()'s: the cluster is pending and could not be closed;
				 * the run ends with it */
	EXT_CORRUPT,            /* host_off: the L2 entry that cannot be */
};

struct ext {
	enum ext_kind kind;
	uint16_t next;          /* EXT_BACKING: cache_next() */
	uint64_t len;           /* at least 1, at most what was asked */
	uint64_t host_off;
};

/* The run of one kind that starts at @off, @len bytes at most (at least 1); it may be shorter than
 * it could be: it ends at the slice. Any thread. */
struct ext map_run(const struct qcow2 *q, uint64_t off, uint64_t len);

/* The run from @off on that the asking loop may write in place: whole in its file, not shared, by
 * what is cached. EXT_DATA, or EXT_MISS: the home loop has to see. Any thread; q->writer is set. */
struct ext map_write_run(const struct qcow2 *q, uint64_t off, uint64_t len);

/* What one cluster is, or with extended L2 entries one subcluster. */
struct unit {
	enum ext_kind kind;     /* EXT_MISS: pending */
	uint64_t host_off;      /* as in struct ext, of the unit's start */
	bool has_host;          /* the entry names a host cluster, whatever the kind */
	bool is_bitmap_bad;     /* EXT_CORRUPT: by the bitmap of an extended entry */
};

/* The unit at @off, from the words of its slice in @slot of the cache. */
struct unit map_unit(const struct qcow2 *q, long slot, uint64_t off);
/* What L2 entry @entry says of the cluster at @guest, leaving out the bitmap of an extended one. */
struct unit map_entry(const struct qcow2 *q, uint64_t entry, uint64_t guest);

#endif
