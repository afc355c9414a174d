/* SPDX-License-Identifier: MIT */
/* A machine moves while its requests are under way.
 *
 * One thread is the guest, which asks for random things, some of which fail. Another is the disk,
 * which lets answers wait. The test's is the monitor: it switches the log on, copies the memory,
 * copies what the log has, again and again, and stops the guest and the queues. After what the log
 * has then, the copy has to be the memory, byte for byte; and a second front end goes on with it,
 * which gets each request answered, once, that the first has left.
 *
 * What the guest writes is in the copy at once: its own processor misses nothing. So that no page
 * is copied for another's sake, what devices write lies apart: data, statuses, rings, and what asks
 * for kicks. A monitor that ignores the log for one of the four has to end with another copy.
 *
 * $BYRE_VUB_MOVES: how often a machine moves, of each kind; $BYRE_VUB_SEED: what to begin with. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bits.h"
#include "base/prng.h"
#include "base/test_scale.h"
#include "drv/vub/vfe_msg.h"
#include "export/vub/test_log.h"

enum {
	QUEUES = HOST_LOOPS,
	SEGS_MAX = 8,
	FILL_MAX = 100,                 /* sectors */
	QUEUE_DATA = (GUEST_MEMORY - GUEST_DATA) / QUEUES,
};

#define POLL_NS (200 * NS_PER_US)

/* What a page has of what devices write. */
enum place { DATA, STATUS, RING, EVENT, PLACES };

struct move {
	struct host *h;
	struct guest g;
	struct dirty_log log;
	char *copy;                     /* of the memory */
	pthread_mutex_t lock;           /* of what the guest writes, and of copying */
	enum place ignored;             /* PLACES: none */
	struct prng prng;               /* the monitor's */
	uint64_t seed;
	atomic_uint asked;
	bool is_asked[QUEUES][RING_SIZE];       /* not yet answered; the guest's */
	atomic_bool is_guest_over, is_disk_over;
};

static uint64_t number(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text ? strtoull(text, NULL, 10) : otherwise;
}

/* ---- the memory ---- */

static enum place place_of(uint64_t off)
{
	if (off >= GUEST_DATA)
		return DATA;
	if (off >= GUEST_PAGES)
		return STATUS;
	return off % GUEST_RING < GUEST_EVENT ? RING : EVENT;
}

/* In slots whose borders are anywhere: in the middle of buffers, of requests and of pages. */
static void tell_memory(struct guest *g)
{
	static const uint64_t borders[] = { 0, 2 * GUEST_RING, GUEST_PAGES + 5 * LOG_PAGE + 256,
		GUEST_DATA + 12345 * 8, GUEST_DATA + (600 << 10), 3 << 20, GUEST_MEMORY };
	enum { N = ARRAY_SIZE(borders) - 1 };
	struct vhost_user_msg m = vfe_msg(VHOST_USER_SET_MEM_TABLE,
					  offsetof(struct vhost_user_mem_table, regions[N]));
	int fds[N];

	m.table.nregions = N;
	for (unsigned i = 0; i < N; i++) {
		fds[i] = g->mem.fd;
		m.table.regions[i] = (struct vhost_user_region){
			.guest_addr = guest_addr(g, borders[i]),
			.size = borders[i + 1] - borders[i],
			.user_addr = (uintptr_t)g->mem.map + borders[i],
			.mmap_offset = borders[i],
		};
	}
	assert_int_equal(vfe_msg_tell(g->link.sock, &m, fds, N, true), 0);
}

static void tell_state(struct guest *g, enum vhost_user_request request, unsigned i, uint32_t num)
{
	struct vhost_user_msg m = vfe_msg(request, sizeof(m.state));

	m.state = (struct vhost_user_vring_state){ i, num };
	assert_int_equal(vfe_msg_tell(g->link.sock, &m, NULL, 0, true), 0);
}

static void tell_fd(struct guest *g, enum vhost_user_request request, unsigned i, int fd)
{
	struct vhost_user_msg m = vfe_msg(request, sizeof(m.u64));

	m.u64 = i;
	assert_int_equal(vfe_msg_tell(g->link.sock, &m, &fd, 1, true), 0);
}

/* @bases: NULL for rings that are new. */
static void tell_all(struct guest *g, const uint32_t *bases)
{
	assert_int_equal(vfe_link_set_features(&g->link, NULL), 0);
	tell_memory(g);
	for (unsigned i = 0; i < QUEUES; i++) {
		const struct vfe_queue *q = &g->queues[i];

		tell_state(g, VHOST_USER_SET_VRING_NUM, i, q->ring.size);
		tell_state(g, VHOST_USER_SET_VRING_BASE, i,
			   bases ? bases[i] : vfe_ring_base(&q->ring));
		log_tell_ring(g, i, false);
		tell_fd(g, VHOST_USER_SET_VRING_CALL, i, q->call);
		tell_fd(g, VHOST_USER_SET_VRING_KICK, i, q->kick);
		tell_state(g, VHOST_USER_SET_VRING_ENABLE, i, 1);
	}
}

static void connect_to(struct guest *g, const struct host *h, const struct vfe_want *want)
{
	*g = (struct guest){ .link = VFE_LINK_NONE, .want = *want };
	g->want.queue_size = RING_SIZE;
	g->want.timeout_ms = HOST_PATIENCE_MS;
	assert_int_equal(vfe_mem_init(&g->mem, GUEST_MEMORY), 0);
	assert_int_equal(vfe_link_open(&g->link, h->path, &g->want, NULL), 0);
	assert_int_equal(g->link.nqueues, QUEUES);
	for (unsigned i = 0; i < QUEUES; i++) {
		assert_int_equal(vfe_queue_init(&g->queues[i], &g->link,
						g->mem.map + i * GUEST_RING), 0);
		guest_lay_out(g, i);
	}
}

/* ---- the guest ---- */

static void wrote(struct move *m, const void *at, size_t len)
{
	memcpy(m->copy + ((const char *)at - m->g.mem.map), at, len);
}

/* What the driver writes of ring @i: of a packed one @n descriptors from @first on. */
static void wrote_ring(struct move *m, unsigned i, unsigned first, unsigned n)
{
	const struct vfe_ring *r = &m->g.queues[i].ring;

	if (!r->is_packed) {
		wrote(m, r->split.desc, r->size * sizeof(*r->split.desc));
		wrote(m, r->split.avail, offsetof(struct vring_avail, ring[RING_SIZE + 1]));
		return;
	}
	wrote(m, r->packed.driver, sizeof(*r->packed.driver));
	for (unsigned k = 0; k < n; k++)
		wrote(m, &r->packed.desc[(first + k) % r->size], sizeof(*r->packed.desc));
}

/* Most are reads. Some fail: beyond the disk, of no whole sectors, or unknown. */
static struct guest_ask random_ask(const struct guest *g, struct prng *prng)
{
	static const uint32_t types[] = { VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_FLUSH,
		VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_WRITE_ZEROES, 77 };
	uint64_t dice = prng_below(prng, 20);
	struct guest_ask a = {
		.queue = (unsigned)prng_below(prng, QUEUES),
		.token = (uint16_t)prng_below(prng, RING_SIZE),
		.type = dice < ARRAY_SIZE(types) ? types[dice] : VIRTIO_BLK_T_IN,
		.len = 512 * (uint32_t)(1 + prng_below(prng, FILL_MAX)),
		.is_scattered = prng_below(prng, 2),
		.is_indirect = !g->want.no_indirect && prng_below(prng, 2),
	};

	/* Loops write there without regard for each other, which ThreadSanitizer would tell. */
	a.at = GUEST_DATA + a.queue * QUEUE_DATA + prng_below(prng, QUEUE_DATA - a.len);
	a.sector = prng_below(prng, (HOST_DISK - a.len) / 512);
	if (dice == 19)
		a.sector = HOST_DISK / 512 - prng_below(prng, 2);
	if (dice == 18)
		a.len -= 1 + (uint32_t)prng_below(prng, 511);
	if (a.type == VIRTIO_BLK_T_FLUSH)
		a.len = 0;
	if (a.type == VIRTIO_BLK_T_GET_ID)
		a.len = VIRTIO_BLK_ID_BYTES;
	return a;
}

static void ask(struct move *m, struct prng *prng)
{
	struct guest_ask a = random_ask(&m->g, prng);
	struct vfe_ring *r = &m->g.queues[a.queue].ring;
	unsigned first = r->avail_idx, nfree = r->nfree;

	if (m->is_asked[a.queue][a.token] || nfree < SEGS_MAX)
		return;
	pthread_mutex_lock(&m->lock);
	guest_put(&m->g, &a);
	guest_kick(&m->g, a.queue);
	wrote(m, m->g.mem.map + guest_page(&a), LOG_PAGE);
	wrote_ring(m, a.queue, first, nfree - r->nfree);
	pthread_mutex_unlock(&m->lock);
	m->is_asked[a.queue][a.token] = true;
	atomic_fetch_add(&m->asked, 1);
}

static void take(struct move *m, unsigned i)
{
	struct vfe_ring *r = &m->g.queues[i].ring;
	uint16_t token;
	uint32_t len;
	int rc;

	pthread_mutex_lock(&m->lock);
	while ((rc = vfe_ring_take(r, &token, &len)) > 0) {
		assert_true(m->is_asked[i][token]);
		m->is_asked[i][token] = false;
	}
	assert_int_equal(rc, 0);
	vfe_ring_arm(r);
	wrote_ring(m, i, 0, 0);
	pthread_mutex_unlock(&m->lock);
}

/* Its processor writes as well, where devices do. */
static void scribble(struct move *m, struct prng *prng)
{
	char *at = m->g.mem.map + GUEST_DATA + prng_below(prng, GUEST_MEMORY - GUEST_DATA - 64);

	pthread_mutex_lock(&m->lock);
	memset(at, (int)prng_below(prng, 256), 64);
	wrote(m, at, 64);
	pthread_mutex_unlock(&m->lock);
}

static void *be_guest(void *arg)
{
	struct move *m = arg;
	struct prng prng = { m->seed + 1 };

	while (!atomic_load(&m->is_guest_over)) {
		for (uint64_t n = prng_below(&prng, 12); n; n--)
			ask(m, &prng);
		for (unsigned i = 0; i < QUEUES; i++)
			take(m, i);
		scribble(m, &prng);
		usleep((useconds_t)prng_below(&prng, 400));
	}
	return NULL;
}

/* ---- the disk ---- */

static void *be_disk(void *arg)
{
	struct move *m = arg;
	struct prng prng = { m->seed + 2 };

	while (!atomic_load(&m->is_disk_over)) {
		atomic_store(&m->h->disk.fail_errno, prng_below(&prng, 4) ? 0 : 5);
		atomic_store(&m->h->disk.is_holding, prng_below(&prng, 4) > 0);
		usleep((useconds_t)prng_below(&prng, 600));
		host_release(m->h);
	}
	atomic_store(&m->h->disk.fail_errno, 0);
	return NULL;
}

/* ---- the monitor ---- */

static void copy_page(struct move *m, uint64_t off)
{
	pthread_mutex_lock(&m->lock);
	memcpy(m->copy + off, m->g.mem.map + off, LOG_PAGE);
	pthread_mutex_unlock(&m->lock);
}

/* Copies what @log has, and takes it out of it. */
static void harvest(struct move *m, struct dirty_log *log)
{
	for (uint64_t off = 0; off < GUEST_MEMORY; off += 8 * LOG_PAGE) {
		uint8_t *at = &log->bits[guest_addr(&m->g, off) / LOG_PAGE / 8];
		unsigned bits = __atomic_exchange_n(at, 0, __ATOMIC_ACQUIRE);

		for (unsigned i = 0; i < 8; i++)
			if (bits >> i & 1 && place_of(off + i * LOG_PAGE) != m->ignored)
				copy_page(m, off + i * LOG_PAGE);
	}
}

/* Another log in the place of the one that there is. */
static void change_log(struct move *m)
{
	struct dirty_log before = m->log;

	log_start(&m->log);
	log_tell_base(&m->log, &m->g);
	harvest(m, &before);
	log_end(&before);
}

static void nap(struct move *m)
{
	usleep((useconds_t)prng_below(&m->prng, 3000));
}

/* The guest goes on, also where there is little time for it. */
static void let_run(struct move *m)
{
	unsigned until = atomic_load(&m->asked) + 4;

	do
		nap(m);
	while (atomic_load(&m->asked) < until);
}

/* Copies all while the guest runs, then what changes. */
static void copy_running(struct move *m)
{
	let_run(m);
	log_tell(&m->log, &m->g);
	for (uint64_t off = 0; off < GUEST_MEMORY; off += LOG_PAGE)
		copy_page(m, off);
	for (unsigned i = 0; i < 4; i++) {
		let_run(m);
		if (!prng_below(&m->prng, 6))
			change_log(m);
		if (!prng_below(&m->prng, 6))
			tell_memory(&m->g);
		harvest(m, &m->log);
	}
}

/* The queues stop, with the guest. */
static void stop_queues(struct move *m, uint32_t *ret_bases)
{
	nap(m);
	if (prng_below(&m->prng, 2))
		for (unsigned i = 0; i < QUEUES; i++)
			tell_state(&m->g, VHOST_USER_SET_VRING_ENABLE, i, 0);
	for (unsigned i = 0; i < QUEUES; i++)
		assert_int_equal(vfe_link_stop_queue(&m->g.link, i, &ret_bases[i]), 0);
}

/* Where the copy is not the memory: PLACES, nowhere. */
static enum place compare(const struct move *m)
{
	for (uint64_t off = 0; off < GUEST_MEMORY; off += LOG_PAGE)
		if (memcmp(m->copy + off, m->g.mem.map + off, LOG_PAGE))
			return place_of(off);
	return PLACES;
}

/* From the guest's beginning until its memory is in the copy. */
static void move_memory(struct move *m, uint32_t *ret_bases)
{
	pthread_t guest, disk;

	tell_all(&m->g, NULL);
	assert_int_equal(pthread_create(&guest, NULL, be_guest, m), 0);
	assert_int_equal(pthread_create(&disk, NULL, be_disk, m), 0);
	copy_running(m);
	if (!prng_below(&m->prng, 4)) {         /* the first try is given up */
		log_tell_features(&m->g, false);
		copy_running(m);
	}
	atomic_store(&m->is_guest_over, true);
	pthread_join(guest, NULL);
	if (!prng_below(&m->prng, 3)) {         /* queues that poll go to sleep */
		atomic_store(&m->is_disk_over, true);
		usleep(10 * POLL_NS / NS_PER_US);
	}
	stop_queues(m, ret_bases);
	harvest(m, &m->log);
	atomic_store(&m->is_disk_over, true);
	pthread_join(disk, NULL);
}

/* ---- where it goes ---- */

/* @to has the copy, and a driver that knows what the first one's knew. */
static void put_memory(const struct move *m, struct guest *to)
{
	memcpy(to->mem.map, m->copy, GUEST_MEMORY);
	for (unsigned i = 0; i < QUEUES; i++) {
		const struct vfe_ring *from = &m->g.queues[i].ring;
		struct vfe_ring *r = &to->queues[i].ring;
		struct vfe_ring_id *ids = r->ids;

		memcpy(ids, from->ids, r->size * sizeof(*ids));
		*r = *from;
		r->ids = ids;
		guest_lay_out(to, i);
	}
}

/* Each request that the first front end has left is answered, once; and so are new ones. */
static void go_on(struct move *m, struct guest *to, const uint32_t *bases)
{
	struct guest_ask a = { .type = VIRTIO_BLK_T_IN, .at = GUEST_DATA, .len = 512 };
	uint8_t status;

	put_memory(m, to);
	tell_all(to, bases);
	for (unsigned i = 0; i < QUEUES; i++) {
		unsigned left = 0;

		for (unsigned k = 0; k < RING_SIZE; k++)
			left += m->is_asked[i][k];
		for (; left; left--) {
			uint16_t token = guest_take(to, i, &status);

			assert_true(m->is_asked[i][token]);
			m->is_asked[i][token] = false;
		}
		a.queue = i;
		for (unsigned k = 0; k < 2 * RING_SIZE; k++) {
			a.token = (uint16_t)(k % RING_SIZE);
			assert_int_equal(guest_do(to, &a), VIRTIO_BLK_S_OK);
		}
		assert_false(guest_has_answer(to, i));
	}
	assert_int_equal(compare(m), PLACES);   /* the first one's is written no more */
}

/* ---- tests ---- */

static void start_host(struct host *h, uint64_t poll_ns)
{
	host_start(h, &(struct vub_opts){ .queues = QUEUES, .poll_ns = poll_ns });
	pthread_mutex_lock(&h->disk.lock);
	for (uint64_t i = 0; i < HOST_DISK; i++)
		h->disk.data[i] = (uint8_t)(mix64(i / 8) >> i % 8 * 8);
	pthread_mutex_unlock(&h->disk.lock);
}

/* Moves a machine. Where the copy is not the memory: PLACES, nowhere, and it has gone on. */
static enum place move_once(struct host *h, const struct vfe_want *want, enum place ignored,
			    uint64_t seed)
{
	struct move m = { .h = h, .ignored = ignored, .seed = seed, .prng = { seed },
			  .copy = calloc(1, GUEST_MEMORY), .lock = PTHREAD_MUTEX_INITIALIZER };
	uint32_t bases[QUEUES];
	enum place wrong;
	struct guest to;

	assert_non_null(m.copy);
	log_start(&m.log);
	connect_to(&m.g, h, want);
	connect_to(&to, h, want);
	move_memory(&m, bases);
	wrong = compare(&m);
	if (wrong == PLACES)
		go_on(&m, &to, bases);
	assert_int_equal(host_broken(h), 0);
	guest_stop(&m.g);
	guest_stop(&to);
	log_end(&m.log);
	free(m.copy);
	return wrong;
}

/* V19, V23, V24: whatever is under way, the copy is the memory, and the guest goes on. */
static void v19_v23_v24_a_machine_moves(void **state)
{
	uint64_t n = number("BYRE_VUB_MOVES", TEST_SCALE > 1 ? 2 : 6);
	uint64_t seed = number("BYRE_VUB_SEED", 1);
	struct host h;

	for (unsigned polls = 0; polls < 2; polls++) {
		start_host(&h, polls * POLL_NS);
		for (uint64_t i = 0; i < n * LOG_WANTS; i++, seed++) {
			enum place wrong = move_once(&h, &log_wants[i % LOG_WANTS], PLACES,
						     seed);

			if (wrong != PLACES)
				fail_msg("place %u, with BYRE_VUB_SEED=%llu", wrong,
					 (unsigned long long)seed);
		}
		host_stop(&h);
	}
}

/* The test of the test: each kind of place is missed. */
static void v23_what_is_not_logged_is_seen(void **state)
{
	struct host h;

	start_host(&h, 0);
	for (unsigned packed = 0; packed < 2; packed++)
		for (enum place p = DATA; p < PLACES; p++) {
			enum place wrong = PLACES;

			for (uint64_t seed = 1; wrong == PLACES && seed < 50; seed++)
				wrong = move_once(&h, &log_wants[packed], p, seed);
			assert_int_equal(wrong, p);
		}
	host_stop(&h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(v19_v23_v24_a_machine_moves),
		cmocka_unit_test(v23_what_is_not_logged_is_seen),
	};

	return cmocka_run_group_tests_name("vub_move", tests, NULL, NULL);
}
