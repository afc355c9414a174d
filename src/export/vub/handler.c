/* SPDX-License-Identifier: MIT */
/* export/vub/handler.c - what each message does.
 *
 * All run in the control fiber, one at a time. What queues read while they run (memory, features,
 * the log) is changed with all of them halted; so a slot goes only when nothing is in flight (V15),
 * and the guest sees nothing but a moment without answers.
 *
 * A front end holds the disk from the first queue that it lets run until all of them are stopped or
 * disabled. Who wants to run queues meanwhile is answered as ever; they run when the other lets go
 * (V24). */
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.h"
#include "export/vub/descriptor.h"
#include "export/vub/vub_impl.h"

struct call {
	struct vub *v;
	struct vhost_user_msg *m;
	int *fds;
	int *ret_fd;
};

static const uint64_t protocol_features =
	1ULL << VHOST_USER_PROTOCOL_F_MQ | 1ULL << VHOST_USER_PROTOCOL_F_LOG_SHMFD |
	1ULL << VHOST_USER_PROTOCOL_F_REPLY_ACK | 1ULL << VHOST_USER_PROTOCOL_F_BACKEND_REQ |
	1ULL << VHOST_USER_PROTOCOL_F_CONFIG | 1ULL << VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD |
	1ULL << VHOST_USER_PROTOCOL_F_RESET_DEVICE |
	1ULL << VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS;

static void reply_u64(struct call *c, uint64_t value)
{
	c->m->u64 = value;
	c->m->head.size = sizeof(value);
}

static void halt_all_wait(struct vub *v)
{
	for (unsigned i = 0; i < v->nqueues; i++)
		if (v->queues[i]->is_started)
			vub_queue_halt_wait(v->queues[i]);
}

/* Lets @q run as far as the messages have come, and if the disk is ours. */
static int run_wait(struct vub_queue *q)
{
	struct vub *v = q->v;

	if (!q->is_started || !q->is_enabled || v->is_stopping)
		return 0;
	if (v->twin && v->twin->is_holding) {
		if (!v->is_waiting)
			log_limited(&v->log_limit, LOG_LEVEL_INFO, "vhost-user: '%s': a front end "
				    "waits for the other to stop its queues", v->name);
		v->is_waiting = true;
		return 0;
	}
	v->is_holding = true;
	v->is_waiting = false;
	if (vub_has_bit(v->features, VHOST_USER_F_LOG_ALL) && !v->log.bits)
		v->is_log_late = true;
	return vub_queue_run_wait(q);
}

/* What cannot run yet waits for more messages. */
static void run_all_wait(struct vub *v)
{
	for (unsigned i = 0; i < v->nqueues; i++)
		run_wait(v->queues[i]);
}

void vub_handle_turn_wait(struct vub *v)
{
	v->is_our_turn = false;
	run_all_wait(v);
}

/* A queue is halted: with the last one the disk goes to whoever waits for it. */
static void let_go(struct vub *v)
{
	for (unsigned i = 0; i < v->nqueues; i++)
		if (v->queues[i]->is_started && v->queues[i]->is_enabled)
			return;
	if (!v->is_holding)
		return;
	v->is_holding = false;
	if (!v->twin || !v->twin->fiber)
		return;
	v->twin->is_our_turn = true;
	fiber_wake(v->twin->fiber);
}

static struct vub_queue *queue_of(struct vub *v, uint64_t index)
{
	return index < v->nqueues ? v->queues[index] : NULL;
}

static bool is_any_primed(const struct vub *v)
{
	for (unsigned i = 0; i < v->nqueues; i++)
		if (v->queues[i]->is_primed)
			return true;
	return false;
}

/* ---- features ---- */

static int get_features(struct call *c)
{
	reply_u64(c, vub_config_features(c->v));
	return 0;
}

static int set_features(struct call *c)
{
	struct vub *v = c->v;
	uint64_t f = c->m->u64, packed = 1ULL << VIRTIO_F_RING_PACKED;

	if (f & ~vub_config_features(v))
		return -EINVAL;
	if ((f ^ v->features) & packed && is_any_primed(v))
		return -EBUSY;
	halt_all_wait(v);
	v->features = f;
	if (!vub_has_bit(f, VHOST_USER_F_PROTOCOL_FEATURES))
		for (unsigned i = 0; i < v->nqueues; i++)
			v->queues[i]->is_enabled = true;
	run_all_wait(v);
	return 0;
}

static int get_protocol_features(struct call *c)
{
	reply_u64(c, protocol_features);
	return 0;
}

static int set_protocol_features(struct call *c)
{
	if (c->m->u64 & ~protocol_features)
		return -EINVAL;
	c->v->protocol_features = c->m->u64;
	return 0;
}

static int get_queue_num(struct call *c)
{
	reply_u64(c, c->v->nqueues);
	return 0;
}

static int nothing(struct call *c)
{
	return 0;
}

static int reset_device_wait(struct call *c)
{
	halt_all_wait(c->v);
	for (unsigned i = 0; i < c->v->nqueues; i++)
		vub_queue_reset(c->v->queues[i]);
	c->v->is_write_through = false;
	let_go(c->v);
	return 0;
}

/* ---- memory ---- */

static int set_mem_table_wait(struct call *c)
{
	struct vub *v = c->v;
	int rc = 0;

	halt_all_wait(v);
	vub_memory_clear(&v->memory);
	for (unsigned i = 0; i < c->m->table.nregions && !rc; i++) {
		struct vhost_user_region r = c->m->table.regions[i];

		rc = vub_memory_add(&v->memory, &r, c->fds[i]);
	}
	if (rc)
		vub_memory_clear(&v->memory);
	run_all_wait(v);
	return rc;
}

static int get_max_mem_slots(struct call *c)
{
	reply_u64(c, VUB_SLOTS_MAX);
	return 0;
}

static int add_mem_reg_wait(struct call *c)
{
	struct vhost_user_region r = c->m->reg.region;
	int rc;

	halt_all_wait(c->v);
	rc = vub_memory_add(&c->v->memory, &r, c->fds[0]);
	run_all_wait(c->v);
	return rc;
}

static int rem_mem_reg_wait(struct call *c)
{
	struct vhost_user_region r = c->m->reg.region;
	int rc;

	halt_all_wait(c->v);
	rc = vub_memory_remove(&c->v->memory, &r);
	run_all_wait(c->v);
	return rc;
}

/* What queues have written that were to log before there was a log may be anywhere. */
static int set_log_base_wait(struct call *c)
{
	struct vhost_user_log where = c->m->log;
	struct vub *v = c->v;
	struct vub_log before = v->log;
	int rc;

	halt_all_wait(v);
	if (!v->log.bits)
		log_limited(&v->log_limit, LOG_LEVEL_INFO, "vhost-user: '%s': what is written to "
			    "the memory is logged: a migration", v->name);
	rc = vub_log_init(&v->log, c->fds[0], &where);
	if (!rc) {
		vub_log_follow_wait(v, &before, v->is_log_late);
		vub_log_fini(&before);
		v->is_log_late = false;
	}
	run_all_wait(v);
	reply_u64(c, 0);
	return rc;
}

/* ---- queues ---- */

static int set_vring_num(struct call *c)
{
	struct vub_queue *q = queue_of(c->v, c->m->state.index);

	if (!q || !c->m->state.num || c->m->state.num > VUB_RING_MAX)
		return -EINVAL;
	if (q->is_primed)
		return q->num == c->m->state.num ? 0 : -EBUSY;
	q->num = c->m->state.num;
	return 0;
}

/* May come while the queue runs, with nothing changed but the flags. */
static int set_vring_addr_wait(struct call *c)
{
	struct vhost_user_vring_addr addr = c->m->addr;
	struct vub_queue *q = queue_of(c->v, addr.index);

	if (!q)
		return -EINVAL;
	vub_queue_halt_wait(q);
	q->addr = addr;
	q->has_addr = true;
	return run_wait(q);
}

static int set_vring_base(struct call *c)
{
	struct vub_queue *q = queue_of(c->v, c->m->state.index);

	if (!q)
		return -EINVAL;
	if (q->is_primed)
		return -EBUSY;
	q->base = c->m->state.num;
	return 0;
}

static int get_vring_base_wait(struct call *c)
{
	struct vub_queue *q = queue_of(c->v, c->m->state.index);

	if (!q)
		return -EINVAL;
	vub_queue_halt_wait(q);
	vub_queue_stop(q);
	let_go(c->v);
	c->m->state.num = q->base;
	return 0;
}

static int set_vring_enable_wait(struct call *c)
{
	struct vub_queue *q = queue_of(c->v, c->m->state.index);

	if (!q || c->m->state.num > 1)
		return -EINVAL;
	if (!c->m->state.num)
		vub_queue_halt_wait(q);
	q->is_enabled = c->m->state.num;
	if (!q->is_enabled)
		let_go(c->v);
	return run_wait(q);
}

/* Takes the message's descriptor, to notify or be notified by: an eventfd, for others may block
 * whoever uses them; who fills a pipe out of memory that is not there has its readers wait, with
 * RWF_NOWAIT or without (V25). 0 and *@ret_fd, which is -1 where the message has none; or
 * -errno. */
static int take_notifier(struct call *c, int *ret_fd)
{
	int fd = c->fds[0];

	if (fd < 0) {
		*ret_fd = -1;
		return 0;
	}
	if (!vub_fd_is_eventfd(fd))
		return -EINVAL;
	if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0)
		return -EBADF;
	c->fds[0] = -1;
	*ret_fd = fd;
	return 0;
}

/* @q has a kick descriptor of its own; is it the eventfd of others, too? */
static void find_shared_kicks(struct vub_queue *q)
{
	q->kick_id = q->kick_fd >= 0 ? vub_fd_event_id(q->kick_fd) : -1;
	q->kick_is_shared = false;
	for (unsigned i = 0; i < q->v->nqueues && q->kick_id >= 0; i++) {
		struct vub_queue *other = q->v->queues[i];

		if (other == q || other->kick_fd < 0 || other->kick_id != q->kick_id)
			continue;
		q->kick_is_shared = other->kick_is_shared = true;
	}
}

static int set_vring_kick_wait(struct call *c)
{
	struct vub_queue *q = queue_of(c->v, c->m->u64 & VHOST_USER_VRING_INDEX_MASK);
	int fd, rc = q ? take_notifier(c, &fd) : -EINVAL;

	if (rc)
		return rc;
	vub_queue_halt_wait(q);
	if (q->kick_fd >= 0)
		close(q->kick_fd);
	q->kick_fd = fd;
	find_shared_kicks(q);
	q->is_started = true;
	return run_wait(q);
}

static int set_notifier_wait(struct call *c, bool is_call)
{
	struct vub_queue *q = queue_of(c->v, c->m->u64 & VHOST_USER_VRING_INDEX_MASK);
	int fd, rc = q ? take_notifier(c, &fd) : -EINVAL;

	if (!rc)
		vub_queue_set_notifier_wait(q, is_call ? &q->call_fd : &q->err_fd, fd);
	return rc;
}

static int set_vring_call_wait(struct call *c)
{
	return set_notifier_wait(c, true);
}

static int set_vring_err_wait(struct call *c)
{
	return set_notifier_wait(c, false);
}

/* ---- the device ---- */

/* The way back is one end of a pair. A socket whose other end has a name is a connection to a
 * server, and may be one to this device: held here, it would outlive the front end (V26). So would
 * one that waits to be received from the pair, so nothing must wait there. To receive it is to wait
 * for who else receives from that end, which may be for ever (V27). */
static bool is_way_back(int fd)
{
	struct sockaddr_un peer;
	socklen_t len = sizeof(peer), type_len = sizeof(int);
	int type = 0, waiting = 0;

	return !getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &type_len) && type == SOCK_STREAM &&
	       !getpeername(fd, (struct sockaddr *)&peer, &len) && peer.sun_family == AF_UNIX &&
	       len <= offsetof(struct sockaddr_un, sun_path) && !shutdown(fd, SHUT_RD) &&
	       !ioctl(fd, SIOCINQ, &waiting) && !waiting;
}

static int set_backend_req_fd(struct call *c)
{
	if (!is_way_back(c->fds[0]))
		return -EINVAL;
	if (c->v->backend_fd >= 0)
		close(c->v->backend_fd);
	c->v->backend_fd = c->fds[0];
	c->fds[0] = -1;
	return 0;
}

static int get_config(struct call *c)
{
	struct virtio_blk_config config;
	uint32_t off = c->m->config.offset, len = c->m->config.size;
	uint8_t *to = (uint8_t *)c->m + offsetof(struct vhost_user_msg, config.data);

	vub_config_fill(c->v, &config);
	memset(to, 0, len);
	if (off < sizeof(config))
		memcpy(to, (uint8_t *)&config + off, MIN(len, sizeof(config) - off));
	return 0;
}

static int set_config_wait(struct call *c)
{
	struct vhost_user_config config = { 0 };
	bool has_changed = false;
	int rc;

	memcpy(&config, (uint8_t *)c->m + VHOST_USER_HEADER_SIZE, c->m->head.size);
	if (config.flags == VHOST_USER_CONFIG_MIGRATION)
		return 0;
	rc = vub_config_write(c->v, &config, &has_changed);
	if (has_changed) {
		halt_all_wait(c->v);
		run_all_wait(c->v);
	}
	return rc;
}

static int get_inflight_fd(struct call *c)
{
	uint16_t queues = c->m->inflight.num_queues, num = c->m->inflight.queue_size;
	uint64_t bytes = queues * vub_inflight_bytes(num);
	int fd;

	if (!queues || queues > c->v->nqueues || !num || num > VUB_RING_MAX)
		return -EINVAL;
	fd = memfd_create("byre-inflight", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)bytes) < 0 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
		int rc = -errno;

		close(fd);
		return rc;
	}
	c->m->inflight.mmap_size = bytes;
	c->m->inflight.mmap_offset = 0;
	*c->ret_fd = fd;
	return 0;
}

static int set_inflight_fd(struct call *c)
{
	uint16_t queues = c->m->inflight.num_queues, num = c->m->inflight.queue_size;
	uint64_t size = c->m->inflight.mmap_size;
	struct vub_mapping mapping = { 0 };
	struct vub *v = c->v;
	void *at;
	int rc;

	if (is_any_primed(v))
		return -EBUSY;
	if (!queues || queues > VUB_QUEUES_MAX || !num || num > VUB_RING_MAX ||
	    size < queues * vub_inflight_bytes(num))
		return -EINVAL;
	rc = vub_mapping_init(&mapping, c->fds[0], c->m->inflight.mmap_offset, size, &at);
	if (rc)
		return rc;
	if ((uintptr_t)at % sizeof(uint64_t)) {
		vub_mapping_fini(&mapping);
		return -EINVAL;
	}
	vub_mapping_fini(&v->inflight);
	v->inflight = mapping;
	v->inflight_at = at;
	v->inflight_num = num;
	v->inflight_queues = queues;
	return 0;
}

/* ---- the table ---- */

static int (*const handlers[VHOST_USER_REQUESTS])(struct call *c) = {
	[VHOST_USER_GET_FEATURES] = get_features,
	[VHOST_USER_SET_FEATURES] = set_features,
	[VHOST_USER_SET_OWNER] = nothing,
	[VHOST_USER_RESET_OWNER] = nothing,
	[VHOST_USER_SET_MEM_TABLE] = set_mem_table_wait,
	[VHOST_USER_SET_LOG_BASE] = set_log_base_wait,
	[VHOST_USER_SET_LOG_FD] = nothing,
	[VHOST_USER_SET_VRING_NUM] = set_vring_num,
	[VHOST_USER_SET_VRING_ADDR] = set_vring_addr_wait,
	[VHOST_USER_SET_VRING_BASE] = set_vring_base,
	[VHOST_USER_GET_VRING_BASE] = get_vring_base_wait,
	[VHOST_USER_SET_VRING_KICK] = set_vring_kick_wait,
	[VHOST_USER_SET_VRING_CALL] = set_vring_call_wait,
	[VHOST_USER_SET_VRING_ERR] = set_vring_err_wait,
	[VHOST_USER_GET_PROTOCOL_FEATURES] = get_protocol_features,
	[VHOST_USER_SET_PROTOCOL_FEATURES] = set_protocol_features,
	[VHOST_USER_GET_QUEUE_NUM] = get_queue_num,
	[VHOST_USER_SET_VRING_ENABLE] = set_vring_enable_wait,
	[VHOST_USER_SET_BACKEND_REQ_FD] = set_backend_req_fd,
	[VHOST_USER_GET_CONFIG] = get_config,
	[VHOST_USER_SET_CONFIG] = set_config_wait,
	[VHOST_USER_GET_INFLIGHT_FD] = get_inflight_fd,
	[VHOST_USER_SET_INFLIGHT_FD] = set_inflight_fd,
	[VHOST_USER_RESET_DEVICE] = reset_device_wait,
	[VHOST_USER_GET_MAX_MEM_SLOTS] = get_max_mem_slots,
	[VHOST_USER_ADD_MEM_REG] = add_mem_reg_wait,
	[VHOST_USER_REM_MEM_REG] = rem_mem_reg_wait,
};

int vub_handle_wait(struct vub *v, struct vhost_user_msg *m, int *fds, int *ret_fd)
{
	struct call c = { v, m, fds, ret_fd };

	assert(m->head.request < ARRAY_SIZE(handlers) && handlers[m->head.request]);
	return handlers[m->head.request](&c);
}

void vub_handle_end_wait(struct vub *v)
{
	halt_all_wait(v);
	for (unsigned i = 0; i < v->nqueues; i++)
		vub_queue_reset(v->queues[i]);
	let_go(v);
	vub_memory_clear(&v->memory);
	vub_log_fini(&v->log);
	vub_mapping_fini(&v->inflight);
	v->inflight_at = NULL;
	if (v->backend_fd >= 0)
		close(v->backend_fd);
	v->backend_fd = -1;
	v->features = v->protocol_features = 0;
	v->is_write_through = false;
	v->has_complained = v->is_waiting = v->is_log_late = false;
}
