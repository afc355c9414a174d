/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/meta.h - metadata of an image that is written: pages in memory.
 *
 * A page is what a commit writes of a table: META_BYTES_MAX bytes, or a cluster where that is less.
 * A page of an L2 table is one slice of the mapping cache. It holds what the file would
 * if all were written; those that differ from the file are *dirty* and stay until a commit has
 * written them. Clean ones stay as long as there is room, so that the next change of the same table
 * reads nothing.
 *
 * All metadata changes of an image go through meta_change().
 *
 * Refcounts, L2, L1 and the refcount table are paged. The header is not: mark.c and refs.c rewrite
 * the sector they mean.
 *
 * Invariants:
 *	I1  a page's bytes change only in meta_change(), which knows the old value;
 *	I2  a read (meta_read_wait) that ends after a change has seen it, whenever it began: a page
 *	    is forgotten only when no read is under way that began before it was clean;
 *	I3  a commit writes the bytes of the moment of its cut, whatever changes meanwhile;
 *	I4  a write that failed leaves its pages dirty. */
#ifndef FMT_QCOW2_META_H
#define FMT_QCOW2_META_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/list.h"
#include "loop/fiber.h"

struct chan;
struct commit;

enum {
	META_BYTES_MAX = 4096,
	META_CLEAN_MAX = 512,           /* pages kept although they are clean */
	META_DIRTY_MAX = 1024,          /* more start a commit */
	META_BUCKETS = 1024,
};

enum meta_kind { META_REFBLOCK, META_REFTABLE, META_L2, META_L1, META_KINDS };

struct meta_page {
	uint64_t off;                   /* in the file, a multiple of meta->page_bytes */
	struct list_node bucket;
	struct list_node link;          /* meta.clean (oldest first), meta.dirty, or none (cut) */
	uint64_t clean_since;           /* I2 */
	unsigned pins;
	enum meta_kind kind;
	bool is_dirty;
	bool is_new;                    /* L2: nothing durable names its table: phase A */
	bool is_cut;                    /* its bytes of the cut are being written */
	bool is_loading;
	bool is_forgotten;              /* in no list; goes when the cut has ended */
	uint8_t *bytes;                 /* as in the file; aligned to meta.page_bytes */
};

/* A read under way (I2). */
struct meta_read {
	struct list_node link;
	uint64_t seq;
};

/* What was changed: all that a log of changes would need. */
struct meta_record {
	enum meta_kind kind;
	unsigned width;                 /* bytes: 1, 2, 4, 8 or 16; in the file big-endian */
	uint64_t off;                   /* in the file, a multiple of the width */
	uint64_t old, new;
	uint64_t old_second, new_second;        /* width 16: the other eight bytes (U11) */
};

struct meta {
	struct chan *file;              /* the home loop's chan of the image file */
	struct commit *commit;          /* is told of changes */
	unsigned page_bytes;
	struct list_node buckets[META_BUCKETS];
	struct list_node clean;
	struct list_node dirty;
	unsigned nclean, ndirty;
	unsigned clean_max;             /* META_CLEAN_MAX; tests: fewer */
	struct list_node reads;         /* oldest first */
	uint64_t seq;                   /* orders reads, and pages' becoming clean */
	uint64_t nchanges;              /* records so far */
	struct fiber_queue waiting;     /* for a page being loaded */
};

void meta_init(struct meta *m, struct chan *file, struct commit *commit, unsigned page_bytes);
void meta_fini(struct meta *m);

/* The page that holds byte @off of the file, pinned: it stays, and is the same, until meta_put().
 * Reads it where it is not in memory. 0, -EIO, -ENOMEM; -EUCLEAN where that page is in memory as
 * another kind: tables overlap. */
int meta_get_wait(struct meta *m, enum meta_kind kind, uint64_t off, struct meta_page **ret);
/* The same if it is in memory, or NULL. Never waits. */
struct meta_page *meta_try_get(struct meta *m, uint64_t off);
/* The page at @off as @bytes (NULL: zeros), whatever the file holds: a new table's. Pinned. Dirty,
 * or clean where the file has these bytes already. 0, -ENOMEM; -EUCLEAN where the page is in use as
 * that of another table, which damaged refcounts can bring about. */
int meta_new(struct meta *m, enum meta_kind kind, uint64_t off, const void *bytes, bool is_dirty,
	     struct meta_page **ret);
void meta_put(struct meta *m, struct meta_page *p);
/* Forgets all pages within [@off, @off + @len), dirty or not: their cluster is freed, and what is
 * written there later is somebody else's. If a commit is writing one of them, it goes on
 * doing so: the cluster rests in quarantine longer than that. -EUCLEAN: one is in use, and none was
 * forgotten. */
int meta_forget(struct meta *m, uint64_t off, uint64_t len);

/* The value of @width bytes at byte @off of the file, which @p holds. */
uint64_t meta_value(const struct meta *m, const struct meta_page *p, uint64_t off, unsigned width);

/* The one function through which metadata changes. @p holds [rec->off, rec->off + rec->width) and
 * rec->old is there. Never waits; never fails. */
void meta_change(struct meta *m, struct meta_page *p, const struct meta_record *rec);

/* Reads [@off, @off + @len) of the file as it would be with all pages written (I2). Whole pages. */
int meta_read_wait(struct meta *m, uint64_t off, void *buf, uint64_t len);

/* ---- for commit.c ---- */

struct meta_cut;

/* Which dirty pages: phase A has refcounts and new tables; phase B L2 tables that are reachable,
 * then L1. */
enum meta_phase {
	META_PHASE_A_REFS, META_PHASE_A_L2, META_PHASE_B_L2, META_PHASE_B_L1, META_PHASES,
};
/* How many pages a cut of this phase would copy. */
unsigned meta_ndirty(const struct meta *m, enum meta_phase phase);
/* Copies them. */
/* NULL in *@ret where there is nothing to write. -ENOMEM. The pages count as written from now on
 * (I3, I4). Never waits. */
int meta_cut(struct meta *m, enum meta_phase phase, struct meta_cut **ret);
/* Writes them, neighbours together. 0 or the first error; the counters are added to. NULL is fine,
 * here and below. */
int meta_cut_write_wait(struct meta_cut *c, uint64_t *ret_bytes, uint64_t *ret_writes);
/* @res 0: they are durable. Else they become dirty again. Frees @c. */
void meta_cut_end(struct meta_cut *c, int res);

#endif
