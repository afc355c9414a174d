/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/check_impl.h - what the files of the check share.
 *
 *	check.c          the order of things
 *	check_refs.c     refcount table and blocks against what was counted
 *	check_walk.c     L1 and L2 tables: counts what they use
 *	check_meta.c     snapshot table, bitmaps
 *	check_copied.c   the COPIED flags of the active tables
 *	repair*.c        what is changed where the check is a repair (repair.h)
 *	counts.c         the counts
 *	readahead.c      tables read ahead
 *
 * Every reference found in the image adds one to the count of the clusters it covers. Then
 * the counts are compared with the image's refcounts. COPIED flags are noted in the counts' marks
 * as tables go by; only where these and the refcounts do not fit are the active
 * tables read again, to name the entries.
 *
 * An L2 table that several L1 entries share (snapshots) is walked once where nothing was
 * wrong with it; how often it is met again is counted, and added up in a second walk.
 *
 * Invariants:
 *	Y1  a finding is told and counted as often as the reference does, and in its order;
 *	Y2  however often tables are named, and whatever size the file claims, what is read, told
 *	    and kept in memory is bounded by a multiple of the bytes that the file takes of its
 *	    medium: budget_start(), H2;
 *	Y3  nothing behind the end of the file, or near 2^63, is asked for. */
#ifndef FMT_QCOW2_CHECK_IMPL_H
#define FMT_QCOW2_CHECK_IMPL_H

#include "fmt/qcow2/check.h"
#include "fmt/qcow2/counts.h"
#include "fmt/qcow2/image.h"
#include "fmt/qcow2/readahead.h"
#include "fmt/qcow2/repair.h"
#include "fmt/qcow2/repair_map.h"

#define CHECK_BYTES_MIN (8 * GiB)                       /* of tables that may be read... */
#define CHECK_BYTES_FACTOR 8ULL                         /* ...and for each byte of the file */
#define CHECK_END_MAX ((1ULL << 63) - GiB)       /* no file is longer, as the reference has it */
enum {
	CHECK_SAYS_MIN = 1 << 20,               /* findings; and one for each 2 bytes */
	CHECK_CLUSTERS_MAX = INT32_MAX,         /* as the reference has it */
	CHECK_PIECE_BYTES = 64 << 10,           /* an L1 or bitmap table is read in pieces */
	CHECK_BLOCKS = 16,                      /* refcount blocks kept for looking up */
};

/* A refcount block in memory. */
struct check_block {
	uint64_t index_plus_1;          /* in the refcount table; 0: none */
	uint8_t *bytes;                 /* NULL: all zero */
};

struct check_snapshot {
	uint64_t l1_off;
	uint32_t l1_entries;
	uint64_t entry_off;             /* of its entry in the snapshot table */
};

struct check_snapshots {
	struct check_snapshot *list;    /* owned */
	uint64_t bytes;                 /* of the table */
};

struct check {
	struct qcow2_header *h;         /* changed where the file's is */
	struct chan *file;
	uint64_t file_end;              /* bytes, whole sectors */
	unsigned cluster_bits;
	uint64_t cluster;               /* bytes */
	unsigned entry_words;           /* of L2: 2 with extended entries */
	bool has_data_file;

	struct counts counts;
	struct counts again;            /* of L2 tables, by cluster: further visits... */
	struct counts again_active;     /* ...and those of them from the active L1 table */
	uint64_t clusters;              /* that the image has; a part of one may add one */
	struct check_snapshots snapshots;

	uint8_t *reftable;
	uint64_t reftable_entries;
	struct check_block blocks[CHECK_BLOCKS];
	bool is_unaligned_told;

	bool copied_differs;            /* some COPIED flag is wrong */

	/* ---- of a repair ---- */
	enum qcow2_repair repair;       /* what is changed where it is found */
	unsigned broken;                /* enum repair_break; tests */
	bool needs_rebuild;             /* refcounts have no place where they could be mended */
	bool mends_leaks, mends_errors; /* the comparison tells what will be mended */
	bool is_to_lower;               /* refcounts are too high, and shall be mended */
	bool is_to_set;                 /* COPIED flags are missing, and shall be set */
	bool is_unsynced;               /* something was written since the last sync */
	bool is_signalled;              /* the image is not fit to be changed: that was told */
	bool looks_behind;              /* refcounts behind the end of the file are compared, too */
	struct repair_map map;          /* where metadata lies */
	struct qcow2_check tables;      /* what was found of the snapshot table */

	uint64_t bytes_read, bytes_max; /* Y2 */
	uint64_t says, says_max;
	bool is_budget_told;
	const struct qcow2_check_say *say;
	struct qcow2_check result;
};

/* ---- check.c ---- */

/* The whole, for a @ck of which h, file, say, and for a repair repair, broken, are set; the map is
 * the caller's to finish. */
int check_run_wait(struct check *ck, struct qcow2_check *ret, struct err *err);
void check_say(struct check *ck, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* As error_report() does: with the program's name. */
void check_say_named(struct check *ck, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Reads, with zeros behind the end of the file. -EIO also where the range passes 2^63. */
int check_read_wait(struct check *ck, uint64_t off, void *buf, uint64_t len);
/* Too much was told: check_budget_wait() will say so. */
static inline bool check_is_endless(const struct check *ck)
{
	return ck->says > ck->says_max;
}
/* Y2: @bytes more are to be read. 0 or -EFBIG, told. */
int check_budget_wait(struct check *ck, uint64_t bytes);
/* Counts all references anew, from what is in the file now. */
int check_count_wait(struct check *ck);

/* ---- check_refs.c ---- */

static inline uint64_t check_per_block(const struct check *ck)
{
	return ck->cluster * 8 >> ck->h->refcount_order;
}
int check_reftable_read_wait(struct check *ck);
/* Where refcount block @index is. *@ret_off 0: all its counts are zero. -EIO: nowhere. */
int check_block_place(struct check *ck, uint64_t index, uint64_t *ret_off);
/* The refcount on disk of cluster @k. 0 or -errno. */
int check_refcount_wait(struct check *ck, uint64_t k, uint64_t *ret);
/* The refcounts on disk were changed: forgets what was read of them. */
void check_refcounts_forget(struct check *ck);
/* Counts the refcount blocks themselves. */
int check_blocks_use_wait(struct check *ck);
/* Compares all refcounts with the counts. */
int check_compare_wait(struct check *ck);

/* ---- check_walk.c ---- */

/* [@off, @off + @len) is used @times more often. The first cluster gets @marks. 0 or -ENOMEM. */
int check_use(struct check *ck, uint64_t off, uint64_t len, uint64_t times, unsigned marks);
/* The table of @entries at @off, and all below it. */
int check_l1_wait(struct check *ck, uint64_t off, uint64_t entries, bool is_active);
/* Adds up what was put off. */
int check_again_wait(struct check *ck);

/* ---- check_meta.c ---- */

int check_snapshot_table_wait(struct check *ck);
int check_snapshots_wait(struct check *ck);
int check_bitmaps_wait(struct check *ck);

/* ---- check_copied.c ---- */

/* Names them; of a repair, takes those flags away that are too much, and notes whether some are
 * missing. */
int check_copied_wait(struct check *ck);
/* Sets those that are missing. */
int check_copied_set_wait(struct check *ck);

/* ---- repair.c ---- */

/* After the first comparison, which told what is wrong: mends the refcounts, as far as that may be
 * done before the flags are right. @before: the result before that comparison. */
int repair_refcounts_wait(struct check *ck, const struct qcow2_check *before);
/* After the flags. */
int repair_rest_wait(struct check *ck);
/* What was written becomes durable. */
int repair_sync_wait(struct check *ck);
/* Writes metadata, aligned as it comes. */
int repair_write_wait(struct check *ck, uint64_t off, const void *buf, uint64_t len);
/* The image is not fit to be changed; @what is wrong is told once, and the image will be marked as
 * corrupt. */
void repair_signal(struct check *ck, const char *what);
/* May the table of kind @own (enum map_kind, or MAP_KINDS: none) be written at
 * [@off, @off + @len)? -EIO where other metadata lies there: told, and signalled. */
int repair_may_write_wait(struct check *ck, unsigned own, uint64_t off, uint64_t len);

/* ---- repair_refs.c ---- */

/* Of clusters [@first, @end): writes every refcount on disk that is lower than what was counted, or
 * (@lower) higher. */
int repair_change_wait(struct check *ck, uint64_t first, uint64_t end, bool lower);
/* Takes @n adjacent clusters that nothing names, from *@first_free on: they count as used now.
 * *@first_free becomes the first gap, *@ret the first cluster. 0 or -ENOMEM, -EFBIG. */
int repair_take(struct check *ck, uint64_t n, uint64_t *first_free, uint64_t *ret);
/* Does a refcount block count all of these clusters? */
bool repair_is_counted(struct check *ck, uint64_t first, uint64_t n);
/* Makes all refcounts anew from the counts, beside the old ones, and lets the header name them. */
int repair_rebuild_wait(struct check *ck);
/* Makes the file, and the counts, reach over the cluster at @off, which lies behind the end. */
int repair_extend_wait(struct check *ck, uint64_t off);

/* ---- repair_snap.c ---- */

/* Writes the snapshot table anew, without what was wrong with it. */
int repair_snapshots_wait(struct check *ck);

/* ---- L2 entries: the kinds that matter here ---- */

enum l2_kind { L2_NOTHING, L2_ZERO, L2_ZERO_KEPT, L2_DATA, L2_COMPRESSED };

static inline enum l2_kind check_l2_kind(const struct check *ck, uint64_t entry)
{
	if (entry & QCOW2_COMPRESSED)
		return L2_COMPRESSED;
	if ((entry & QCOW2_ZERO) && ck->entry_words == 1)
		return entry & QCOW2_OFFSET_MASK ? L2_ZERO_KEPT : L2_ZERO;
	if (entry & QCOW2_OFFSET_MASK)
		return L2_DATA;
	return ck->has_data_file && (entry & QCOW2_COPIED) ? L2_DATA : L2_NOTHING;
}

#endif
