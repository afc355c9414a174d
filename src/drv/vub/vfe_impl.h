/* SPDX-License-Identifier: MIT */
/* drv/vub/vfe_impl.h - what the files of the driver share.
 *
 * vfe.c opens, looks after the connection and opens it again, on the home loop. vfe_chan.c has the
 * data path: a chan is the only user of its queue, on its own loop.
 *
 * A request is sent in parts, one at a time: as much of it as one virtio request takes. A part
 * has a *slot*: a place in shared memory for header, status and descriptors. A part whose data
 * the back end cannot reach has a bounce buffer as well. Where there is no slot, no room in the
 * ring or no buffer, requests wait in their order.
 *
 * Invariants:
 *	V36  a request is answered once, with the first error of its parts, whatever the back end
 *	     does: gives tokens back that it does not have, says nothing, goes away;
 *	V37  while a chan is stopped (the connection is lost) nothing is put into its ring;
 *	V38  whatever the back end does to the eventfds and the memory that it shares, whatever
 *	     descriptors it sends, and however slowly or fast it answers: no loop waits for it, none
 *	     is its alone, and nothing that is mapped goes away. */
#ifndef DRV_VUB_VFE_IMPL_H
#define DRV_VUB_VFE_IMPL_H

#include "blk/blk.h"
#include "drv/vub/vfe.h"

enum {
	VFE_SECTOR = 512,
	VFE_SEGS_MAX = 126,             /* of data, in one part */
	VFE_PART_MAX = 4 << 20,
	VFE_BOUNCE_BYTES = 128 << 10,
	VFE_BOUNCES = 16,
	VFE_RINGS = 16,                 /* places for a queue's ring: vfe_ring_renew() */
	VFE_DATA_BYTES = 256 << 20,     /* of a queue, for chan_memory_get() */
	VFE_DATA_CHUNK = 64 << 10,
	VFE_DATA_CHUNKS = VFE_DATA_BYTES / VFE_DATA_CHUNK,
};

/* A part's place in shared memory. An odd number of cache lines, so that slots do not compete. */
struct vfe_place {
	struct virtio_blk_outhdr head;
	struct virtio_blk_discard_write_zeroes range;
	uint8_t status;
	uint8_t padding[31];
	struct vring_desc table[VFE_SEGS_MAX + 2];
};
_Static_assert(sizeof(struct vfe_place) % 128 == 64, "an odd number of lines");

/* A queue's piece of shared memory. */
struct vfe_area {
	char *rings;                    /* VFE_RINGS of them */
	size_t ring_bytes;
	unsigned ring;                  /* the one in use */
	struct vfe_place *places;       /* a token each */
	char *bounces;
	char *data;
};

/* One on the home loop; what the chans read is set before any but the home loop's is opened. */
struct vfe_node {
	struct node node;
	struct vfe_opts opts;           /* [const] owned */
	struct vfe_link link;           /* workers', one at a time: see is_busy */
	uint64_t features;              /* [const] link's */
	struct virtio_blk_config config;        /* [const] link's, as it was at first: limits */
	struct vfe_mem mem;             /* [const] */
	struct vfe_queue *queues;       /* [const] owned; link.nqueues of them */
	struct vfe_area *areas;         /* [const] owned */
	struct vfe_chan **users;        /* owned; by queue, NULL: nobody's */
	unsigned segs_max;              /* [const] of data, in one request */
	bool is_busy;                   /* somebody works on link and users */
	struct fiber_queue idle;        /* those who wait for that */
	struct io watch;                /* the socket's end */
	struct task lost;
	bool is_watching;               /* watch is under way */
	bool is_reviving;               /* lost() runs */
	bool is_closing;
	struct fiber *close_waiter;
	int dead;                       /* -errno: it will not come back */
};

/* What a part is doing. */
struct vfe_slot {
	struct req *req;                /* NULL: idle */
	uint64_t start;                 /* in the disk: where the part starts, */
	uint64_t len;                   /* its bytes; more than @used where sectors are cut */
	uint64_t skip;                  /* bytes at its start that nobody asked for */
	uint64_t used;                  /* bytes of the request */
	int16_t bounce;                 /* its buffer, -1: none */
	uint16_t next_idle;
	uint32_t type;                  /* VIRTIO_BLK_T_* */
};

struct vfe_chan {
	struct chan chan;
	struct vfe_node *vn;
	struct vfe_queue *q;
	struct vfe_area *area;
	unsigned index;                 /* of the queue */
	struct vfe_slot *slots;         /* owned; as many as entries in the ring */
	uint16_t idle_slot;             /* the ring's size: none */
	unsigned busy_slots;
	uint8_t bounce_idle[VFE_BOUNCES];
	unsigned nbounces;
	uint64_t chunks[VFE_DATA_CHUNKS / 64];  /* of data: those that are handed out */
	struct req *waiting, **waiting_tail;
	struct io poll;                 /* of q->call */
	struct task turn_end;
	bool is_polling, is_turn_end_set, is_stopped, is_closing;
	bool must_look;                 /* at the end of the turn */
	struct fiber *close_waiter;
	int dead;                       /* -errno: all requests fail */
};

extern const struct node_ops vfe_ops;

/* vfe_chan.c */
/* Before it has a queue. 0 or -ENOMEM; then vfe_chan_fini(). */
int vfe_chan_init(struct vfe_chan *vc);
void vfe_chan_fini(struct vfe_chan *vc);
/* With a queue: calls are taken, and no longer. */
void vfe_chan_start(struct vfe_chan *vc);
void vfe_chan_finish_wait(struct vfe_chan *vc);
void vfe_chan_submit(struct chan *ch, struct req *req);
void *vfe_chan_memory_get(struct chan *ch, size_t bytes);
bool vfe_chan_memory_put(struct chan *ch, void *mem, size_t bytes);
/* The connection is lost: takes what was answered, then nothing more (V37). */
void vfe_chan_stop(struct vfe_chan *vc);
/* Makes the ring empty and puts all unanswered parts into it again. */
void vfe_chan_refill(struct vfe_chan *vc);
/* An empty ring elsewhere: a back end that is about to end closes its socket first, and may still
 * answer into the ring that it had. */
void vfe_ring_renew(struct vfe_queue *q, struct vfe_area *a);
/* It is back. */
void vfe_chan_resume(struct vfe_chan *vc);
/* It will not come back: fails everything with @rc, now and later. */
void vfe_chan_kill(struct vfe_chan *vc, int rc);

#endif
