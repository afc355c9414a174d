/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/image.h - an open image: what the files of this folder share. Nobody else includes it.
 *
 *	header.c   the header: pure
 *	snap.c     the table of internal snapshots
 *	info.c     what the image says of itself; luks.c: of its encryption
 *	open.c     opening, the node, and what a damaged image does to it
 *	cache.c    L2 slices in memory, read by all loops
 *	map.c      guest offset -> run: pure, over the cache
 *	load.c     misses: the home loop reads slices
 *	read.c     requests that read; write.c: those that write, see writer.h
 *	status.c   REQ_MAP: what lies where, and in which layer
 *	sparse.c   does the file have holes where the image has clusters?
 *	inflate.c  compressed clusters
 *
 * A read that hits the cache is translated and forwarded on its own loop. A miss, a request of
 * several runs, or a compressed cluster goes to a fiber (read.c). */
#ifndef FMT_QCOW2_IMAGE_H
#define FMT_QCOW2_IMAGE_H

#include <stdatomic.h>

#include "blk/blk.h"
#include "fmt/qcow2/cache.h"
#include "fmt/qcow2/header.h"
#include "fmt/qcow2/map.h"

enum { L1_PAGE_BYTES = 4096, L1_PAGES = 64 };

/* Part of the L1 table, kept by the home loop; page n lives in slot n % L1_PAGES. */
struct l1_page {
	uint64_t number_plus_1;         /* 0: nothing here */
	uint8_t *bytes;                 /* L1_PAGE_BYTES, aligned to them; big-endian entries */
};

/* Whether a map looks for holes of the file where the image says data. */
enum holes { HOLES_UNKNOWN, HOLES_LOOK, HOLES_NONE };

struct pack;
struct writer;

struct qcow2 {
	struct node node;
	struct writer *writer;          /* owned; NULL where the image is only read. Set before the
					 * node is handed out; what is in it is the home loop's */
	struct qcow2_header header;     /* constant once open, but for the place of the refcount
					 * table: the home loop's */
	struct qcow2_cache *cache;      /* borrowed */
	unsigned layer;                 /* this image's number in the cache's keys */

	/* What map.c needs for each request, worked out at open. Constant. */
	unsigned cluster_bits;
	unsigned entry_words;           /* 1; 2 with extended L2 entries */
	unsigned unit_bits;             /* a cluster, or a subcluster with extended L2 */
	unsigned slice_shift;           /* a slice maps 1 << slice_shift guest bytes */
	unsigned slice_bytes;
	bool has_data_file;
	bool has_raw_data;              /* and that is always what the guest sees, all by itself */
	bool has_zero_flag;             /* version 3 */
	bool is_whole;                  /* Q11: the version is put right when it is closed */
	enum node_child data_child;     /* CHILD_FILE or CHILD_DATA */

	/* The L1 table in use: the active one or a snapshot's. Constant. */
	uint64_t l1_off;
	uint32_t l1_entries;

	/* The home loop's. */
	struct l1_page l1[L1_PAGES];

	atomic_bool is_corrupt_logged;  /* any loop */
	_Atomic(enum holes) holes;      /* any loop; they all find the same */
	/* How often clusters were packed into places that others had before (Z3). The home loop
	 * counts, with release, before anything is written there; who sees an entry that was made
	 * after that sees the count. */
	_Atomic uint64_t packed_before;
};

struct inflated;

struct qcow2_chan {
	struct chan ch;
	struct fiber_gate gate;         /* requests of several runs, misses */
	struct fiber_gate inflate_gate; /* compressed clusters; never waits for `gate` */
	struct list_node inflated;      /* struct inflated, most recently used first */
	unsigned ninflated;
};

extern const struct node_ops qcow2_ops;

/* The part of its slice, as the cache counts them, that @off is in. */
static inline unsigned map_part(const struct qcow2 *q, uint64_t off)
{
	return (unsigned)(off >> (q->slice_shift - CACHE_PART_BITS)) & (CACHE_PARTS - 1);
}

static inline struct qcow2 *qcow2_of(const struct node *n)
{
	return (struct qcow2 *)((uintptr_t)n - offsetof(struct qcow2, node));
}

/* Says once what is wrong with @q. Returns -EUCLEAN. Any loop. */
int qcow2_corrupt(struct qcow2 *q, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* read.c */
void qcow2_submit(struct chan *ch, struct req *req);

/* write.c: all that changes the image, and REQ_FLUSH. */
void qcow2_submit_write(struct chan *ch, struct req *req);

/* status.c */
void qcow2_submit_map(struct chan *ch, struct req *req);

/* sparse.c. In a fiber of @ch->loop: does the file take clearly less than what it is said to hold?
 * The guess is QEMU's. */
bool sparse_wait(struct chan *ch);

/* inflate.c. In a fiber: reads @req, which lies in the compressed cluster of L2 entry @entry in the
 * image of @layer (a chan of this loop). @off is the request's offset in that image. */
int inflate_read_wait(struct chan *layer, struct req *req, uint64_t off, uint64_t entry);
/* On the home loop: the same for a whole cluster that may be in buffers of @pk still; @out is a
 * cluster's bytes. */
int inflate_packed_wait(const struct pack *pk, uint64_t entry, void *out);
void inflate_cache_init(struct qcow2_chan *qc);
void inflate_cache_fini(struct qcow2_chan *qc);

/* snap.c. In a fiber of the home loop: finds the snapshot whose id, or else name, is @wanted. */
struct snapshot {
	uint64_t l1_off;
	uint32_t l1_entries;
	uint64_t size;
};
int snapshot_find_wait(struct chan *file, const struct qcow2_header *h, const char *wanted,
		       struct snapshot *ret, struct err *err);

/* One entry of the table. */
struct snapshot_entry {
	struct snapshot snapshot;
	const char *id, *name;          /* in the walk's memory; not ended by a zero */
	size_t id_size, name_size;
	uint64_t vm_state_bytes;
	uint32_t date_s, date_ns;
	uint64_t vm_clock_ns;
	uint64_t icount;
	bool has_icount;
};

/* Goes through the table: start, wait once for each of header.nb_snapshots entries, end. */
struct snapshot_walk {
	struct chan *file;              /* borrowed, as is @h */
	const struct qcow2_header *h;
	uint64_t off;                   /* of the next entry */
	unsigned index;                 /* of the next entry */
	char *text;                     /* owned */
	struct snapshot_entry entry;    /* the last one read */
};
int snapshot_walk_start(struct snapshot_walk *w, struct chan *file, const struct qcow2_header *h,
			struct err *err);
int snapshot_walk_wait(struct snapshot_walk *w, struct err *err);
void snapshot_walk_end(struct snapshot_walk *w);

#endif
