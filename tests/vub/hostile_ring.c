/* SPDX-License-Identifier: MIT */
/* tests/vub/hostile_ring.c - rings and chains that no guest would make. */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bits.h"
#include "hostile.h"

#define G(off) (VFE_MEM_GUEST + (off))
#define END G(PEER_MEMORY)

enum { NEXT = VRING_DESC_F_NEXT, IN = VRING_DESC_F_WRITE, TABLE = VRING_DESC_F_INDIRECT };

/* A descriptor; in a packed ring @next is nothing, and ids are all 0. */
struct raw {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

#define HEAD(n) { G(PEER_HEAD), 16, NEXT, n }
#define DATA(n) { G(PEER_DATA), 4096, NEXT | IN, n }
#define STATUS { G(PEER_STATUS), 1, IN, 0 }
#define NONE { { 0 } }

/* A chain in the ring, from descriptor 0 on, and a table for an indirect one. */
struct chain {
	const char *name;
	uint32_t type;
	uint64_t sector;
	struct raw ring[4], table[4];
};

static const struct chain chains[] = {
	{ "a chain that is right", 0, 0, { HEAD(1), DATA(2), STATUS }, NONE },
	{ "a loop of one", 0, 0, { { G(PEER_HEAD), 16, NEXT, 0 } }, NONE },
	{ "a loop of two", 0, 0, { HEAD(1), DATA(0) }, NONE },
	{ "next is out of range", 0, 0, { HEAD(1), { G(PEER_DATA), 512, NEXT, 9999 } }, NONE },
	{ "a header alone", 0, 0, { { G(PEER_HEAD), 16, 0, 0 } }, NONE },
	{ "a header of 15 bytes", 0, 0, { { G(PEER_HEAD), 15, NEXT, 1 }, STATUS }, NONE },
	{ "a header to be written", 0, 0, { { G(PEER_HEAD), 16, NEXT | IN, 1 }, STATUS }, NONE },
	{ "nothing to be written", 0, 0, { HEAD(1), { G(PEER_STATUS), 1, 0, 0 } }, NONE },
	{ "a status of no bytes", 0, 0, { HEAD(1), DATA(2), { G(PEER_STATUS), 0, IN, 0 } }, NONE },
	{ "no length at all", 0, 0, { { G(PEER_HEAD), 0, NEXT, 1 }, { G(PEER_DATA), 0, 0, 0 } },
	  NONE },
	{ "reading after writing", 0, 0, { HEAD(1), DATA(2), { G(PEER_DATA), 512, NEXT, 3 },
	  STATUS }, NONE },
	{ "address 0", 0, 0, { HEAD(1), { 0, 4096, NEXT | IN, 2 }, STATUS }, NONE },
	{ "our own address space", 0, 0, { HEAD(1), { 1ULL << 47, 4096, NEXT | IN, 2 }, STATUS },
	  NONE },
	{ "the last address", 0, 0, { HEAD(1), { UINT64_MAX, 1, NEXT | IN, 2 }, STATUS }, NONE },
	{ "an end that wraps", 0, 0, { HEAD(1), { UINT64_MAX - 511, 4096, NEXT | IN, 2 }, STATUS },
	  NONE },
	{ "across the end of memory", 0, 0, { HEAD(1), { END - 512, 1024, NEXT | IN, 2 }, STATUS },
	  NONE },
	{ "before the start of memory", 0, 0, { HEAD(1), { G(-512), 1024, NEXT | IN, 2 }, STATUS },
	  NONE },
	{ "4 GiB of data", 0, 0, { HEAD(1), { G(PEER_DATA), UINT32_MAX, NEXT | IN, 2 }, STATUS },
	  NONE },
	{ "4 GiB to be written", 1, 0, { HEAD(1), { G(PEER_DATA), UINT32_MAX, NEXT, 2 }, STATUS },
	  NONE },
	{ "half a sector", 0, 0, { HEAD(1), { G(PEER_DATA), 256, NEXT | IN, 2 }, STATUS }, NONE },
	{ "no data", 0, 0, { HEAD(1), STATUS }, NONE },
	{ "a read to write from", 1, 0, { HEAD(1), DATA(2), STATUS }, NONE },
	{ "a write to read into", 0, 0, { HEAD(1), { G(PEER_DATA), 4096, NEXT, 2 }, STATUS }, NONE
	  },
	{ "behind the end of the disk", 0, 1ULL << 40, { HEAD(1), DATA(2), STATUS }, NONE },
	{ "a sector that wraps", 1, UINT64_MAX / 512, { HEAD(1), { G(PEER_DATA), 4096, NEXT, 2 },
	  STATUS }, NONE },
	{ "the last sector", 0, UINT64_MAX, { HEAD(1), DATA(2), STATUS }, NONE },
	{ "an unknown type", 0x1234, 0, { HEAD(1), DATA(2), STATUS }, NONE },
	{ "SCSI", VIRTIO_BLK_T_SCSI_CMD, 0, { HEAD(1), DATA(2), STATUS }, NONE },
	{ "secure erase", VIRTIO_BLK_T_SECURE_ERASE, 0, { HEAD(1), { G(PEER_RANGE), 16, NEXT, 2 },
	  STATUS }, NONE },
	{ "a serial number of no bytes", VIRTIO_BLK_T_GET_ID, 0, { HEAD(1), STATUS }, NONE },
	{ "a serial number of 1 byte", VIRTIO_BLK_T_GET_ID, 0, { HEAD(1), { G(PEER_DATA), 1, NEXT
	  | IN, 2 }, STATUS }, NONE },
	{ "a serial number of 1 MiB", VIRTIO_BLK_T_GET_ID, 0, { HEAD(1), { G(PEER_DATA), 1 << 20,
	  NEXT | IN, 2 }, STATUS }, NONE },
	{ "a range of 15 bytes", VIRTIO_BLK_T_DISCARD, 0, { HEAD(1), { G(PEER_RANGE), 15, NEXT, 2
	  }, STATUS }, NONE },
	{ "no range", VIRTIO_BLK_T_WRITE_ZEROES, 0, { HEAD(1), STATUS }, NONE },
	{ "a range behind the end", VIRTIO_BLK_T_DISCARD, 0, { HEAD(1), { G(PEER_RANGE), 16, NEXT,
	  2 }, STATUS }, NONE },
	{ "zeros behind the end", VIRTIO_BLK_T_WRITE_ZEROES, 0, { HEAD(1), { G(PEER_RANGE), 16,
	  NEXT, 2 }, STATUS }, NONE },
	{ "65536 ranges", VIRTIO_BLK_T_DISCARD, 0, { HEAD(1), { G(PEER_DATA), 1 << 20, NEXT, 2 },
	  STATUS }, NONE },
	{ "a flush with data", VIRTIO_BLK_T_FLUSH, 7, { HEAD(1), DATA(2), STATUS }, NONE },
	{ "data over the ring", 0, 0, { HEAD(1), { G(0), 4096, NEXT | IN, 2 }, STATUS }, NONE },
	{ "status in the ring", 0, 0, { HEAD(1), DATA(2), { G(16), 1, IN, 0 } }, NONE },
	{ "a table that is right", 0, 0, { { G(PEER_TABLE), 48, TABLE, 0 } }, { HEAD(1), DATA(2),
	  STATUS } },
	{ "a table of no bytes", 0, 0, { { G(PEER_TABLE), 0, TABLE, 0 } }, { HEAD(1) } },
	{ "a table of 17 bytes", 0, 0, { { G(PEER_TABLE), 17, TABLE, 0 } }, { HEAD(1) } },
	{ "a table of 4 GiB", 0, 0, { { G(PEER_TABLE), UINT32_MAX - 15, TABLE, 0 } }, { HEAD(1) } },
	{ "a table that is nowhere", 0, 0, { { 16, 48, TABLE, 0 } }, NONE },
	{ "a table across the end", 0, 0, { { END - 16, 48, TABLE, 0 } }, NONE },
	{ "a table in a table", 0, 0, { { G(PEER_TABLE), 48, TABLE, 0 } }, { { G(PEER_TABLE), 48,
	  TABLE, 0 } } },
	{ "a table with a loop", 0, 0, { { G(PEER_TABLE), 48, TABLE, 0 } }, { HEAD(1), DATA(0) } },
	{ "a table that leaves itself", 0, 0, { { G(PEER_TABLE), 32, TABLE, 0 } }, { HEAD(1),
	  DATA(2), STATUS } },
	{ "a table with a chain behind", 0, 0, { { G(PEER_TABLE), 48, TABLE | NEXT, 1 }, STATUS },
	  { HEAD(1), DATA(2), STATUS } },
	{ "a table to be written", 0, 0, { { G(PEER_TABLE), 48, TABLE | IN, 0 } }, { HEAD(1),
	  DATA(2), STATUS } },
	{ "a table that is the ring", 0, 0, { { G(0), 1024, TABLE, 0 } }, NONE },
	{ "flags of all kinds", 0, 0, { { G(PEER_HEAD), 16, 0x7f78, 0 }, DATA(2), STATUS }, NONE },
};

static void put_packed(struct peer *p, const struct raw *raw, unsigned n)
{
	struct vring_packed_desc *d = p->q.ring.packed.desc;

	for (unsigned i = n; i-- > 0;)
		d[i] = (struct vring_packed_desc){
			.addr = raw[i].addr, .len = raw[i].len, .id = 0,
			.flags = (uint16_t)(raw[i].flags | 1 << VRING_PACKED_DESC_F_AVAIL),
		};
}

static void put_split(struct peer *p, const struct raw *raw, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		p->q.ring.split.desc[i] = (struct vring_desc){
			.addr = raw[i].addr, .len = raw[i].len, .flags = raw[i].flags,
			.next = raw[i].next,
		};
	p->q.ring.split.avail->ring[0] = 0;
	__atomic_store_n(&p->q.ring.split.avail->idx, 1, __ATOMIC_RELEASE);
}

static void put_table(struct peer *p, const struct raw *raw)
{
	struct vring_desc *t = (void *)(p->at + PEER_TABLE);

	for (unsigned i = 0; i < ARRAY_SIZE(chains[0].table); i++)
		t[i] = (struct vring_desc){ .addr = raw[i].addr, .len = raw[i].len,
					    .flags = raw[i].flags, .next = raw[i].next };
}

static void fill_scratch(struct peer *p, const struct chain *c)
{
	struct virtio_blk_discard_write_zeroes range = {
		.sector = UINT64_MAX / 512 - 3, .num_sectors = UINT32_MAX, .flags = UINT32_MAX,
	};
	struct virtio_blk_outhdr h = { .type = c->type, .sector = c->sector };

	memcpy(p->at + PEER_HEAD, &h, sizeof(h));
	memcpy(p->at + PEER_RANGE, &range, sizeof(range));
	memset(p->at + PEER_DATA, 0x5a, PEER_DATA_BYTES);
	put_table(p, c->table);
}

static void fill_ring(struct peer *p, const struct chain *c)
{
	unsigned n = 0;

	while (n < ARRAY_SIZE(c->ring) && (c->ring[n].addr || c->ring[n].len))
		n++;
	if (p->q.ring.is_packed)
		put_packed(p, c->ring, n);
	else
		put_split(p, c->ring, n);
	vfe_signal(p->q.kick);
}

static void put_chain(struct peer *p, unsigned i)
{
	fill_scratch(p, &chains[i]);
	fill_ring(p, &chains[i]);
}

unsigned hostile_chains(void)
{
	return ARRAY_SIZE(chains);
}

const char *hostile_chain(struct peer *p, unsigned i)
{
	put_chain(p, i);
	return chains[i].name;
}

/* ---- what is more than one chain ---- */

static void avail_runs_ahead(struct peer *p, struct prng *prng)
{
	if (p->q.ring.is_packed)
		p->q.ring.packed.driver->off_wrap = (uint16_t)prng_next(prng);
	else
		p->q.ring.split.avail->idx = 5000;
	vfe_signal(p->q.kick);
}

static void heads_are_out_of_range(struct peer *p, struct prng *prng)
{
	if (p->q.ring.is_packed)
		return;
	for (unsigned i = 0; i < p->q.ring.size; i++)
		p->q.ring.split.avail->ring[i] = (uint16_t)(p->q.ring.size + i);
	p->q.ring.split.avail->idx = 3;
	vfe_signal(p->q.kick);
}

static void one_head_many_times(struct peer *p, struct prng *prng)
{
	put_chain(p, 0);
	if (!p->q.ring.is_packed) {
		memset(p->q.ring.split.avail->ring, 0, 2UL * p->q.ring.size);
		p->q.ring.split.avail->idx = (uint16_t)p->q.ring.size;
	}
	vfe_signal(p->q.kick);
}

static void ids_that_are_used_twice(struct peer *p, struct prng *prng)
{
	struct raw raw[3] = { HEAD(1), DATA(2), STATUS };

	if (!p->q.ring.is_packed)
		return;
	for (unsigned i = 0; i + 3 < p->q.ring.size; i += 3)
		for (unsigned k = 3; k-- > 0;)
			p->q.ring.packed.desc[i + k] = (struct vring_packed_desc){
				.addr = raw[k].addr, .len = raw[k].len,
				.id = i % 2 ? UINT16_MAX : 3,
				.flags = (uint16_t)(raw[k].flags | 1 << VRING_PACKED_DESC_F_AVAIL),
			};
	vfe_signal(p->q.kick);
}

static void the_chain_changes_meanwhile(struct peer *p, struct prng *prng)
{
	for (unsigned i = 0; i < 300; i++) {
		put_chain(p, (unsigned)prng_below(prng, ARRAY_SIZE(chains)));
		if (p->q.ring.is_packed)
			continue;
		__atomic_store_n(&p->q.ring.split.avail->idx, (uint16_t)i, __ATOMIC_RELEASE);
	}
}

static void noise(struct peer *p, struct prng *prng)
{
	size_t bytes = vfe_ring_bytes(p->q.ring.size, p->q.ring.is_packed);

	for (unsigned round = 0; round < 20; round++) {
		for (size_t i = 0; i < bytes; i++)
			p->at[i] = (char)prng_next(prng);
		for (unsigned i = 0; i < 256; i++)
			p->at[PEER_TABLE + i] = (char)prng_next(prng);
		vfe_signal(p->q.kick);
		usleep(1000);
	}
}

/* Descriptors that are nearly right: what a checker might let through. */
static uint64_t some_addr(struct prng *prng)
{
	static const uint64_t edges[] = { 0, G(0), G(PEER_HEAD), G(PEER_DATA), G(PEER_STATUS),
					  G(PEER_TABLE), END, END - 1, UINT64_MAX };

	return edges[prng_below(prng, ARRAY_SIZE(edges))] + prng_below(prng, 3) - 1 +
	       prng_below(prng, 2) * 512;
}

static void nearly_right(struct peer *p, struct prng *prng)
{
	static const uint32_t lens[] = { 0, 1, 15, 16, 17, 48, 511, 512, 4096, 1 << 20,
					 INT32_MAX, UINT32_MAX };

	for (unsigned round = 0; round < 60; round++) {
		struct raw raw[4];

		put_chain(p, 0);
		for (unsigned i = 0; i < 4; i++) {
			raw[i] = chains[0].ring[i];
			if (!prng_below(prng, 3))
				raw[i].addr = some_addr(prng);
			if (!prng_below(prng, 3))
				raw[i].len = lens[prng_below(prng, ARRAY_SIZE(lens))];
			if (!prng_below(prng, 4))
				raw[i].flags = (uint16_t)prng_below(prng, 8);
			if (!prng_below(prng, 4))
				raw[i].next = (uint16_t)prng_below(prng, 70);
		}
		if (p->q.ring.is_packed)
			put_packed(p, raw, 4);
		else
			put_split(p, raw, 4);
		p->at[PEER_HEAD] = (char)prng_below(prng, 16);
		if (!p->q.ring.is_packed)
			p->q.ring.split.avail->idx = (uint16_t)(round + 1);
		vfe_signal(p->q.kick);
	}
}

/* ---- memory that goes away ---- */

static void memory_is_cut_off(struct peer *p, struct prng *prng)
{
	put_chain(p, 0);
	if (!ftruncate(p->mem.fd, 0))
		vfe_signal(p->q.kick);
}

static void data_is_cut_off(struct peer *p, struct prng *prng)
{
	fill_scratch(p, &chains[0]);
	if (!ftruncate(p->mem.fd, PEER_DATA))
		fill_ring(p, &chains[0]);       /* what we touch ourselves is still there */
}

/* While requests are on their way. */
static void memory_goes_under_load(struct peer *p, struct prng *prng)
{
	for (unsigned i = 0; i < 50; i++) {
		struct vfe_table none = { 0 };
		struct vfe_seg segs[3] = {
			{ G(PEER_HEAD), 16, false },
			{ G(PEER_DATA), PEER_DATA_BYTES, true },
			{ G(PEER_STATUS), 1, true },
		};

		if (vfe_ring_add(&p->q.ring, segs, 3, &none, (uint16_t)i))
			break;
	}
	vfe_ring_publish(&p->q.ring);
	vfe_signal(p->q.kick);
	usleep((useconds_t)prng_below(prng, 3000));
	if (!ftruncate(p->mem.fd, (off_t)(prng_below(prng, 2) * PEER_SCRATCH)))
		vfe_signal(p->q.kick);
}

static void pages_are_taken_away(struct peer *p, struct prng *prng)
{
	for (unsigned i = 0; i < 50; i++) {
		put_chain(p, 0);
		madvise(p->at, PEER_MEMORY, MADV_REMOVE);
	}
}

/* The counter to be notified by is full, and whoever writes to it waits. */
static void nobody_takes_notifications(struct peer *p, struct prng *prng)
{
	uint64_t most = UINT64_MAX - 1, count;
	int flags = fcntl(p->q.call, F_GETFL);

	for (unsigned i = 0; i < 20; i++) {
		fcntl(p->q.call, F_SETFL, flags | O_NONBLOCK);
		while (read(p->q.call, &count, sizeof(count)) > 0)
			;
		if (write(p->q.call, &most, sizeof(most)) < 0)
			return;
		fcntl(p->q.call, F_SETFL, flags & ~O_NONBLOCK);
		peer_request(p, VIRTIO_BLK_T_IN, prng_below(prng, 1024), 4096);
	}
}

const struct hostile_case hostile_rings[] = {
	{ "avail runs ahead", avail_runs_ahead },
	{ "heads are out of range", heads_are_out_of_range },
	{ "one head many times", one_head_many_times },
	{ "ids that are used twice", ids_that_are_used_twice },
	{ "the chain changes meanwhile", the_chain_changes_meanwhile },
	{ "noise", noise },
	{ "nearly right", nearly_right },
	{ "memory is cut off", memory_is_cut_off },
	{ "data is cut off", data_is_cut_off },
	{ "memory goes under load", memory_goes_under_load },
	{ "pages are taken away", pages_are_taken_away },
	{ "nobody takes notifications", nobody_takes_notifications },
	{ NULL, NULL },
};
