/* SPDX-License-Identifier: MIT */
/* job/copy.h - what disks hold, one behind the other, into another disk.
 *
 * First the sources are mapped: what is zero, and what the target has in its backing file, is not
 * read (copy_plan.h). What is left is cut into *pieces*, of which several are under way, a fiber
 * and a buffer each. A piece is read, looked through for zeros and written (copy_run()).
 *
 * A *chunk* is what messages and progress speak of, as with qemu-img: a stretch of one state of at
 * most COPY_CHUNK_BYTES where it has to be read.
 *
 * Before that, what lies in a file that can share its space with the target is shared, all of a run
 * at once (REQ_SHARE): no data is moved, and nobody looks for zeros in it. What cannot be shared is
 * read and written as everything else; a file with which the target cannot share is not tried, and
 * one of which a try has failed is not tried again.
 *
 * Writes are sent in the order of the disk, so that a format that allocates as it is written lays
 * the image out in that order; each piece's are answered when they are. With `out_of_order` each
 * piece is written as soon as it has been read.
 *
 * Invariants:
 *	D5  0 is returned only if every byte of the sources is in the target, reads as it does
 *	    there, or was given up in a salvage and told of;
 *	D6  nothing is written behind the last piece of the plan, and nothing at all before the
 *	    sources have been mapped to their end;
 *	D7  there are at most `depth` buffers of COPY_CHUNK_BYTES, and no more of them than
 *	    COPY_DEPTH_MIN or COPY_BUFFER_BYTES hold, or those of what is compressed, however
 *	    large the disks are;
 *	D9  what could not be shared, or not to its end, is copied; and each file of the sources
 *	    costs one such try at most;
 *	D10 when on_lap_wait() is called nothing is in flight, and all that comes before is in the
 *	    target;
 *	D11 when on_no_room_wait() is called no write is in flight; what found no room is written
 *	    once more. */
#ifndef JOB_COPY_H
#define JOB_COPY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct node;
struct port_chan;

enum {
	COPY_CHUNK_BYTES = 2 << 20,
	COPY_PIECE_BYTES = 1 << 20,
	COPY_SLOW_PIECE_BYTES = 512 << 10,      /* with a rate: what is sent comes in small steps */
	COPY_DEPTH_MIN = 8,
	COPY_DEPTH_MAX = 256,
	COPY_BUFFER_BYTES = 32 << 20,
	COPY_PACKED_DEPTH_MIN = 6,              /* the same where it is compressed: */
	COPY_PACKED_BYTES = 12 << 20,           /* that takes memory, too */
	COPY_SPARSE_MAX = 16 << 20,
	COPY_SHARE_BYTES = 1 << 30,             /* at a time: between, it can be stopped */
	COPY_SHARERS_MAX = 8,                   /* files; what others hold is not shared */
};

enum copy_fault {
	COPY_MAP_FAILED = 1,            /* `off`: of the source that it is in */
	COPY_READ_FAILED,
	COPY_WRITE_FAILED,
};

/* Why a copy ended early. */
struct copy_result {
	enum copy_fault fault;          /* 0: none */
	uint64_t chunk_off;             /* in the target: of the chunk that failed */
	uint64_t off;                   /* READ: of the first byte that cannot be read */
	int error;                      /* -errno; -ECANCELED: it was stopped */
};

struct copy_opts {
	struct port_chan *const *sources;       /* borrowed; all of one loop, the target's too */
	unsigned nsources;
	struct port_chan *target;       /* borrowed; at least as long as the sources together */
	/* Zeros of so many bytes are not written as data; 0: all are. A multiple of 512, at most
	 * COPY_SPARSE_MAX. */
	uint64_t min_sparse;
	uint64_t align;                 /* what writes should be multiples of; a power of two */
	bool target_is_zero;            /* it reads as zeros; those are not written again */
	/* What is not in the first source itself, but in its backing file, the target has, too. */
	bool target_has_backing;
	uint64_t backing_size;          /* its bytes; what is zero behind them is zero there */
	uint64_t cluster;               /* compress, in clusters of this size; 0: do not */
	bool out_of_order;
	bool salvage;                   /* what cannot be read is zero */
	unsigned depth;                 /* pieces under way: 1 .. COPY_DEPTH_MAX; see D7 */
	uint64_t rate;                  /* bytes a second; 0: as fast as can be */
	const atomic_bool *is_stopped;  /* NULL: it never is; else looked at before each piece */
	bool shares;                    /* what can be shared is; not with `cluster` */
	/* What cannot, the file system copies, where it does: zeros are not looked for then, and
	 * the target is no format that allocates. */
	bool offloads;
	/* Optional. Called in a fiber before anything behind each @lap bytes is begun. An error
	 * ends the copy. */
	int (*on_lap_wait)(void *arg);
	uint64_t lap;
	/* Optional. Called in a fiber when the target has no room. An error, or no room after that,
	 * ends the copy. */
	int (*on_no_room_wait)(void *arg);
	/* Optional. All of the first @done bytes of @total that have to be copied is under way. */
	void (*on_progress)(void *arg, uint64_t done, uint64_t total);
	/* Optional. Salvage: what could not be mapped or read, @off in its source. */
	void (*on_lost)(void *arg, enum copy_fault fault, uint64_t off, int error);
	void *arg;
};

/* In a fiber of the ports' loop. 0; or -errno, with *@ret filled if it is not -ENOMEM. Nothing is
 * flushed. */
int copy_run_wait(const struct copy_opts *o, struct copy_result *ret);

/* How many bytes from the start of @buf, which is @len bytes for the target's @off, are alike:
 * zero, or data, in which there may be zeros of less than @min_sparse bytes. The end is a multiple
 * of @align, or @len. Pure. */
uint64_t copy_run(const uint8_t *buf, uint64_t len, uint64_t off, uint64_t min_sparse,
		  uint64_t align, bool *ret_is_zero);

#endif
