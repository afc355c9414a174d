/* SPDX-License-Identifier: MIT */
/* drv/vub/test_backend.h - a back end in a thread, with a disk in memory: it answers in a
 * seeded order, some time, goes away when it is told to, and can lie.
 *
 * Where it speaks INFLIGHT_SHMFD it remembers what it had taken when the connection ended, and
 * only looks that the front end gives it the same area back. */
#ifndef DRV_VUB_TEST_BACKEND_H
#define DRV_VUB_TEST_BACKEND_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/prng.h"
#include "base/vhost_user.h"
#include "drv/vub/test_device.h"

enum { BACKEND_QUEUES = 2, BACKEND_DISK = 8 << 20, BACKEND_HELD_MAX = 64 };

struct backend_queue {
	struct dev dev;
	unsigned size;
	int kick, call;                 /* -1: none */
	bool is_enabled;
	uint32_t base;
	struct dev_req held[BACKEND_HELD_MAX];
	unsigned nheld;
};

struct backend {
	/* Set before backend_start(). */
	uint64_t features, protocol;    /* offered */
	unsigned die_after;             /* requests, then the connection is closed; 0: never */
	atomic_bool lies;               /* gives back what it was not given */
	atomic_bool is_silent;          /* takes nothing */
	atomic_bool fills_counters;     /* of eventfds, whose writers wait then */
	atomic_int gift;                /* not 0: a descriptor that is sent, instead of an answer
					 * to the first kick, at the end of the connection... */
	bool refuses_memory;            /* ...or instead of what follows this */
	struct prng prng;

	char path[64];
	char *disk;
	atomic_uint connections, requests, calls;
	atomic_uint strangers;          /* another area came back */
	pthread_t thread;
	int listener, stop;
	atomic_int sock;                /* tests may shut it down */
	bool has_area;
	unsigned until_death;
	uint64_t chosen, spoken;
	struct vhost_user_region region;
	char *map;
	int area;
	struct backend_queue queues[BACKEND_QUEUES];
};

/* Fills in what is missing, listens, runs. 0 or -errno. */
int backend_start(struct backend *b, uint64_t seed);
void backend_stop(struct backend *b);

#endif
