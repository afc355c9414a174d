/* SPDX-License-Identifier: MIT */
/* drv/vub/vfe_ring.h - the driver's side of a virtqueue, split or packed (virtio 1.2, 2.7 and 2.8).
 *
 * A request is a list of segments, put into the ring under a token of the caller's; the device
 * gives tokens back in any order. The rings lie in memory that the device can write as well, so
 * nothing is read back from it but what only the device can know, and that is checked:
 *
 *	split:  used->idx, used->ring[], used->flags, avail_event
 *	packed: descriptors where the next used one is awaited, and the device's event area
 *
 * All is open in the struct, so that tests can be hostile: they write whatever they like into the
 * rings, and say how far they go with vfe_ring_publish().
 *
 * Invariants:
 *	V31  vfe_ring_take() gives each token back once, whatever the device writes; what it cannot
 *	     mean is -EPROTO;
 *	V32  the device never sees an index before what it stands for: everything of a request is
 *	     written before it is available (release), and read after it is used (acquire);
 *	V33  no call is lost: vfe_ring_arm() returns true where something was used before the device
 *	     could see that calls are wanted. */
#ifndef DRV_VUB_VFE_RING_H
#define DRV_VUB_VFE_RING_H

#include <linux/virtio_ring.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { VFE_RING_MAX = 1024 };           /* entries */

struct vfe_seg {
	uint64_t addr;                  /* as the device sees it */
	uint32_t len;
	bool is_in;                     /* the device writes it */
};

/* A table for the descriptors of one request, in memory that the device sees. */
struct vfe_table {
	void *at;                       /* 16-byte aligned; NULL: none, they go into the ring */
	uint64_t addr;
};

/* What is known of the request with a buffer id (packed) or head (split). */
struct vfe_ring_id {
	uint16_t token;
	uint16_t ndescs;                /* in the ring; 0: the id is free */
	uint16_t next_free;             /* packed: id. Split: next descriptor, used or free */
};

/* One thread's. */
struct vfe_ring {
	unsigned size;                  /* entries; split: a power of two */
	bool is_packed;
	bool has_event_idx;
	unsigned nfree;                 /* entries */
	uint16_t free_head;             /* of ids (packed) or descriptors (split) */
	uint16_t avail_idx;             /* where the next request goes; split: free-running */
	uint16_t used_idx;              /* what is taken next; split: free-running */
	bool avail_wrap, used_wrap;     /* packed */
	uint16_t unpublished;           /* split: requests; packed: descriptors */
	union {
		struct vring split;
		struct {
			struct vring_packed_desc *desc;
			struct vring_packed_desc_event *driver, *device;
		} packed;
	};
	struct vfe_ring_id *ids;        /* owned; @size of them */
};

/* What a ring takes of shared memory, from an address aligned to 16. */
size_t vfe_ring_bytes(unsigned size, bool is_packed);
/* An empty ring at @mem, which is set to zeros. 0 or -ENOMEM. */
int vfe_ring_init(struct vfe_ring *r, void *mem, unsigned size, bool is_packed, bool has_event_idx);
/* Empties it again, in the same memory, at which no device looks any more; or in other memory. */
void vfe_ring_reset(struct vfe_ring *r);
void vfe_ring_move(struct vfe_ring *r, void *mem);
/* A zeroed @r is fine. */
void vfe_ring_fini(struct vfe_ring *r);

/* Puts @n segments into the ring as one request. The device may look at once (packed) or after
 * vfe_ring_publish() (split). 0, or -EAGAIN where there is no room. */
int vfe_ring_add(struct vfe_ring *r, const struct vfe_seg *segs, unsigned n,
		 const struct vfe_table *table, uint16_t token);
/* Shows the device what was added; true: it wants to be kicked. */
bool vfe_ring_publish(struct vfe_ring *r);
/* The next request that the device is done with: 1 with *@ret_token and *@ret_len (what it says it
 * has written), 0: none, -EPROTO. */
int vfe_ring_take(struct vfe_ring *r, uint16_t *ret_token, uint32_t *ret_len);
/* Asks for a call at the next used request. True: there is one already. */
bool vfe_ring_arm(struct vfe_ring *r);
/* Who looks by itself asks for no calls; some may come all the same. */
void vfe_ring_disarm(struct vfe_ring *r);
/* What SET_VRING_BASE says where a device goes on with this ring: at what was used last. */
uint32_t vfe_ring_base(const struct vfe_ring *r);
/* Where the three parts lie: descriptors, driver's (available), device's (used). */
void vfe_ring_parts(const struct vfe_ring *r, const void *ret[3]);

/* vfe_ring_split.c, vfe_ring_packed.c */
struct vfe_ring_ops {
	void (*reset)(struct vfe_ring *r);
	void (*add)(struct vfe_ring *r, const struct vfe_seg *segs, unsigned n,
		    const struct vfe_table *table, uint16_t token);
	bool (*publish)(struct vfe_ring *r);
	int (*take)(struct vfe_ring *r, uint16_t *ret_token, uint32_t *ret_len);
	bool (*arm)(struct vfe_ring *r);
	void (*disarm)(struct vfe_ring *r);
};
extern const struct vfe_ring_ops vfe_ring_split_ops, vfe_ring_packed_ops;

#endif
