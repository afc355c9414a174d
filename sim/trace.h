/* SPDX-License-Identifier: MIT */
/* sim/trace.h - a guest at work on a qcow2 image over a simulated disk, all of it from a seed.
 *
 * A seed's remainder by TRACE_CELLS is its *cell*: what the image is like, the size of its clusters
 * and whether one loop or two work on it. The rest of the seed decides everything else. One or
 * more fibers a loop write, zero, discard, read, flush and sleep; what they read is compared
 * with the model at once. Now and then the image is closed and opened again.
 *
 * What a trace leaves is the disk's log, from which crash.h makes what a power cut would leave, and
 * the model, which knows what a guest may find there: oracle.h. */
#ifndef SIM_TRACE_H
#define SIM_TRACE_H

#include "sim/disk.h"
#include "sim/image.h"
#include "sim/model.h"
#include "sim/pages.h"
#include "sim/why.h"

enum trace_kind {
	TRACE_FRESH,
	TRACE_RAW_BACKING,
	TRACE_QCOW2_BACKING,
	TRACE_RECYCLED,                 /* free clusters hold what others wrote */
	TRACE_GROWTH,                   /* of refcount blocks, and of their table */
	TRACE_DISCARD,
	TRACE_ZEROES,
	TRACE_SHARED,                   /* with a snapshot */
	TRACE_PACKED,                   /* compressed clusters; with a snapshot or without */
	TRACE_DATA_FILE,                /* two disks; the second one raw or not */
	TRACE_BITMAPS,                  /* persistent bitmaps, with whatever else */
	TRACE_LAZY,                     /* lazy refcounts, with whatever else */
	TRACE_KINDS,
};

/* Sizes of clusters; from TRACE_EXTENDED on with extended L2 entries. */
enum { TRACE_SIZES = 7, TRACE_EXTENDED = 4,
       TRACE_CELLS = TRACE_KINDS * TRACE_SIZES * WORLD_LOOPS_MAX };

/* What is compressed: nothing, half of the writes because they ask for it, or all of them. */
enum trace_packs { PACKS_NOTHING, PACKS_ASKED, PACKS_ALL };

struct trace_opts {
	uint64_t seed;
	enum trace_kind kind;
	unsigned nloops;
	struct sim_image_opts image;
	uint64_t backing_size;          /* bytes; 0: no backing file */
	unsigned backing_bits;          /* clusters of a qcow2 backing file */
	bool is_device;
	bool writethrough;
	bool gives_back;                /* what is freed is discarded */
	unsigned nfibers;
	unsigned nops;                  /* of all fibers */
	unsigned reopen_after;          /* operations; 0: never */
	enum trace_packs packs;
	bool is_in_order;               /* what writes asks for it */
	bool copies;                    /* half of the writes come as a COPY */
	bool is_racy;                   /* requests overlap as much as they like, and starve */
	uint64_t broken;                /* enum writer_break */
	struct sim_fault fault;
};

/* What the writer held when event i of the log had happened. The first event behind a commit's cut
 * is what that submits: nobody changes anything in between. */
struct trace_probe {
	unsigned session;               /* how often the image was opened */
	uint64_t commits, cuts;         /* those that have ended, and their cuts; the rest counts
					 * clusters: */
	uint64_t held;                  /* that have refcounts in memory which are no entry's */
	uint64_t filled, freed;         /* that came into the reserve, or quarantine, ever */
	uint64_t table, left;           /* of the refcount table; and of those before it, ever */
	bool is_moving;                 /* on disk, the table may be a new one already */
};

struct trace {
	struct trace_opts o;
	struct sim_image im;
	struct model model;
	struct sim_pages start, medium, backing;
	uint64_t start_size, size;
	uint64_t backing_file_size;
	struct sim_log log;
	struct trace_probe *probes;
	uint32_t probes_room;
	unsigned sessions;
	uint32_t first_change;          /* the first event of what is not the header's */
	bool is_closed;                 /* cleanly: nothing may be left of the writer's use */
	int close_res;
	struct why why;                 /* empty: all that was read was right */
};

void trace_opts_init(struct trace_opts *o, uint64_t seed);
/* "seed 17: zeroes, clusters of 4096, 2 loops, ..." */
void trace_describe(const struct trace_opts *o, char *ret, size_t size);
/* Runs it all. False: t->why. @t is to be finished in any case. */
bool trace_run(struct trace *t, const struct trace_opts *o);
void trace_fini(struct trace *t);

/* In a fiber: opens the image in the disk that @so describes, its data file beside it, and what is
 * below it. @opts without cache. *@ret and *@ret_cache are owned. */
struct qcow2_opts;
struct qcow2_cache;
struct err;
int trace_open_wait(const struct trace *t, const struct sim_disk_opts *so,
		    const struct qcow2_opts *opts, struct qcow2_cache **ret_cache,
		    struct node **ret, struct err *err);

#endif
