/* SPDX-License-Identifier: MIT */
/* job/copy_plan.h - what a copy has to do, chunk after chunk (copy.h), from maps of its sources.
 *
 * A plan is gone through twice: to see how much there is, and to do it. What the maps said the
 * first time is kept, up to PLAN_RUNS_MAX runs; behind these the sources are mapped once more.
 *
 * Invariants:
 *	D8  chunks are one behind the other, without a gap, and a chunk is of one source, unless it
 *	    is to be compressed. */
#ifndef JOB_COPY_PLAN_H
#define JOB_COPY_PLAN_H

#include "job/copy.h"
#include "job/map.h"

enum { PLAN_RUNS_MAX = 128 << 10 };

enum copy_status {
	COPY_DATA,                      /* it has to be read */
	COPY_ZERO,
	COPY_SHOWS,                     /* the target's backing file has it */
};

struct copy_chunk {
	uint64_t off;                   /* in the target */
	uint64_t len;                   /* 0: the end */
	enum copy_status status;
	/* DATA: where it lies; NULL: nowhere alone. */
	const struct node *file;
	uint64_t host_off;
	bool is_compressed;             /* DATA: in clusters of the source's */
};

/* What a source's map says, as far as it matters here. */
struct plan_run {
	uint64_t end;                   /* in the target */
	uint64_t host_off;              /* of its start */
	const struct node *file;
	uint64_t off;
	enum copy_status status;
	bool is_compressed;
};

struct plan_source {
	struct port_chan *pc;
	uint64_t start, end;            /* in the target */
	struct map_run ahead;           /* what the map said last; len 0: nothing */
	uint64_t ahead_off;             /* of its start, in the source */
};

struct copy_plan {
	const struct copy_opts *o;
	struct plan_source *sources;    /* owned */
	uint64_t total;                 /* bytes */
	uint64_t off;                   /* of the chunk that comes next */
	struct plan_run run;            /* what is there */
	struct plan_run *kept;          /* owned */
	size_t nkept, kept_max, next_kept;
	bool is_second;
	bool keeps;                     /* no run was left out so far */
};

/* 0 or -ENOMEM. */
int plan_init(struct copy_plan *p, const struct copy_opts *o);
void plan_fini(struct copy_plan *p);
/* In a fiber: the next chunk. 0, or -errno with @ret_fault_off, in the source. */
int plan_next_wait(struct copy_plan *p, struct copy_chunk *ret, uint64_t *ret_fault_off);
/* In a fiber: all that is known of what comes next, without passing it: it may be longer than a
 * chunk. */
int plan_look_wait(struct copy_plan *p, struct copy_chunk *ret, uint64_t *ret_fault_off);
/* What came next is done, @len bytes of it. */
void plan_pass(struct copy_plan *p, uint64_t len);
/* Begins again. */
void plan_restart(struct copy_plan *p);
/* The source in which @off of the target lies, and where there. */
const struct plan_source *plan_source_at(const struct copy_plan *p, uint64_t off,
					 uint64_t *ret_off);

#endif
