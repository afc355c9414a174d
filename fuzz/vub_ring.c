/* SPDX-License-Identifier: MIT */
/* fuzz/vub_ring.c - a guest that writes anything to its ring.
 *
 * An input is features (a byte) and records, each a kind (a byte) and:
 *	POKE     where (le16), how many (a byte), bytes: straight into the guest's memory
 *	CHAIN    type, sector, how many descriptors (a byte each), then for each: flags (a byte) and
 *		 length (le16). Made available as a driver would do it
 *	KICK     lets the device run
 *	STOP     GET_VRING_BASE, and the queue is set up again */
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <stdbool.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fuzz/vub_ring.h"

#include "base/bits.h"
#include "fuzz/vub.h"

enum record { POKE, CHAIN, KICK, STOP, RECORDS };
enum {
	NUM = 8,
	RING_AT = 0, DRIVER_AT = 0x200, DEVICE_AT = 0x400,      /* in the guest's memory */
	HEADS_AT = 0x1000, DATA_AT = 0x2000,
	GUEST = 1 << 20,                /* the guest's address of it */
	STEPS_MAX = 100,
	INDIRECT = 1, NO_EVENT_IDX = 2, INFLIGHT = 4,
};

static uint8_t *memory;
static int memory_fd, kick_fd, call_fd;

struct guest {
	int sock;
	bool is_packed;
	uint16_t avail;                 /* the next entry */
	bool wrap;
};

static void make_memory(void)
{
	memory_fd = memfd_create("guest", MFD_CLOEXEC);
	FUZZ_CHECK(memory_fd >= 0 && !ftruncate(memory_fd, VUB_MEMORY), "memfd");
	memory = mmap(NULL, VUB_MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0);
	FUZZ_CHECK(memory != MAP_FAILED, "mmap");
	kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	call_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

static void set_queue(const struct guest *g)
{
	struct vhost_user_vring_state num = { 0, NUM }, on = { 0, 1 };
	struct vhost_user_vring_state base = { 0, g->is_packed ? 0x80008000u : 0 };
	struct vhost_user_vring_addr addr = { .descriptor = RING_AT, .available = DRIVER_AT,
					      .used = DEVICE_AT };
	uint64_t index = 0;

	vub_fuzz_say(g->sock, VHOST_USER_SET_VRING_NUM, &num, sizeof(num), -1);
	vub_fuzz_say(g->sock, VHOST_USER_SET_VRING_BASE, &base, sizeof(base), -1);
	vub_fuzz_say(g->sock, VHOST_USER_SET_VRING_ADDR, &addr, sizeof(addr), -1);
	vub_fuzz_say(g->sock, VHOST_USER_SET_VRING_CALL, &index, sizeof(index), call_fd);
	vub_fuzz_say(g->sock, VHOST_USER_SET_VRING_KICK, &index, sizeof(index), kick_fd);
	vub_fuzz_say(g->sock, VHOST_USER_SET_VRING_ENABLE, &on, sizeof(on), -1);
}

static void set_up(struct guest *g, uint8_t flags)
{
	struct {
		uint32_t nregions, padding;
		struct vhost_user_region region;
	} table = { 1, 0, { GUEST, VUB_MEMORY, 0, 0 } };
	struct vhost_user_inflight inflight = { .mmap_size = 4096, .num_queues = 1,
						.queue_size = NUM };
	uint64_t protocol = 1ULL << VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD;
	uint64_t features = 1ULL << VIRTIO_F_VERSION_1 | 1ULL << VHOST_USER_F_PROTOCOL_FEATURES;

	if (!(flags & NO_EVENT_IDX))
		features |= 1ULL << VIRTIO_RING_F_EVENT_IDX;
	if (flags & INDIRECT)
		features |= 1ULL << VIRTIO_RING_F_INDIRECT_DESC;
	if (g->is_packed)
		features |= 1ULL << VIRTIO_F_RING_PACKED;
	memset(memory, 0, VUB_MEMORY);
	vub_fuzz_say(g->sock, VHOST_USER_SET_PROTOCOL_FEATURES, &protocol, sizeof(protocol), -1);
	vub_fuzz_say(g->sock, VHOST_USER_SET_FEATURES, &features, sizeof(features), -1);
	vub_fuzz_say(g->sock, VHOST_USER_SET_MEM_TABLE, &table, sizeof(table), memory_fd);
	/* In the guest's own memory, so that it can be spoilt as well. */
	inflight.mmap_offset = VUB_MEMORY - inflight.mmap_size;
	if (flags & INFLIGHT)
		vub_fuzz_say(g->sock, VHOST_USER_SET_INFLIGHT_FD, &inflight, sizeof(inflight),
			     memory_fd);
	set_queue(g);
	g->avail = 0;
	g->wrap = true;
}

/* One descriptor of a chain: index @i, the @n-th of it. */
static void put_desc(struct guest *g, unsigned i, uint64_t addr, uint32_t len, uint16_t flags)
{
	if (g->is_packed) {
		struct vring_packed_desc *d = (void *)(memory + RING_AT);

		flags &= VRING_DESC_F_NEXT | VRING_DESC_F_WRITE | VRING_DESC_F_INDIRECT;
		flags |= (uint16_t)(g->wrap ? 1 << VRING_PACKED_DESC_F_AVAIL
					    : 1 << VRING_PACKED_DESC_F_USED);
		d[i] = (struct vring_packed_desc){ addr, len, (uint16_t)i, flags };
		g->avail = (uint16_t)((g->avail + 1) % NUM);
		g->wrap ^= !g->avail;
	} else {
		struct vring_desc *d = (void *)(memory + RING_AT);

		d[i] = (struct vring_desc){ addr, len, flags, (uint16_t)((i + 1) % NUM) };
	}
}

static size_t put_chain(struct guest *g, const uint8_t *data, size_t size)
{
	struct vring_avail *avail = (void *)(memory + DRIVER_AT);
	unsigned start = g->is_packed ? g->avail : data[1] % NUM, n = 1 + data[2] % 5;
	struct virtio_blk_outhdr head = { .type = data[0] & 15, .sector = data[1] };
	uint64_t at = GUEST + DATA_AT + start * 4096;

	if (size < 3 + 3 * n)
		return 0;
	memcpy(memory + HEADS_AT + start * 64, &head, sizeof(head));
	put_desc(g, start, GUEST + HEADS_AT + start * 64, sizeof(head), VRING_DESC_F_NEXT);
	for (unsigned i = 0; i < n; i++) {
		uint16_t len, flags = data[3 + 3 * i] & 7;

		memcpy(&len, data + 4 + 3 * i, sizeof(len));
		if (i + 1 < n)
			flags |= VRING_DESC_F_NEXT;
		put_desc(g, (start + 1 + i) % NUM, at, len, flags);
		at += 512;
	}
	if (!g->is_packed) {
		avail->ring[avail->idx % NUM] = (uint16_t)start;
		avail->idx++;
	}
	return 3 + 3 * n;
}

static size_t do_record(struct guest *g, const uint8_t *data, size_t size)
{
	uint64_t state = 0;
	uint16_t where;
	size_t n;

	if (size < 5)
		return 0;
	switch (data[0] % RECORDS) {
	case POKE:
		memcpy(&where, data + 1, sizeof(where));
		n = MIN(size - 4, (size_t)VUB_MEMORY - where);
		n = MIN(n, (size_t)data[3]);
		memcpy(memory + where, data + 4, n);
		return 4 + n;
	case CHAIN:
		n = put_chain(g, data + 1, size - 1);
		return n ? 1 + n : 0;
	case KICK:
		eventfd_write(kick_fd, 1);
		vub_fuzz_pump(g->sock);
		return 1;
	default:
		vub_fuzz_say(g->sock, VHOST_USER_GET_VRING_BASE, &state, sizeof(state), -1);
		set_queue(g);
		vub_fuzz_pump(g->sock);
		return 1;
	}
}

void vub_ring_run(const uint8_t *data, size_t size, bool is_packed)
{
	struct guest g = { .is_packed = is_packed };
	size_t n;

	if (!size)
		return;
	if (!memory)
		make_memory();
	g.sock = vub_fuzz_begin();
	set_up(&g, data[0]);
	vub_fuzz_pump(g.sock);
	data++;
	size--;
	for (unsigned i = 0; i < STEPS_MAX && (n = do_record(&g, data, size)); i++) {
		data += n;
		size -= n;
	}
	eventfd_write(kick_fd, 1);
	FUZZ_CHECK(vub_fuzz_pump(g.sock), "the session has ended");
	vub_fuzz_end(g.sock);
}

/* A request as it should be, or a record of another kind. */
static size_t good_record(uint8_t *out, struct prng *p)
{
	static const uint8_t types[] = { 0, 0, 1, 1, 4, 8, 11, 13, 2 };
	uint16_t len = (uint16_t)(512 << prng_below(p, 3));
	bool is_in;

	out[0] = (uint8_t)prng_below(p, RECORDS + 3);
	if (out[0] >= RECORDS)
		out[0] = CHAIN;
	if (out[0] == POKE) {
		uint16_t where = (uint16_t)prng_below(p, prng_below(p, 2) ? 0x500 : VUB_MEMORY);

		memcpy(out + 1, &where, sizeof(where));
		out[3] = 2;
		where = (uint16_t)fuzz_number(p, where, 2);
		memcpy(out + 4, &where, sizeof(where));
		return 6;
	}
	if (out[0] != CHAIN)
		return 1;
	out[1] = types[prng_below(p, sizeof(types))];
	out[2] = (uint8_t)prng_below(p, 256);
	out[3] = 1;                     /* data and status */
	is_in = out[1] == 0 || out[1] == 8;
	out[4] = is_in ? VRING_DESC_F_WRITE : 0;
	len = out[1] > 10 ? 16 : len;
	memcpy(out + 5, &len, sizeof(len));
	out[7] = VRING_DESC_F_WRITE;
	len = 1;
	memcpy(out + 8, &len, sizeof(len));
	return 10;
}

size_t vub_ring_mutate(uint8_t *data, size_t size, size_t max, struct prng *p)
{
	uint8_t record[16];
	size_t n = good_record(record, p);

	if (!size) {
		data[0] = (uint8_t)prng_below(p, 8);
		size = 1;
	}
	if (prng_below(p, 2) || size + n + 1 > max)
		return fuzz_mutate_bytes(data, size, max, p);
	memcpy(data + size, record, n);
	data[size + n] = KICK;
	return size + n + prng_below(p, 2);
}
