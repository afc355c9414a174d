/* SPDX-License-Identifier: MIT */
/* tests/vub/hostile_message.c - messages that no front end would send. */
#include <fcntl.h>
#include <linux/virtio_config.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bits.h"
#include "drv/vub/vfe_msg.h"
#include "hostile.h"

/* Sends it, with the descriptor @fd where that is not -1, and takes what comes back within a
 * moment, which may be nothing, or the end. */
static void say(struct peer *p, const struct vhost_user_msg *m, int fd)
{
	struct vhost_user_msg reply;
	struct timeval tv = { .tv_usec = 20000 };
	int got = -1;

	if (vfe_msg_send(p->link.sock, m, &fd, fd >= 0))
		return;
	setsockopt(p->link.sock, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	if (!vfe_msg_recv(p->link.sock, &reply, &got) && got >= 0)
		close(got);
}

static struct vhost_user_msg asking(enum vhost_user_request request, uint32_t size)
{
	struct vhost_user_msg m = vfe_msg(request, size);

	m.head.flags |= VHOST_USER_NEED_REPLY;
	return m;
}

static void state(struct peer *p, enum vhost_user_request request, uint32_t index, uint32_t num)
{
	struct vhost_user_msg m = asking(request, sizeof(m.state));

	m.state = (struct vhost_user_vring_state){ index, num };
	say(p, &m, -1);
}

static void number(struct peer *p, enum vhost_user_request request, uint64_t v, int fd)
{
	struct vhost_user_msg m = asking(request, sizeof(m.u64));

	m.u64 = v;
	say(p, &m, fd);
}

/* ---- headers ---- */

static void every_request_of_every_size(struct peer *p, struct prng *prng)
{
	static const uint32_t sizes[] = { 0, 1, 4, 7, 8, 9, 12, 16, 20, 24, 32, 40, 41, 72, 264 };
	uint32_t request = (uint32_t)prng_below(prng, 60);
	int fd = prng_below(prng, 2) ? p->mem.fd : -1;

	for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
		struct vhost_user_msg m = asking(VHOST_USER_NONE, sizes[i]);
		uint8_t *payload = (uint8_t *)&m + VHOST_USER_HEADER_SIZE;

		m.head.request = request;
		for (unsigned k = 0; k < sizes[i]; k++)
			payload[k] = prng_below(prng, 3) ? 0 : (uint8_t)prng_next(prng);
		say(p, &m, fd);
	}
}

static void sizes_that_lie(struct peer *p, struct prng *prng)
{
	static const uint32_t sizes[] = { UINT32_MAX, INT32_MAX, 4096, VHOST_USER_PAYLOAD_MAX + 1 };
	struct vhost_user_msg m = asking(VHOST_USER_SET_MEM_TABLE,
					 sizes[prng_below(prng, ARRAY_SIZE(sizes))]);

	say(p, &m, -1);
}

static void half_a_header(struct peer *p, struct prng *prng)
{
	struct vhost_user_msg m = asking(VHOST_USER_SET_FEATURES, 8);
	size_t n = 1 + prng_below(prng, VHOST_USER_HEADER_SIZE + 7);

	if (send(p->link.sock, &m, n, MSG_NOSIGNAL) == (ssize_t)n && prng_below(prng, 2))
		usleep(20000);
}

static void wrong_versions(struct peer *p, struct prng *prng)
{
	struct vhost_user_msg m = vfe_msg(VHOST_USER_GET_FEATURES, 0);

	m.head.flags = (uint32_t)prng_next(prng);
	say(p, &m, -1);
}

static void more_descriptors_than_anybody_needs(struct peer *p, struct prng *prng)
{
	struct vhost_user_msg m = asking(VHOST_USER_GET_FEATURES, 0);
	int fds[VHOST_USER_FDS_MAX];

	for (unsigned i = 0; i < VHOST_USER_FDS_MAX; i++)
		fds[i] = p->mem.fd;
	for (unsigned i = 0; i < 50; i++)
		if (vfe_msg_send(p->link.sock, &m, fds, VHOST_USER_FDS_MAX))
			return;
}

static void nobody_reads_the_replies(struct peer *p, struct prng *prng)
{
	struct vhost_user_msg m = asking(VHOST_USER_GET_CONFIG, VHOST_USER_CONFIG_HEAD + 60);
	struct timeval tv = { .tv_usec = 200000 };

	m.config.size = 60;
	setsockopt(p->link.sock, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
	for (unsigned i = 0; i < 10000; i++)
		if (vfe_msg_send(p->link.sock, &m, NULL, 0))
			return;
}

/* ---- memory ---- */

static void table(struct peer *p, uint32_t n, struct vhost_user_region r, int fd, unsigned nfds)
{
	struct vhost_user_msg m = asking(VHOST_USER_SET_MEM_TABLE, 8);
	int fds[VHOST_USER_FDS_MAX];

	m.table.nregions = n;
	for (unsigned i = 0; i < MIN(n, (uint32_t)VHOST_USER_TABLE_REGIONS_MAX); i++) {
		m.table.regions[i] = r;
		m.head.size += (uint32_t)sizeof(r);
	}
	for (unsigned i = 0; i < nfds; i++)
		fds[i] = fd;
	if (!vfe_msg_send(p->link.sock, &m, fds, nfds))
		number(p, VHOST_USER_GET_FEATURES, 0, -1);
}

static void odd_tables(struct peer *p, struct prng *prng)
{
	static const uint64_t odd[] = { 0, 1, 4095, 4096, PEER_MEMORY, 1ULL << 40, 1ULL << 63,
					UINT64_MAX - 4095, UINT64_MAX };
	struct vhost_user_region r = {
		.guest_addr = VFE_MEM_GUEST, .size = PEER_MEMORY, .user_addr = (uintptr_t)p->at,
	};
	uint64_t *fields[] = { &r.guest_addr, &r.size, &r.user_addr, &r.mmap_offset };
	uint32_t n = (uint32_t)prng_below(prng, 11);

	*fields[prng_below(prng, ARRAY_SIZE(fields))] = odd[prng_below(prng, ARRAY_SIZE(odd))];
	table(p, prng_below(prng, 2) ? 1 : n, r, p->mem.fd, prng_below(prng, 2) ? 1 : n % 9);
}

/* What cannot be mapped, or not written. */
static void odd_files(struct peer *p, struct prng *prng)
{
	struct vhost_user_region r = {
		.guest_addr = VFE_MEM_GUEST, .size = PEER_MEMORY, .user_addr = (uintptr_t)p->at,
	};
	int fds[] = { eventfd(0, EFD_CLOEXEC), open("/dev/null", O_RDWR | O_CLOEXEC),
		      open("/proc/self/maps", O_RDONLY | O_CLOEXEC),
		      memfd_create("empty", MFD_CLOEXEC),
		      memfd_create("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING),
		      dup(p->link.sock) };

	if (!ftruncate(fds[4], PEER_MEMORY))
		fcntl(fds[4], F_ADD_SEALS, F_SEAL_WRITE);
	table(p, 1, r, fds[prng_below(prng, ARRAY_SIZE(fds))], 1);
	for (unsigned i = 0; i < ARRAY_SIZE(fds); i++)
		close(fds[i]);
	vfe_signal(p->q.kick);
}

static void slots_without_end(struct peer *p, struct prng *prng)
{
	for (unsigned i = 0; i < 600; i++) {
		struct vhost_user_msg m = vfe_msg(VHOST_USER_ADD_MEM_REG, sizeof(m.reg));

		m.reg.region = (struct vhost_user_region){
			.guest_addr = (2ULL << 40) + i * 4096ULL, .size = 4096,
			.user_addr = (3ULL << 40) + i * 4096ULL, .mmap_offset = i * 4096ULL,
		};
		if (vfe_msg_send(p->link.sock, &m, &p->mem.fd, 1))
			return;
	}
	number(p, VHOST_USER_GET_FEATURES, 0, -1);
}

static void slots_that_are_in_use_go(struct peer *p, struct prng *prng)
{
	struct vhost_user_msg m = asking(VHOST_USER_REM_MEM_REG, sizeof(m.reg));

	vfe_signal(p->q.kick);
	m.reg.region = (struct vhost_user_region){
		.guest_addr = VFE_MEM_GUEST, .size = PEER_MEMORY, .user_addr = (uintptr_t)p->at,
	};
	say(p, &m, -1);
	vfe_signal(p->q.kick);
	say(p, &m, -1);
	m.reg.region.size += 4096;
	say(p, &m, -1);
}

/* ---- queues ---- */

static void odd_sizes_of_rings(struct peer *p, struct prng *prng)
{
	static const uint32_t sizes[] = { 0, 1, 3, 100, 1024, 1025, 32768, 65536, UINT32_MAX };

	for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++)
		state(p, VHOST_USER_SET_VRING_NUM, 0, sizes[i]);
	vfe_signal(p->q.kick);
}

static void queues_that_are_not_there(struct peer *p, struct prng *prng)
{
	static const uint32_t at[] = { 1, 2, 63, 64, 255, 256, 1024, UINT32_MAX };

	for (unsigned i = 0; i < ARRAY_SIZE(at); i++) {
		state(p, VHOST_USER_SET_VRING_NUM, at[i], 64);
		state(p, VHOST_USER_SET_VRING_BASE, at[i], 0);
		state(p, VHOST_USER_SET_VRING_ENABLE, at[i], 1);
		number(p, VHOST_USER_SET_VRING_KICK, at[i], p->q.kick);
		number(p, VHOST_USER_SET_VRING_CALL, at[i], p->q.call);
		state(p, VHOST_USER_GET_VRING_BASE, at[i], 0);
	}
}

static void rings_that_lie_nowhere(struct peer *p, struct prng *prng)
{
	static const uint64_t odd[] = { 0, 1, 8, PEER_MEMORY - 16, PEER_MEMORY, UINT64_MAX };
	uint64_t base = (uintptr_t)p->at;

	for (unsigned i = 0; i < 12; i++) {
		struct vhost_user_msg m = asking(VHOST_USER_SET_VRING_ADDR, sizeof(m.addr));

		m.addr.flags = (uint32_t)prng_below(prng, 4);
		m.addr.descriptor = base + odd[prng_below(prng, ARRAY_SIZE(odd))];
		m.addr.available = base + odd[prng_below(prng, ARRAY_SIZE(odd))];
		m.addr.used = base + odd[prng_below(prng, ARRAY_SIZE(odd))];
		m.addr.log = prng_next(prng);
		say(p, &m, -1);
		vfe_signal(p->q.kick);
	}
}

static void odd_bases(struct peer *p, struct prng *prng)
{
	uint32_t base = (uint32_t)prng_next(prng);

	state(p, VHOST_USER_GET_VRING_BASE, 0, 0);
	state(p, VHOST_USER_GET_VRING_BASE, 0, 77);
	state(p, VHOST_USER_SET_VRING_BASE, 0, base);
	number(p, VHOST_USER_SET_VRING_KICK, 0, p->q.kick);
	state(p, VHOST_USER_SET_VRING_ENABLE, 0, 1);
	vfe_signal(p->q.kick);
}

/* Descriptors of the wrong kind, or none, where eventfds belong. */
static void odd_kicks(struct peer *p, struct prng *prng)
{
	static const enum vhost_user_request requests[] = {
		VHOST_USER_SET_VRING_KICK, VHOST_USER_SET_VRING_CALL, VHOST_USER_SET_VRING_ERR,
	};
	int pipes[2], file = memfd_create("file", MFD_CLOEXEC);

	if (pipe2(pipes, O_CLOEXEC))
		return;
	close(pipes[0]);
	for (unsigned i = 0; i < 8; i++) {
		int fds[] = { file, pipes[1], p->link.sock, p->q.call, -1 };

		number(p, requests[prng_below(prng, ARRAY_SIZE(requests))],
		       prng_below(prng, 3) ? 0 : VHOST_USER_VRING_NOFD,
		       fds[prng_below(prng, ARRAY_SIZE(fds))]);
		vfe_signal(p->q.kick);
	}
	close(file);
	close(pipes[1]);
}

static void on_and_off(struct peer *p, struct prng *prng)
{
	for (unsigned i = 0; i < 30; i++) {
		state(p, VHOST_USER_SET_VRING_ENABLE, 0, (uint32_t)prng_below(prng, 3));
		vfe_signal(p->q.kick);
		if (!prng_below(prng, 4))
			state(p, VHOST_USER_GET_VRING_BASE, 0, 0);
		if (!prng_below(prng, 4))
			number(p, VHOST_USER_SET_VRING_KICK, 0, p->q.kick);
	}
}

/* ---- the rest ---- */

static void odd_features(struct peer *p, struct prng *prng)
{
	static const enum vhost_user_request requests[] = {
		VHOST_USER_SET_FEATURES, VHOST_USER_SET_PROTOCOL_FEATURES,
		VHOST_USER_RESET_OWNER, VHOST_USER_RESET_DEVICE, VHOST_USER_SET_OWNER,
	};

	for (unsigned i = 0; i < 8; i++) {
		uint64_t f = prng_below(prng, 2) ? prng_next(prng) : p->link.features ^
			     1ULL << prng_below(prng, 40);

		number(p, requests[prng_below(prng, ARRAY_SIZE(requests))], f, -1);
		vfe_signal(p->q.kick);
	}
}

/* An area of requests in flight that nobody wrote. */
static void odd_areas(struct peer *p, struct prng *prng)
{
	static const uint64_t sizes[] = { 0, 1, 64, 4096, 1 << 20, UINT64_MAX };
	int fd = memfd_create("area", MFD_CLOEXEC);
	uint8_t noise[4096];

	for (unsigned i = 0; i < sizeof(noise); i++)
		noise[i] = (uint8_t)prng_next(prng);
	memset(noise, 0, 8);
	noise[8] = 1;
	noise[9] = 0;
	if (pwrite(fd, noise, prng_below(prng, sizeof(noise)), 0) < 0)
		return;
	for (unsigned i = 0; i < 6; i++) {
		struct vhost_user_msg m = asking(VHOST_USER_SET_INFLIGHT_FD, sizeof(m.inflight));

		m.inflight.mmap_size = sizes[prng_below(prng, ARRAY_SIZE(sizes))];
		m.inflight.mmap_offset = prng_below(prng, 3) ? 0 : prng_next(prng);
		m.inflight.num_queues = (uint16_t)(prng_below(prng, 4) ? 1 : prng_next(prng));
		m.inflight.queue_size = (uint16_t)(prng_below(prng, 4) ? 64 : prng_next(prng));
		if (prng_below(prng, 2))
			m.head.request = VHOST_USER_GET_INFLIGHT_FD;
		say(p, &m, m.head.request == VHOST_USER_SET_INFLIGHT_FD ? fd : -1);
		number(p, VHOST_USER_SET_VRING_KICK, 0, p->q.kick);
		vfe_signal(p->q.kick);
	}
	close(fd);
}

/* The area is cut off behind the back end's back. */
static void the_area_is_cut_off(struct peer *p, struct prng *prng)
{
	if (p->link.inflight_fd < 0 || ftruncate(p->link.inflight_fd, 0))
		return;
	hostile_chain(p, 0);
	usleep(2000);
}

/* A log of dirty pages that ends before the memory does. */
static void a_log_that_is_too_short(struct peer *p, struct prng *prng)
{
	struct vhost_user_msg m = asking(VHOST_USER_SET_LOG_BASE, sizeof(m.log));
	int fd = memfd_create("log", MFD_CLOEXEC);

	m.log.size = prng_below(prng, 2) ? 8 : 4096;
	m.log.offset = prng_below(prng, 4) ? 0 : prng_next(prng);
	if (prng_below(prng, 4) && ftruncate(fd, 4096))
		return;
	say(p, &m, fd);
	number(p, VHOST_USER_SET_FEATURES, p->link.features | 1ULL << VHOST_USER_F_LOG_ALL, -1);
	hostile_chain(p, 0);
	usleep(2000);
	if (!ftruncate(fd, 0))
		hostile_chain(p, 0);
	close(fd);
}

static void odd_configs(struct peer *p, struct prng *prng)
{
	static const uint32_t odd[] = { 0, 1, 32, 60, 72, 256, 257, INT32_MAX, UINT32_MAX };

	for (unsigned i = 0; i < 10; i++) {
		struct vhost_user_msg m = asking(prng_below(prng, 2) ? VHOST_USER_GET_CONFIG :
								       VHOST_USER_SET_CONFIG, 0);

		m.config.offset = odd[prng_below(prng, ARRAY_SIZE(odd))];
		m.config.size = odd[prng_below(prng, ARRAY_SIZE(odd))];
		m.config.flags = (uint32_t)prng_below(prng, 3);
		m.head.size = VHOST_USER_CONFIG_HEAD + (uint32_t)prng_below(prng, 257);
		say(p, &m, -1);
	}
}

/* ---- all of it, in any order ---- */

/* Some reads more in the ring, whose answers may have been taken. */
static void ask_for_more(struct peer *p, struct prng *prng)
{
	struct vfe_table none = { 0 };
	struct vfe_seg segs[3] = {
		{ VFE_MEM_GUEST + PEER_HEAD, 16, false },
		{ VFE_MEM_GUEST + PEER_DATA, 512u << prng_below(prng, 11), true },
		{ VFE_MEM_GUEST + PEER_STATUS, 1, true },
	};
	uint16_t token = 0;
	uint32_t len;
	int rc;

	while ((rc = vfe_ring_take(&p->q.ring, &token, &len)) > 0)
		;
	if (rc < 0)
		vfe_ring_reset(&p->q.ring);
	for (uint64_t n = prng_below(prng, 20); n > 0; n--)
		if (vfe_ring_add(&p->q.ring, segs, 3, &none, token))
			break;
	vfe_ring_publish(&p->q.ring);
	vfe_signal(p->q.kick);
}

static struct vhost_user_msg some_number(const struct peer *p, struct prng *prng, int *ret_fd)
{
	static const enum vhost_user_request notifiers[] = {
		VHOST_USER_SET_VRING_KICK, VHOST_USER_SET_VRING_CALL, VHOST_USER_SET_VRING_ERR,
	};
	struct vhost_user_msg m = vfe_msg(VHOST_USER_SET_FEATURES, sizeof(m.u64));
	static const unsigned bits[] = { VIRTIO_F_RING_PACKED, VIRTIO_RING_F_EVENT_IDX,
					 VHOST_USER_F_LOG_ALL, VIRTIO_BLK_F_FLUSH };

	m.u64 = p->link.features;
	if (prng_below(prng, 2))
		m.u64 ^= 1ULL << bits[prng_below(prng, ARRAY_SIZE(bits))];
	if (prng_below(prng, 3)) {
		m.head.request = notifiers[prng_below(prng, ARRAY_SIZE(notifiers))];
		m.u64 = prng_below(prng, 2);
		*ret_fd = prng_below(prng, 2) ? p->q.kick : p->q.call;
		if (!prng_below(prng, 8)) {
			m.u64 |= VHOST_USER_VRING_NOFD;
			*ret_fd = -1;
		}
	}
	return m;
}

static struct vhost_user_msg some_state(struct prng *prng)
{
	static const struct {
		enum vhost_user_request request;
		uint32_t num[3];
	} states[] = {
		{ VHOST_USER_SET_VRING_ENABLE, { 0, 1, 1 } },
		{ VHOST_USER_GET_VRING_BASE, { 0, 0, 0 } },
		{ VHOST_USER_SET_VRING_NUM, { PEER_QUEUE_SIZE, PEER_QUEUE_SIZE, 8 } },
		{ VHOST_USER_SET_VRING_BASE, { 0, 0x80008000, 5 } },
	};
	uint64_t i = prng_below(prng, ARRAY_SIZE(states));
	struct vhost_user_msg m = vfe_msg(states[i].request, sizeof(m.state));

	m.state.index = (uint32_t)prng_below(prng, 2);
	m.state.num = states[i].num[prng_below(prng, 3)];
	return m;
}

static struct vhost_user_msg some_memory(const struct peer *p, struct prng *prng, int *ret_fd)
{
	struct vhost_user_region r = {
		.guest_addr = VFE_MEM_GUEST, .size = PEER_MEMORY, .user_addr = (uintptr_t)p->at,
	};
	struct vhost_user_msg m = vfe_msg(VHOST_USER_SET_MEM_TABLE,
					  offsetof(struct vhost_user_mem_table, regions[1]));

	*ret_fd = p->mem.fd;
	if (prng_below(prng, 3)) {
		m.table.nregions = 1;
		m.table.regions[0] = r;
		return m;
	}
	m = vfe_msg(prng_below(prng, 2) ? VHOST_USER_ADD_MEM_REG : VHOST_USER_REM_MEM_REG,
		    sizeof(m.reg));
	if (prng_below(prng, 2)) {
		r.guest_addr += PEER_MEMORY;
		r.user_addr += PEER_MEMORY;
	}
	m.reg.region = r;
	return m;
}

static struct vhost_user_msg some_ring(const struct peer *p, struct prng *prng)
{
	struct vhost_user_msg m = vfe_msg(VHOST_USER_SET_VRING_ADDR, sizeof(m.addr));
	const void *parts[3];

	vfe_ring_parts(&p->q.ring, parts);
	m.addr = (struct vhost_user_vring_addr){
		.index = (uint32_t)prng_below(prng, 2),
		.flags = (uint32_t)prng_below(prng, 2),
		.descriptor = (uintptr_t)parts[0],
		.available = (uintptr_t)parts[1],
		.used = (uintptr_t)parts[2],
		.log = PEER_DATA,
	};
	if (!prng_below(prng, 8))
		m.addr.used += PEER_MEMORY;
	return m;
}

static struct vhost_user_msg some_area(const struct peer *p, struct prng *prng, int *ret_fd)
{
	struct vhost_user_msg m = vfe_msg(VHOST_USER_SET_LOG_BASE, sizeof(m.log));

	*ret_fd = p->mem.fd;                    /* of which the log is a part, as it happens */
	m.log.size = 4096;
	m.log.offset = PEER_DATA;
	if (p->link.inflight_fd >= 0 && prng_below(prng, 2)) {
		m = vfe_msg(VHOST_USER_SET_INFLIGHT_FD, sizeof(m.inflight));
		m.inflight = p->link.inflight;
		*ret_fd = p->link.inflight_fd;
	}
	return m;
}

/* Each of them could be right; nothing is waited for, so that requests are under way. */
static void anything_at_any_time(struct peer *p, struct prng *prng)
{
	struct timeval tv = { .tv_sec = 1 };
	char dropped[4096];

	setsockopt(p->link.sock, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
	for (unsigned i = 0; i < 150; i++) {
		struct vhost_user_msg m = vfe_msg(VHOST_USER_RESET_DEVICE, 0);
		uint64_t kind = prng_below(prng, 24);
		int fd = -1;

		if (kind < 8)
			m = some_state(prng);
		else if (kind < 14)
			m = some_number(p, prng, &fd);
		else if (kind < 18)
			m = some_memory(p, prng, &fd);
		else if (kind < 21)
			m = some_ring(p, prng);
		else if (kind < 23)
			m = some_area(p, prng, &fd);
		if (prng_below(prng, 2))
			m.head.flags |= VHOST_USER_NEED_REPLY;
		ask_for_more(p, prng);
		if (vfe_msg_send(p->link.sock, &m, &fd, fd >= 0))
			return;
		while (recv(p->link.sock, dropped, sizeof(dropped), MSG_DONTWAIT) > 0)
			;
	}
}

const struct hostile_case hostile_messages[] = {
	{ "every request of every size", every_request_of_every_size },
	{ "sizes that lie", sizes_that_lie },
	{ "half a header", half_a_header },
	{ "wrong versions", wrong_versions },
	{ "more descriptors than anybody needs", more_descriptors_than_anybody_needs },
	{ "nobody reads the replies", nobody_reads_the_replies },
	{ "odd tables", odd_tables },
	{ "odd files", odd_files },
	{ "slots without end", slots_without_end },
	{ "slots that are in use go", slots_that_are_in_use_go },
	{ "odd sizes of rings", odd_sizes_of_rings },
	{ "queues that are not there", queues_that_are_not_there },
	{ "rings that lie nowhere", rings_that_lie_nowhere },
	{ "odd bases", odd_bases },
	{ "odd kicks", odd_kicks },
	{ "on and off", on_and_off },
	{ "odd features", odd_features },
	{ "odd areas", odd_areas },
	{ "the area is cut off", the_area_is_cut_off },
	{ "a log that is too short", a_log_that_is_too_short },
	{ "odd configs", odd_configs },
	{ "anything at any time", anything_at_any_time },
	{ NULL, NULL },
};
