/* SPDX-License-Identifier: MIT */
/* sim/disk.h - a node whose medium is simulated, and a log of all that happens to it.
 *
 * A request is *submitted*, *takes effect*, *is done*: three steps that the world (world.h) lets
 * happen in any order with those of other requests. A sync makes durable what was done before the
 * sync was submitted, and nothing else (crash.h). So does a write with FUA, for itself.
 *
 * What a medium can be:
 *	a file      never-written bytes are zeros; grows, by a write or without, and a crash may
 *	            take that back; what was discarded reads as zeros; can be cut, and what comes
 *	            behind its end later finds zeros
 *	a device    never-written and discarded bytes are garbage; its size is fixed
 *
 * Two disks may share a medium and a log, and lose power together.
 *
 * A failing request leaves the first part of its range changed, as the seed decides, and the
 * rest as it was. After a failed sync all later ones fail, as those of drv/file do. */
#ifndef SIM_DISK_H
#define SIM_DISK_H

#include "blk/blk.h"
#include "sim/pages.h"
#include "sim/world.h"

enum sim_event_kind { SIM_SUBMIT, SIM_EFFECT, SIM_DONE };

enum sim_op_kind { SIM_WRITE, SIM_ZERO, SIM_DISCARD, SIM_SYNC, SIM_TRUNCATE, SIM_GROW };

#define SIM_NEVER UINT32_MAX
#define SIM_SECOND (1ULL << 48)         /* the offset in the medium where the second disk begins */

/* A request that changes something. The three numbers are those of its events. */
struct sim_op {
	enum sim_op_kind kind;
	bool is_fua;
	bool is_data;                   /* of the guest; for the dump, and for fates */
	uint8_t disk;                   /* its number; that of a second one is in `off` as well */
	int res;
	uint32_t submit, effect, done;
	uint64_t off, len;              /* what it did: less than asked for where it failed;
					 * TRUNCATE: what the file lost; GROW: what it gained */
	uint64_t garbage;               /* DISCARD: what it leaves there; 0: zeros */
	/* WRITE: bytes. From the effect on, those of all sectors that it touches, as
	 * they were afterwards: [wide_off, wide_off + wide_len). */
	uint8_t *bytes;
	uint64_t wide_off, wide_len;
};

struct sim_event {
	enum sim_event_kind kind;
	uint32_t op;
};

struct sim_log {
	struct sim_op *ops;
	struct sim_event *events;
	uint32_t nops, nevents, ops_room, events_room;
	/* Optional: is called after each event. */
	void (*probe)(void *arg);
	void *probe_arg;
};

/* Requests of @kinds (1 << enum sim_op_kind, or these) are counted; from the nth on (1 is the
 * first) @count of them fail. */
enum { SIM_READS = 1 << 8, SIM_METADATA = 1 << 9 /* writes that are not the guest's data */ };
struct sim_fault {
	unsigned kinds;
	int error;                      /* positive errno */
	uint64_t nth, count;            /* nth 0: never */
	uint64_t seen, struck;
};

/* Will none of them fail any more? */
static inline bool sim_fault_is_over(const struct sim_fault *f)
{
	return !f->nth || f->seen + 1 >= f->nth + f->count;
}

struct sim_disk_opts {
	const char *name;
	struct world *world;            /* NULL: every request is answered at once */
	struct loop *home;
	bool is_device;
	uint64_t size;                  /* bytes */
	struct sim_pages *pages;        /* borrowed: the medium */
	unsigned number;                /* 1: a second disk, beside the one with number 0: it has
					 * the part of the medium behind SIM_SECOND, and the same
					 * log, but its syncs are its own; its size is fixed */
	struct sim_log *log;            /* borrowed; or NULL */
	struct sim_fault *fault;        /* borrowed; or NULL */
	bool (*is_data)(const void *bytes, uint64_t len);       /* optional, for op.is_data */
	bool read_only;
	uint64_t seed;
};

/* What a COPY to a disk of these takes its data from, which is a write of that then. */
struct sim_source {
	struct node node;               /* only its address counts */
	struct iovec iov;
};

/* In a fiber of the home loop. *@ret is owned. */
int sim_disk_open_wait(const struct sim_disk_opts *opts, struct node **ret);

void sim_log_init(struct sim_log *log);
void sim_log_fini(struct sim_log *log);

#endif
