/* SPDX-License-Identifier: MIT */
/* export/vub/vub_impl.h - what the files of this folder share. Nobody else includes it.
 *
 *	message.c    what messages must look like
 *	descriptor.c  what descriptors in them are, and their end
 *	guard.c      SIGBUS in the front end's memory
 *	memory.c     slots and addresses
 *	dirty.c      the log of pages written, for migration
 *	config.c     what the device says of itself
 *	split.c      split rings
 *	packed.c     packed rings
 *	inflight.c   requests in flight, kept where they outlive us
 *	chain.c      descriptors to iovecs
 *	request.c    block requests to the port, and back
 *	queue.c      a virtqueue's life: kicks, requests, used entries, calls
 *	handler.c    what each message does
 *	session.c    messages from the socket, replies to it
 *	device.c     a device: two seats, each with queues and one front end after the other
 *
 * The path of a read: the kick's poll completes and queue.c takes all that is on the ring, each
 * chain copied once (chain.c); request.c checks it and lends the request, whose iovec points into
 * the guest's memory, to the port. done() writes the status byte and queues the request; at the
 * end of the turn queue.c writes the used entries of all of them, publishes them at once and
 * notifies the guest once, if it wants that. No allocation, no lock, no copy, no fiber.
 *
 * Invariants:
 *	V17  what stands in the guest's memory is read once, and only the copy is checked and used;
 *	V18  whatever a ring or a chain looks like, it is at worst the end of that queue: it is
 *	    *broken*, its requests in flight end unseen, and nothing else is touched;
 *	V19  a request is in flight from the ring until its used entry is published, exactly once; a
 *	    descriptor chain that is in flight is not taken again;
 *	V20  a queue that was halted has nothing in flight, has published all that was answered, and
 *	    touches neither memory nor descriptors until it is run again;
 *	V21  a front end that has tracked what was in flight gets each request answered after a
 *	    restart of ours, in the order in which they were taken, none of them twice;
 *	V22  a queue that begins to run notifies once: what was used before it, unseen, is seen;
 *	V23  pages that we have written (data, whatever became of its request; statuses; rings and
 *	     what they ask of the guest) are in the log, after they were written and before the
 *	     queue is halted: who copies the memory and looks at the log again misses nothing;
 *	V24  of a device's two front ends only one has queues that run: a machine that moves from
 *	     one monitor to another has written all before it reads again;
 *	V25  whatever a front end does to the descriptors that it is notified by, no loop waits;
 *	V26  no descriptor of a front end's keeps its own connection open: when it is gone, so is
 *	     its session;
 *	V28  however fast a front end sends messages, its control fiber has no more than a few of a
 *	     turn: the loop is others' as well;
 *	V29  however much a guest reads and writes at once, a queue sends VUB_TURN_BYTES of it in a
 *	     turn, and less than VUB_PART_MAX beyond that: what a driver or the page cache has, the
 *	     loop's thread copies. */
#ifndef EXPORT_VUB_VUB_IMPL_H
#define EXPORT_VUB_VUB_IMPL_H

#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <stdatomic.h>

#include "base/bits.h"
#include "base/log.h"
#include "base/vhost_user.h"
#include "blk/port.h"
#include "export/vub/memory.h"
#include "export/vub/message.h"
#include "export/vub/vub.h"

enum {
	VUB_RING_MAX = 1024,            /* descriptors of a ring */
	VUB_SEGMENTS_MAX = 126,         /* of data in a request, as the config space says */
	VUB_IOV_MAX = 144,              /* these, header, status, and borders of slots */
	VUB_IOV_FEW = 4,                /* of most requests, in their struct */
	VUB_RANGES_MAX = 16,            /* of one discard or write-zeroes */
	VUB_SECTOR = 512,
	VUB_PART_MAX = 4 << 20,         /* bytes: of a longer read or write a part at a time */
	VUB_TURN_BYTES = 16 << 20,
};

struct vub_queue;

/* A request, from the ring until its used entry. Belongs to its queue's loop. */
struct vub_req {
	struct req req;
	struct vub_queue *q;
	struct vub_req *next;           /* in the queue's list of free, done or waiting ones */
	uint64_t sector;
	uint64_t len, sent;             /* bytes of a read or write, and how many were sent */
	uint8_t *status_at;             /* in the guest's memory */
	struct iovec *iov;              /* the data, in the guest's memory */
	uint16_t niov;
	uint16_t nranges;               /* DISCARD, WRITE_ZEROES: in iov's place */
	uint16_t range;
	bool is_busy;
	bool has_failed;
	uint32_t type;                  /* VIRTIO_BLK_T_* */
	uint32_t used_len;              /* bytes written to the guest's memory */
	uint16_t id;                    /* split: the head descriptor; packed: the buffer's id */
	uint16_t ndescs;                /* packed: how many the chain takes of the ring */
	uint16_t inflight;              /* packed: its entry of the inflight region */
	struct iovec few[VUB_IOV_FEW];
};

/* ---- chain.c ---- */

/* A chain on its way to a request. */
struct vub_chain {
	struct vub_queue *q;
	struct vub_req *vr;
	unsigned nout, n;               /* iovecs: first those that the device reads */
	uint64_t out_len, in_len;
	const char *wrong;
};

void vub_chain_begin(struct vub_chain *c, struct vub_queue *q, struct vub_req *vr);
/* Appends the buffer of a descriptor. False: c->wrong says why. */
bool vub_chain_add(struct vub_chain *c, uint64_t addr, uint32_t len, bool is_in);
/* Makes a private copy of the descriptors at the guest's @addr: the indirect table of @len bytes,
 * at most @max of them. Their number, or 0: c->wrong says why. */
unsigned vub_chain_copy_table(struct vub_chain *c, uint64_t addr, uint32_t len, void *table,
			      unsigned max);

/* ---- the rings ---- */

struct vub_split {
	const struct vring_desc *desc;
	const struct vring_avail *avail;
	struct vring_used *used;
};

struct vub_packed {
	struct vring_packed_desc *desc;
	const struct vring_packed_desc_event *driver;
	struct vring_packed_desc_event *device;
	struct vub_req *free;
	unsigned outstanding;           /* descriptors between `used` and `avail` */
	bool avail_wrap, used_wrap;
};

/* What depends on the ring's layout. On the queue's loop. */
struct vub_ring_ops {
	/* Finds the areas that addr names in memory. 0; -EFAULT; or -EINVAL: not with that num. */
	int (*map)(struct vub_queue *q);
	/* Sets the indices from base, and from the inflight region. 0, or -EINVAL: the region does
	 * not fit. */
	int (*prime)(struct vub_queue *q);
	/* What GET_VRING_BASE says of a primed queue. */
	uint32_t (*base)(const struct vub_queue *q);
	/* Takes the next chain: 1, and @c is filled; 0: there is none; -1: the ring is broken,
	 * c->wrong. */
	int (*next)(struct vub_queue *q, struct vub_chain *c);
	/* Takes the chain again that stands in the inflight region as @entry: as next(). */
	int (*again)(struct vub_queue *q, uint16_t entry, struct vub_chain *c);
	/* Asks to be notified of the next chain. True: one is there already. */
	bool (*arm)(struct vub_queue *q);
	void (*disarm)(struct vub_queue *q);
	/* Writes the used entries of the list @done, and lets the guest see them. */
	void (*publish)(struct vub_queue *q, struct vub_req *done);
	/* Does the guest want to be notified of what was published since it last was? */
	bool (*wants_call)(struct vub_queue *q);
	/* The requests of @list are over, and their slots free. NULL: the chain says which slot. */
	void (*release)(struct vub_queue *q, struct vub_req *list);
	/* Marks all that is written to a ring (V23). */
	void (*log)(struct vub_queue *q);
};

extern const struct vub_ring_ops vub_split_ops, vub_packed_ops;

/* What a queue counts; written by its loop alone, relaxed, read by any thread. */
struct vub_counters {
	_Atomic uint64_t requests, errors, kicks, calls, broken, logged;
};

static inline void vub_count(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n,
			      memory_order_relaxed);
}

/* What leads from one to another: queue.c. */
enum vub_queue_state {
	VUB_QUEUE_HALTED,               /* nothing is taken */
	VUB_QUEUE_IDLE,                 /* waits for a kick */
	VUB_QUEUE_LOOKING,              /* at the ring, each turn; the guest need not kick */
	VUB_QUEUE_BROKEN,               /* nothing is taken until the queue is stopped (V18) */
};

/* A virtqueue. The second part is the control fiber's while the queue is halted and the queue's
 * loop's while it runs; what changes hands does so by loop_call_wait(). */
struct vub_queue {
	struct vub *v;
	struct loop *loop;
	unsigned index;

	/* ---- set by messages ---- */
	uint32_t num;
	uint32_t base;                  /* as SET_VRING_BASE had it */
	struct vhost_user_vring_addr addr;
	bool has_addr;
	bool is_started;                /* it has a kick descriptor, or needs none */
	bool is_enabled;
	int kick_fd, call_fd, err_fd;   /* eventfds; -1: none */
	int kick_id;                    /* of the eventfd, -1: not known */
	bool kick_is_shared;            /* another queue is, or was, kicked by it as well */

	/* ---- while it runs ---- */
	bool is_primed;                 /* avail and used are right; changes with the queue halted,
					 * so the control fiber may read it at any time */
	enum vub_queue_state state;
	const struct vub_ring_ops *ops; /* NULL before it first runs */
	bool has_event_idx;
	bool has_indirect;
	bool is_logging;                /* data; and the ring, where addr.flags says so */
	uint8_t write_flags;            /* REQ_FUA for a guest without a write cache */
	struct port_chan *pc;
	unsigned hint;                  /* of memory.h */
	uint16_t avail, used;           /* the next entries; packed: without wrap counters */
	uint16_t called;                /* `used` when the guest was last notified; split */
	union {
		struct vub_split split;
		struct vub_packed packed;
	};
	void *inflight;                 /* this queue's region; NULL: not tracked */
	uint64_t inflight_counter;
	struct vub_req *reqs;           /* num of them */
	struct iovec *many;             /* VUB_IOV_MAX for each; touched where `few` are too few */
	unsigned in_flight;
	struct vub_req *done_first, **done_last;
	uint64_t turn_bytes;            /* sent since turn_end() last began (V29) */
	struct vub_req *waiting_first, **waiting_last;  /* for the next one */
	struct task turn_task;
	bool turn_is_queued;
	uint64_t look_until_ns, poll_window_ns;
	struct io kick_io;
	bool kick_is_busy;
	struct fiber *waiter;           /* of a halt */
	struct vub_counters counters;
};

/* ---- inflight.c ---- */

/* Bytes of the region of a queue of @num descriptors, either layout. */
uint64_t vub_inflight_bytes(unsigned num);
/* Sets @q's region up, where it is new, or settles what the last batch has left (V21). 0 or -EINVAL
 * where it does not fit. */
int vub_inflight_prime_split(struct vub_queue *q);
int vub_inflight_prime_packed(struct vub_queue *q);
/* Fills @list with what is in flight, oldest first; at most @max. How many. */
struct vub_pending {
	uint64_t counter;
	uint16_t entry;                 /* split: the head; packed: the entry of the region */
};
unsigned vub_inflight_list(struct vub_queue *q, struct vub_pending *list, unsigned max);

void vub_inflight_take_split(struct vub_queue *q, uint16_t head);
void vub_inflight_use_split(struct vub_queue *q, struct vub_req *done);         /* before idx */
void vub_inflight_used_split(struct vub_queue *q, struct vub_req *done);        /* after idx */
/* Adds a descriptor to the entry that is being taken; the first begins it. */
void vub_inflight_take_packed(struct vub_queue *q, const struct vring_packed_desc *d,
			      bool is_first, bool is_last, uint16_t *ret_entry);
void vub_inflight_use_packed(struct vub_queue *q, struct vub_req *done, uint16_t used,
			     bool used_wrap);
void vub_inflight_used_packed(struct vub_queue *q, struct vub_req *done);

/* ---- dirty.c ---- */

struct vub_log {
	struct vub_mapping mapping;
	uint8_t *bits;                  /* NULL: no log */
	uint64_t size;                  /* bytes */
};

/* Fills @log. 0 or -errno. */
int vub_log_init(struct vub_log *log, int fd, const struct vhost_user_log *where);
void vub_log_fini(struct vub_log *log);
/* Mark what @q has written, and count the pages that were not in the log: the guest's [@addr,
 * @addr + @len); what it may have written @off bytes behind addr.log, if its ring is to be logged;
 * or what answers @vr. */
void vub_log_mark(struct vub_queue *q, uint64_t addr, uint64_t len);
void vub_log_ring(struct vub_queue *q, uint64_t off, uint64_t len);
void vub_log_request(struct vub_queue *q, const struct vub_req *vr);
/* In the control fiber, no queue runs: marks in v->log what the front end has not taken out of the
 * log @before, which may be none; or all of the memory. */
void vub_log_follow_wait(struct vub *v, const struct vub_log *before, bool is_late);

/* ---- request.c ---- */

/* Starts what @c holds. False: the chain has no room for a header and a status; c->wrong. */
bool vub_request_start(struct vub_chain *c);
/* Sends the next part of a read or write. */
void vub_request_send(struct vub_req *vr);

/* ---- queue.c ---- */

int vub_queue_new(struct vub *v, unsigned index, struct loop *loop, struct vub_queue **ret);
void vub_queue_free(struct vub_queue *q);

/* @vr is answered; its used entry follows at the end of the turn. */
void vub_queue_done(struct vub_req *vr, uint8_t status);
/* Sends the first part of @vr, now or in one of the next turns (V29); or the next one, in one of
 * these. */
void vub_queue_send(struct vub_req *vr);
void vub_queue_send_later(struct vub_req *vr);

/* The next four run in a fiber of any loop, and reach the queue's by themselves. */

/* Stops it, and waits for what is in flight (V20). */
void vub_queue_halt_wait(struct vub_queue *q);
/* Lets it run, if it is started and enabled and its memory is there. 0; -EFAULT: it is not;
 * -EINVAL: the queue is broken or not set up; or -ENOMEM. */
int vub_queue_run_wait(struct vub_queue *q);
/* Puts the eventfd @fd, which is taken, or -1 in the place of *@which: q->call_fd or q->err_fd. */
void vub_queue_set_notifier_wait(struct vub_queue *q, int *which, int fd);
/* Halted: stopped; base is where it was. */
void vub_queue_stop(struct vub_queue *q);
/* Halted: as it was when it was made. */
void vub_queue_reset(struct vub_queue *q);

/* ---- config.c ---- */

uint64_t vub_config_features(const struct vub *v);
void vub_config_fill(const struct vub *v, struct virtio_blk_config *ret);
/* 0, or -EINVAL: not a field that may be written. */
int vub_config_write(struct vub *v, const struct vhost_user_config *c, bool *ret_changed);

/* ---- devices and sessions ---- */

/* One of a device's two seats for front ends. Both accept from one socket, one after the other,
 * and have a control fiber of one loop. */
struct vub {
	struct loop *loop;              /* the control fiber's */
	struct port *port;
	char *name;
	char serial[VUB_SERIAL_MAX];
	bool read_only;
	uint64_t poll_ns;
	unsigned nqueues;
	struct vub_queue *queues[VUB_QUEUES_MAX];
	struct log_limit log_limit;     /* of what front ends and guests can repeat */

	/* The front end's: set by its messages while its queues are halted, read by all loops. */
	struct vub_memory memory;
	struct vub_log log;
	struct vub_mapping inflight;
	uint8_t *inflight_at;
	unsigned inflight_num;          /* descriptors of each queue */
	unsigned inflight_queues;
	uint64_t features;              /* virtio's and vhost's, as the front end has chosen */
	uint64_t protocol_features;
	bool is_write_through;          /* the guest has switched the write cache off */

	/* The control fibers' alone. */
	struct vub *twin;               /* the other seat; NULL: there is one */
	bool is_holding;                /* the disk is this one's (V24) */
	bool is_our_turn;               /* the twin has let go of it */
	bool is_waiting;                /* until it does, which was said */
	bool is_accepting;              /* waits for the next front end */
	int listen_fd, next_fd;         /* next_fd: by vub_serve(); -1: none */
	int fd, backend_fd;             /* the session's socket, the way back; -1: none */
	struct io io;                   /* what the control fiber waits for */
	bool io_is_busy;
	bool is_stopping, is_started;
	bool is_resized;                /* the front end is to be told */
	bool is_log_late;               /* queues were to log, and there was no log yet */
	struct fiber *fiber;            /* the control fiber */
	struct fiber *stop_waiter;
	struct task main_task;
	struct task resize_task;        /* vub_resized()'s */
	struct task turn_task;          /* vub_turn_wait()'s */
	bool has_turned;
	atomic_bool resize_is_posted;
	_Atomic uint64_t sessions, sessions_total;
	bool has_complained;            /* once a session */
};

/* ---- handler.c ---- */

/* Does what @m asks for; @m becomes the reply where there is one, *@ret_fd what goes with it (the
 * caller closes it). What is left in @fds is closed by the caller; what is taken becomes -1.
 * 0 or -errno. In the control fiber. */
int vub_handle_wait(struct vub *v, struct vhost_user_msg *m, int *fds, int *ret_fd);
/* Runs what waited for the other front end. In the control fiber. */
void vub_handle_turn_wait(struct vub *v);
/* Forgets all that a front end has set up. In the control fiber. */
void vub_handle_end_wait(struct vub *v);

/* ---- session.c ---- */

/* Serves v->fd until its end or the device's stop. In the control fiber. */
void vub_session_wait(struct vub *v);
/* Waits for one operation: its result, or -ECANCELED where the device stops. The control
 * fiber only. */
int vub_io_wait(struct vub *v, int fd, enum io_op op, int events);
/* Lets others have the loop for a turn. The control fiber only. */
void vub_turn_wait(struct vub *v);

#endif
