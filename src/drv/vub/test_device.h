/* SPDX-License-Identifier: MIT */
/* drv/vub/test_device.h - the device's side of a ring, as plain as can be, for tests: on the same
 * memory as a vfe_ring, in the same process. It trusts the driver. */
#ifndef DRV_VUB_TEST_DEVICE_H
#define DRV_VUB_TEST_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "drv/vub/vfe_ring.h"

enum { DEV_SEGS_MAX = 130 };

struct dev {
	const void *desc;               /* the three parts, as the driver has them */
	const void *driver;
	void *device;
	unsigned size;
	bool is_packed, has_event_idx;
	uint16_t avail, used;           /* split: free-running */
	bool avail_wrap, used_wrap;
	uint16_t told;                  /* used, when the driver was called last */
	char *base;                     /* what the driver calls address base_addr */
	uint64_t base_addr;
};

struct dev_req {
	uint16_t id, ndescs;
	unsigned n;
	struct vfe_seg segs[DEV_SEGS_MAX];
};

/* At @base_addr of the driver is what is at @base here. */
struct dev dev_on(const struct vfe_ring *r, char *base, uint64_t base_addr);
void *dev_at(const struct dev *d, uint64_t addr);
/* Takes the next request that is available. False: there is none. */
bool dev_pop(struct dev *d, struct dev_req *ret);
/* Gives @q back. Requests may come back in any order. */
void dev_push(struct dev *d, const struct dev_req *q, uint32_t len);
/* After some were given back: does the driver want to be called? */
bool dev_must_call(struct dev *d);
/* Asks for a kick at the next request. */
void dev_arm(struct dev *d);

#endif
