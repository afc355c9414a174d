/* SPDX-License-Identifier: MIT */
/* export/vub/test_host.h - for the tests: a device on loops in threads over a disk in memory, and
 * a front end that can say anything. The test's thread is the front end and the guest.
 *
 * The guest's memory: a ring for each queue, then a page for each request (header, status, an
 * indirect table), then data. Whatever does not come within HOST_PATIENCE_MS fails the test. */
#ifndef EXPORT_VUB_TEST_HOST_H
#define EXPORT_VUB_TEST_HOST_H

#include <pthread.h>
#include <stdatomic.h>

#include "blk/port.h"
#include "drv/vub/vfe_link.h"
#include "export/vub/vub.h"
#include "loop/loop_thread.h"

enum {
	HOST_LOOPS = 2,
	HOST_PATIENCE_MS = 120000,
	HOST_DISK = 16 << 20,
	GUEST_MEMORY = 4 << 20,
	GUEST_RING = 64 << 10,          /* queue i's ring is at i times this */
	GUEST_EVENT = 8 << 10,          /* in there, by guest_lay_out() */
	GUEST_PAGES = 256 << 10,
	GUEST_DATA = 1 << 20,
	RING_SIZE = 16,
};

/* A disk in memory. */
struct host_disk {
	struct node node;
	uint8_t *data;
	pthread_mutex_t lock;           /* of data: loops share it */
	atomic_bool is_holding;         /* requests are kept until host_release() */
	atomic_uint held, flushes, fuas, discards, zeros, writes;
	_Atomic int fail_errno;
	_Atomic uint64_t longest, most_a_turn;  /* bytes of a request, and of all that a loop has
						 * sent in one turn */
};

struct host {
	struct workers *workers;
	struct loop_thread threads[HOST_LOOPS];
	struct loop *loops[HOST_LOOPS];
	struct host_disk disk;
	struct port *port;
	struct vub *vub;
	char path[64];
	int listen_fd;
};

/* @opts: queues, read_only and poll_ns are used. NULL: two queues. */
void host_start(struct host *h, const struct vub_opts *opts);
void host_stop(struct host *h);
void host_restart(struct host *h);      /* another device for the same disk and socket */
/* What the disk has at @off. */
uint8_t host_byte(struct host *h, uint64_t off);
/* Lets go of what is held. */
void host_release(struct host *h);
/* The same, from another thread, after a while; host_release_join() waits for that. */
void host_release_later(struct host *h, pthread_t *ret);
uint64_t host_broken(const struct host *h);
void host_await_broken(const struct host *h, uint64_t n);

struct guest {
	struct vfe_link link;
	struct vfe_mem mem;
	struct vfe_queue queues[HOST_LOOPS];
	struct vfe_want want;
	unsigned data_at;
};

void guest_start(struct guest *g, const struct host *h, const struct vfe_want *want);
/* All messages after vfe_link_open(), or vfe_link_reopen(). */
void guest_set_up(struct guest *g);
void guest_stop(struct guest *g);
/* Puts the parts of an empty ring on pages of their own; what asks for kicks, on one of these. */
void guest_lay_out(struct guest *g, unsigned queue);

static inline uint64_t guest_addr(const struct guest *g, uint64_t off)
{
	return VFE_MEM_GUEST + off;
}

/* A request of queue @i in slot @token: type, sector, data at guest offset @at of @len bytes. */
struct guest_ask {
	unsigned queue;
	uint16_t token;
	uint32_t type;
	uint64_t sector;
	uint64_t at;
	uint32_t len;
	unsigned more;                  /* how often the same data follows it */
	bool is_indirect;
	bool is_scattered;              /* header and data in several descriptors */
};

/* Where its page is. */
uint64_t guest_page(const struct guest_ask *a);
void guest_put(struct guest *g, const struct guest_ask *a);
void guest_kick(struct guest *g, unsigned queue);
/* Waits for the next answer on @queue: its token, and its status in *@ret. */
uint16_t guest_take(struct guest *g, unsigned queue, uint8_t *ret);
/* put, kick and take. */
uint8_t guest_do(struct guest *g, const struct guest_ask *a);
/* Is there an answer now, without waiting? */
bool guest_has_answer(struct guest *g, unsigned queue);

/* Waits until the device has ended the session of @sock. False: it does not, or says something. */
bool peer_is_closed(int sock);
/* From now on messages are answered, and there may be a way back. */
void peer_choose_answers(int sock);

#endif
