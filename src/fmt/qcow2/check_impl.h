/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/check_impl.h - what the files of the check share.
 *
 *	check.c          the order of things; refcount table and blocks against what was counted
 *	check_walk.c     L1 and L2 tables: counts what they use
 *	check_meta.c     snapshot table, bitmaps
 *	check_copied.c   the COPIED flags of the active tables
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

struct check {
	const struct qcow2_header *h;
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

	uint8_t *reftable;
	uint64_t reftable_entries;
	struct check_block blocks[CHECK_BLOCKS];
	bool is_unaligned_told;

	bool copied_differs;            /* some COPIED flag is wrong */
	uint64_t bytes_read, bytes_max; /* Y2 */
	uint64_t says, says_max;
	bool is_budget_told;
	const struct qcow2_check_say *say;
	struct qcow2_check result;
};

/* ---- check.c ---- */

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
/* The refcount on disk of cluster @k. 0 or -errno. */
int check_refcount_wait(struct check *ck, uint64_t k, uint64_t *ret);

/* ---- check_walk.c ---- */

/* [@off, @off + @len) is used @times more often. The first cluster gets @marks. 0 or -ENOMEM. */
int check_use(struct check *ck, uint64_t off, uint64_t len, uint64_t times, unsigned marks);
/* The table of @entries at @off, and all below it. */
int check_l1_wait(struct check *ck, uint64_t off, uint64_t entries, bool is_active);
/* Adds up what was put off. */
int check_again_wait(struct check *ck);

/* ---- check_meta.c ---- */

struct check_snapshot {
	uint64_t l1_off;
	uint32_t l1_entries;
	uint64_t entry_off;             /* of its entry in the snapshot table */
};

struct check_snapshots {
	struct check_snapshot *list;    /* owned */
	uint64_t bytes;                 /* of the table */
};

int check_snapshot_table_wait(struct check *ck, struct check_snapshots *ret);
int check_snapshots_wait(struct check *ck, const struct check_snapshots *snapshots);
int check_bitmaps_wait(struct check *ck);

/* ---- check_copied.c ---- */

int check_copied_wait(struct check *ck);

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
