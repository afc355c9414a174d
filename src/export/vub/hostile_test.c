/* SPDX-License-Identifier: MIT */
/* Guests and front ends that mean ill: it is the end of their queue, and of nothing else. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bits.h"
#include "drv/vub/vfe_msg.h"
#include "export/vub/test_host.h"
#include "export/vub/vub_impl.h"

enum { NEXT = VRING_DESC_F_NEXT, WRITE = VRING_DESC_F_WRITE, INDIRECT = VRING_DESC_F_INDIRECT };

/* A well-made read in descriptors 0 to 2, which a case then spoils. */
static void make_read(struct guest *g)
{
	struct vring *r = &g->queues[0].ring.split;
	struct virtio_blk_outhdr head = { .type = VIRTIO_BLK_T_IN };

	memcpy(g->mem.map + GUEST_PAGES, &head, sizeof(head));
	r->desc[0] = (struct vring_desc){ guest_addr(g, GUEST_PAGES), 16, NEXT, 1 };
	r->desc[1] = (struct vring_desc){ guest_addr(g, GUEST_DATA), 512, NEXT | WRITE, 2 };
	r->desc[2] = (struct vring_desc){ guest_addr(g, GUEST_PAGES + 512), 1, WRITE, 0 };
}

static struct vring_desc *table_of(struct guest *g)
{
	return (void *)(g->mem.map + GUEST_DATA);
}

static void make_indirect(struct guest *g, uint32_t len)
{
	struct vring *r = &g->queues[0].ring.split;

	memcpy(table_of(g), r->desc, 3 * sizeof(*r->desc));
	table_of(g)[1].addr = guest_addr(g, GUEST_DATA + 8192);
	r->desc[0] = (struct vring_desc){ guest_addr(g, GUEST_DATA), len, INDIRECT, 0 };
}

static void spoil(struct guest *g, unsigned n)
{
	struct vring *r = &g->queues[0].ring.split;

	switch (n) {
	case 0: r->avail->ring[0] = RING_SIZE; return;
	case 1: r->avail->idx = RING_SIZE + 1; return;
	case 2: r->avail->idx = UINT16_MAX; return;
	case 3: r->desc[2].flags |= NEXT; return;               /* 0, 1, 2, 0, ... */
	case 4: r->desc[1].next = 1; return;                    /* 1, 1, ... */
	case 5: r->desc[1].next = RING_SIZE; return;
	case 6: r->desc[1].addr = 0; return;
	case 7: r->desc[1].addr = UINT64_MAX - 100; return;
	case 8: r->desc[1].len = UINT32_MAX; return;
	case 9: r->desc[1].len = 0; return;
	case 10: r->desc[0].flags |= WRITE; return;             /* no header */
	case 11: r->desc[0].len = 15; return;
	case 12: r->desc[0].flags = 0; return;                  /* no status */
	case 13: r->desc[2].flags = 0; return;                  /* to read behind to write */
	case 14: make_indirect(g, 3 * 16 - 1); return;
	case 15: make_indirect(g, 0); return;
	case 16: make_indirect(g, UINT32_MAX & ~15u); return;
	case 17: make_indirect(g, 3 * 16); table_of(g)[1].flags |= INDIRECT; return;
	case 18: make_indirect(g, 3 * 16); table_of(g)[1].next = 1; return;
	case 19: make_indirect(g, 3 * 16); table_of(g)[1].next = 3; return;
	case 20: make_indirect(g, 3 * 16); r->desc[0].addr = 8; return;
	case 21: make_indirect(g, 3 * 16); r->desc[0].flags |= NEXT; return;
	case 22: make_indirect(g, 3 * 16); r->desc[0].flags |= WRITE; return;
	case 23: r->avail->ring[1] = 0; r->avail->idx = 2; return;      /* the same one twice */
	default: assert_true(false);
	}
}

enum { SPLIT_CASES = 24 };

/* V17, V18, V19: each is an end of queue 0; the other goes on, and so does queue 0 when it is set
 * up anew. */
static void v17_v18_v19_split_rings(void **state)
{
	struct guest_ask other = { .queue = 1, .type = VIRTIO_BLK_T_IN, .at = GUEST_DATA + 65536,
				   .len = 4096 };
	struct guest_ask first = { .type = VIRTIO_BLK_T_IN, .at = GUEST_DATA, .len = 512 };
	struct host h;
	struct guest g;
	uint32_t base;

	host_start(&h, NULL);
	for (unsigned i = 0; i < SPLIT_CASES; i++) {
		struct vfe_want want = { .no_inflight = i % 2 };

		guest_start(&g, &h, &want);
		atomic_store(&h.disk.is_holding, i == 23);
		make_read(&g);
		g.queues[0].ring.split.avail->ring[0] = 0;
		__atomic_store_n(&g.queues[0].ring.split.avail->idx, 0, __ATOMIC_RELEASE);
		spoil(&g, i);
		if (!g.queues[0].ring.split.avail->idx)
			__atomic_store_n(&g.queues[0].ring.split.avail->idx, 1, __ATOMIC_RELEASE);
		vfe_signal(g.queues[0].kick);
		host_await_broken(&h, i + 1);
		host_release(&h);
		assert_int_equal(guest_do(&g, &other), VIRTIO_BLK_S_OK);
		assert_int_equal(vfe_link_stop_queue(&g.link, 0, &base), 0);
		vfe_ring_reset(&g.queues[0].ring);
		if (!want.no_inflight) {        /* as at a reset of the machine */
			guest_stop(&g);
			guest_start(&g, &h, &want);
		} else {
			assert_int_equal(vfe_link_set_queue(&g.link, 0, &g.queues[0], NULL), 0);
		}
		assert_int_equal(guest_do(&g, &first), VIRTIO_BLK_S_OK);
		guest_stop(&g);
	}
	host_stop(&h);
}

static void make_packed(struct guest *g)
{
	struct vring_packed_desc *d = g->queues[0].ring.packed.desc;
	struct virtio_blk_outhdr head = { .type = VIRTIO_BLK_T_IN };
	uint16_t avail = 1 << VRING_PACKED_DESC_F_AVAIL;

	memcpy(g->mem.map + GUEST_PAGES, &head, sizeof(head));
	d[1] = (struct vring_packed_desc){ guest_addr(g, GUEST_DATA), 512, 9,
					   avail | NEXT | WRITE };
	d[2] = (struct vring_packed_desc){ guest_addr(g, GUEST_PAGES + 512), 1, 9, avail | WRITE };
	d[0] = (struct vring_packed_desc){ guest_addr(g, GUEST_PAGES), 16, 9, avail | NEXT };
}

static void spoil_packed(struct guest *g, unsigned n)
{
	struct vring_packed_desc *d = g->queues[0].ring.packed.desc;

	switch (n) {
	case 0: d[1].addr = 0; return;
	case 1: d[1].len = UINT32_MAX; return;
	case 2: d[1].len = 0; return;
	case 3: d[0].len = 3; return;
	case 4: d[2].flags &= (uint16_t)~WRITE; return;
	case 5:                                 /* no end */
		for (unsigned i = 0; i < RING_SIZE; i++)
			d[i].flags |= NEXT;
		return;
	case 6: d[0].flags = (uint16_t)((d[0].flags & ~NEXT) | INDIRECT); d[0].len = 17; return;
	case 7: d[0].flags |= INDIRECT; d[0].len = 48; return;
	case 8:                                 /* an indirect table in another */
		memcpy(table_of(g), d, 48);
		((struct vring_packed_desc *)(void *)table_of(g))[1].flags |= INDIRECT;
		d[0] = (struct vring_packed_desc){ guest_addr(g, GUEST_DATA), 48, 9,
			(uint16_t)(INDIRECT | 1 << VRING_PACKED_DESC_F_AVAIL) };
		return;
	default: assert_true(false);
	}
}

enum { PACKED_CASES = 9 };

static void v17_v18_packed_rings(void **state)
{
	struct guest_ask other = { .queue = 1, .type = VIRTIO_BLK_T_IN, .at = GUEST_DATA + 65536,
				   .len = 4096 };
	struct host h;
	struct guest g;

	host_start(&h, NULL);
	for (unsigned i = 0; i < PACKED_CASES; i++) {
		struct vfe_want want = { .packed = true, .no_inflight = i % 2 };

		guest_start(&g, &h, &want);
		make_packed(&g);
		spoil_packed(&g, i);
		vfe_signal(g.queues[0].kick);
		host_await_broken(&h, i + 1);
		assert_int_equal(guest_do(&g, &other), VIRTIO_BLK_S_OK);
		guest_stop(&g);
	}
	host_stop(&h);
}

/* V19: a driver that makes everything available again, in the next round, while all is in
 * flight. */
static void v19_packed_ring_is_overrun(void **state)
{
	struct vfe_want want = { .packed = true };
	struct guest_ask a = { .type = VIRTIO_BLK_T_IN, .at = GUEST_DATA, .len = 512,
			       .is_indirect = true };
	struct vring_packed_desc *d;
	struct host h;
	struct guest g;

	host_start(&h, NULL);
	guest_start(&g, &h, &want);
	d = g.queues[0].ring.packed.desc;
	atomic_store(&h.disk.is_holding, true);
	for (a.token = 0; a.token < RING_SIZE; a.token++)
		guest_put(&g, &a);
	guest_kick(&g, 0);
	for (unsigned i = 0; i < 10000 && atomic_load(&h.disk.held) < RING_SIZE; i++)
		usleep(1000);
	for (unsigned i = 0; i < RING_SIZE; i++)
		d[i].flags ^= 1 << VRING_PACKED_DESC_F_AVAIL | 1 << VRING_PACKED_DESC_F_USED;
	vfe_signal(g.queues[0].kick);
	host_await_broken(&h, 1);
	host_release(&h);
	guest_stop(&g);
	host_stop(&h);
}

/* V13, V18: the front end takes its memory away while the device runs. */
static void v13_memory_is_taken_away(void **state)
{
	struct guest_ask a = { .type = VIRTIO_BLK_T_IN, .at = GUEST_DATA, .len = 4096 };
	struct host h;
	struct guest g;

	host_start(&h, NULL);
	for (unsigned i = 0; i < 2; i++) {
		struct vfe_want want = { .packed = i };

		guest_start(&g, &h, &want);
		atomic_store(&h.disk.is_holding, true);
		guest_put(&g, &a);
		guest_kick(&g, 0);
		for (unsigned n = 0; n < 10000 && !atomic_load(&h.disk.held); n++)
			usleep(1000);
		assert_int_equal(ftruncate(g.mem.fd, 0), 0);
		vfe_signal(g.queues[1].kick);           /* it looks at its ring */
		host_release(&h);                       /* the other writes to it */
		host_await_broken(&h, 2 * i + 2);
		assert_int_equal(ftruncate(g.mem.fd, GUEST_MEMORY), 0);
		guest_stop(&g);
	}
	guest_start(&g, &h, NULL);                      /* another finds all well */
	assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_OK);
	guest_stop(&g);
	host_stop(&h);
}

/* Writers of @fd wait from now on. */
static void fill(int fd)
{
	uint64_t most = UINT64_MAX - 1, count;

	assert_int_equal(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK), 0);
	while (read(fd, &count, sizeof(count)) > 0)
		;
	assert_int_equal(write(fd, &most, sizeof(most)), sizeof(most));
	assert_int_equal(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK), 0);
}

/* V25: who fills the counter that it is notified by, and lets writers wait for it, holds nobody up:
 * its requests are done, and so are its messages, which need the queue's loop. */
static void v25_a_full_counter_stalls_nobody(void **state)
{
	struct guest_ask a = { .type = VIRTIO_BLK_T_IN, .at = GUEST_DATA, .len = 4096 };
	struct host h;
	struct guest g;
	uint8_t status;

	host_start(&h, NULL);
	for (unsigned i = 0; i < 2; i++) {
		struct vfe_want want = { .packed = i };

		guest_start(&g, &h, &want);
		assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_OK);
		for (a.token = 0; a.token < 3; a.token++) {
			fill(g.queues[0].call);
			guest_has_answer(&g, 0);                /* ask to be notified */
			guest_put(&g, &a);
			guest_kick(&g, 0);
			for (unsigned n = 0; n < 10000 && !guest_has_answer(&g, 0); n++)
				usleep(1000);
			assert_int_equal(guest_take(&g, 0, &status), a.token);
			assert_int_equal(status, VIRTIO_BLK_S_OK);
		}
		fill(g.queues[0].call);
		assert_int_equal(vfe_link_stop_queue(&g.link, 0, &(uint32_t){ 0 }), 0);
		guest_stop(&g);
		a.token = 0;
	}
	host_stop(&h);
}

/* What cannot be understood ends the session; the next front end is served. */
static void v11_nonsense_ends_the_session(void **state)
{
	static const struct vhost_user_header heads[] = {
		{ VHOST_USER_GET_FEATURES, 0, 0 },
		{ VHOST_USER_GET_FEATURES, VHOST_USER_VERSION, UINT32_MAX },
		{ VHOST_USER_GET_FEATURES, VHOST_USER_VERSION | VHOST_USER_REPLY, 0 },
		{ VHOST_USER_SET_FEATURES, VHOST_USER_VERSION, 0 },
		{ VHOST_USER_GET_CONFIG, VHOST_USER_VERSION, 0 },
		{ VHOST_USER_SET_MEM_TABLE, VHOST_USER_VERSION, 8 },
		{ 9999, VHOST_USER_VERSION, 4 },
	};
	struct guest_ask a = { .type = VIRTIO_BLK_T_IN, .at = GUEST_DATA, .len = 4096 };
	struct host h;
	struct guest g;

	host_start(&h, NULL);
	for (unsigned i = 0; i < ARRAY_SIZE(heads); i++) {
		struct vhost_user_msg m = { .head = heads[i] };
		int sock;

		m.table.nregions = 3;
		assert_int_equal(vfe_msg_connect(h.path, HOST_PATIENCE_MS, &sock, NULL), 0);
		send(sock, &m, VHOST_USER_HEADER_SIZE + MIN(m.head.size, 100u), MSG_NOSIGNAL);
		assert_true(peer_is_closed(sock));
		close(sock);
	}
	guest_start(&g, &h, NULL);
	assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_OK);
	guest_stop(&g);
	host_stop(&h);
}

/* Wrong, but understood: an answer says so, and what was there stays. */
static void wrong_numbers_are_refused(void **state)
{
	static const struct {
		uint32_t request;
		struct vhost_user_vring_state s;
	} cases[] = {
		{ VHOST_USER_SET_VRING_NUM, { 99, 16 } },
		{ VHOST_USER_SET_VRING_NUM, { 0, 32 } },        /* it runs */
		{ VHOST_USER_SET_VRING_NUM, { 1, 0 } },
		{ VHOST_USER_SET_VRING_NUM, { 1, 1 << 20 } },
		{ VHOST_USER_SET_VRING_BASE, { 2, 0 } },
		{ VHOST_USER_SET_VRING_BASE, { 0, 5 } },        /* it runs */
		{ VHOST_USER_SET_VRING_ENABLE, { 3, 1 } },
		{ VHOST_USER_SET_VRING_ENABLE, { 0, 7 } },
		{ VHOST_USER_SET_FEATURES, { UINT32_MAX, UINT32_MAX } },
		{ VHOST_USER_SET_PROTOCOL_FEATURES, { UINT32_MAX, UINT32_MAX } },
		{ 77, { 0, 0 } },
	};
	struct guest_ask a = { .type = VIRTIO_BLK_T_IN, .at = GUEST_DATA, .len = 4096 };
	struct vhost_user_msg m;
	struct host h;
	struct guest g;
	int fd;

	host_start(&h, NULL);
	guest_start(&g, &h, NULL);
	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
		m = vfe_msg(cases[i].request, 8);
		m.state = cases[i].s;
		assert_int_equal(vfe_msg_tell(g.link.sock, &m, NULL, 0, true), -EIO);
	}
	fd = memfd_create("not an eventfd", 0);         /* who reads it could be made to wait */
	m = vfe_msg(VHOST_USER_SET_VRING_KICK, 8);
	assert_int_equal(vfe_msg_tell(g.link.sock, &m, &fd, 1, true), -EIO);
	close(fd);
	assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_OK);
	guest_stop(&g);
	host_stop(&h);
}

/* Puts @sock into the pair, for the other end to receive. */
static void send_along(int pair, int sock)
{
	struct vhost_user_msg m = vfe_msg(VHOST_USER_GET_FEATURES, 0);

	assert_int_equal(vfe_msg_send(pair, &m, &sock, 1), 0);
}

/* Its own connection, as the way back or in there, is not held when the front end is gone. */
static void v26_a_front_end_is_gone(void **state)
{
	struct guest_ask a = { .type = VIRTIO_BLK_T_IN, .at = GUEST_DATA, .len = 4096 };
	struct vhost_user_msg m;
	struct host h;
	struct guest g;

	host_start(&h, NULL);
	for (unsigned i = 0; i < 5; i++) {              /* the last one is as it should be */
		bool is_pair = i % 2 || i == 4;
		int sock, pair[2];

		assert_int_equal(vfe_msg_connect(h.path, HOST_PATIENCE_MS, &sock, NULL), 0);
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
		peer_choose_answers(sock);
		m = vfe_msg(VHOST_USER_SET_BACKEND_REQ_FD, 0);
		if (i % 2)
			send_along(pair[0], sock);
		assert_int_equal(vfe_msg_tell(sock, &m, is_pair ? &pair[1] : &sock, 1, true),
				 i == 4 ? 0 : -EIO);
		close(pair[0]);
		close(pair[1]);
		close(sock);
	}
	guest_start(&g, &h, NULL);
	assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_OK);
	guest_stop(&g);
	host_stop(&h);
}

static uint64_t count_turns(const struct host *h)
{
	struct loop_stats stats;

	loop_get_stats(vub_loop(h->vub), &stats);
	return stats.turns;
}

/* Messages that are all there at once are not all that the loop does. */
static void v28_others_have_the_loop_as_well(void **state)
{
	enum { MESSAGES = 8000 };
	struct vhost_user_header *heads = calloc(MESSAGES, sizeof(*heads));
	struct vhost_user_msg m = vfe_msg(VHOST_USER_GET_FEATURES, 0);
	size_t bytes = MESSAGES * sizeof(*heads);
	struct host h;
	uint64_t turns;
	int sock;

	host_start(&h, NULL);
	for (unsigned i = 0; i < MESSAGES; i++)
		heads[i] = vfe_msg(VHOST_USER_SET_OWNER, 0).head;
	assert_int_equal(vfe_msg_connect(h.path, HOST_PATIENCE_MS, &sock, NULL), 0);
	turns = count_turns(&h);
	assert_int_equal(send(sock, heads, bytes, MSG_NOSIGNAL), bytes);
	assert_int_equal(vfe_msg_ask(sock, &m, sizeof(m.u64), NULL), 0);
	assert_true(count_turns(&h) - turns >= MESSAGES / 100);
	close(sock);
	host_stop(&h);
	free(heads);
}

/* A whole ring of requests like @a, and an answer to each. */
static void do_many(struct guest *g, struct guest_ask a)
{
	uint8_t status;

	for (a.token = 0; a.token < RING_SIZE; a.token++)
		guest_put(g, &a);
	guest_kick(g, 0);
	for (unsigned n = 0; n < RING_SIZE; n++) {
		guest_take(g, 0, &status);
		assert_int_equal(status, VIRTIO_BLK_S_OK);
	}
}

static bool has_disk(struct host *h, uint64_t off, const void *data, size_t len)
{
	bool is_same;

	pthread_mutex_lock(&h->disk.lock);
	is_same = !memcmp(h->disk.data + off, data, len);
	pthread_mutex_unlock(&h->disk.lock);
	return is_same;
}

/* Long requests, as many as there is room for, are done in parts and in turns. */
static void v29_a_queue_has_a_part_of_a_turn(void **state)
{
	/* Of the same data, again and again: no part begins where that does. */
	enum { PIECE = (1 << 20) - VUB_SECTOR, PIECES = 12, AT = 3 };
	struct guest_ask a = { .at = GUEST_DATA, .len = PIECE, .more = PIECES - 1,
			       .is_indirect = true };
	struct host h;
	struct guest g;

	host_start(&h, NULL);
	for (unsigned i = 0; i < 2; i++) {
		struct vfe_want want = { .packed = i };
		char *data;

		guest_start(&g, &h, &want);
		data = g.mem.map + GUEST_DATA;
		for (uint64_t off = 0; off < PIECE; off += VUB_SECTOR)
			memset(data + off, (int)(off / VUB_SECTOR % 251 + i), VUB_SECTOR);
		a.sector = AT;
		a.type = VIRTIO_BLK_T_OUT;
		do_many(&g, a);
		for (unsigned k = 0; k < PIECES; k++)
			assert_true(has_disk(&h, AT * VUB_SECTOR + k * PIECE, data, PIECE));
		memset(data, 0, PIECE);
		a.type = VIRTIO_BLK_T_IN;
		do_many(&g, a);
		assert_true(has_disk(&h, AT * VUB_SECTOR, data, PIECE));
		/* Nothing of one that ends behind the disk is done. */
		a.sector = (HOST_DISK - PIECES * PIECE) / VUB_SECTOR + 1;
		a.type = VIRTIO_BLK_T_OUT;
		memset(data, 0xff, PIECE);
		assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_IOERR);
		assert_int_not_equal(host_byte(&h, a.sector * VUB_SECTOR), 0xff);
		guest_stop(&g);
	}
	assert_int_equal(atomic_load(&h.disk.longest), VUB_PART_MAX);
	assert_in_range(atomic_load(&h.disk.most_a_turn), VUB_PART_MAX,
			VUB_TURN_BYTES + VUB_PART_MAX);
	host_stop(&h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(v17_v18_v19_split_rings),
		cmocka_unit_test(v17_v18_packed_rings),
		cmocka_unit_test(v19_packed_ring_is_overrun),
		cmocka_unit_test(v13_memory_is_taken_away),
		cmocka_unit_test(v25_a_full_counter_stalls_nobody),
		cmocka_unit_test(v11_nonsense_ends_the_session),
		cmocka_unit_test(wrong_numbers_are_refused),
		cmocka_unit_test(v26_a_front_end_is_gone),
		cmocka_unit_test(v28_others_have_the_loop_as_well),
		cmocka_unit_test(v29_a_queue_has_a_part_of_a_turn),
	};

	return cmocka_run_group_tests_name("vub_hostile", tests, NULL, NULL);
}
