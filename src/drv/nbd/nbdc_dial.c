/* SPDX-License-Identifier: MIT */
/* drv/nbd/nbdc_dial.c - from an address to a handle that is ready.
 *
 * Names are looked up on a worker, which may take long; from then on libnbd connects and negotiates
 * as the socket allows, and the fiber polls. Errors say what QEMU says, where libnbd tells enough
 * to know. */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "drv/nbd/nbdc_impl.h"
#include "loop/work.h"

#define ALLOCATION "base:allocation"

/* What libnbd said last. It keeps that until its next function is called on the same thread. */
struct said {
	char text[512];
	int code;
};

struct start {                          /* arguments for a worker */
	struct nbdc_node *nn;
	struct nbd_handle *h;
	struct err *err;
	int rc;
};

static void listen_to(const struct nbdc_lib *lib, struct said *said)
{
	const char *text = lib->get_error();

	if (!text)
		return;
	snprintf(said->text, sizeof(said->text), "%s", text);
	said->code = lib->get_errno();
}

/* What @text says after @mark, or NULL. */
static const char *after(const char *text, const char *mark)
{
	const char *at = strstr(text, mark);

	return at ? at + strlen(mark) : NULL;
}

/* A server cannot be reached or says no. Which of them it is only the text tells:
 * "nbd_aio_connect_tcp: getaddrinfo: ... port "1": reason". */
static int failed(const struct said *said, const struct nbdc_server *s, struct err *err)
{
	int code = said->code > 0 && said->code < 4096 ? said->code : EIO;
	const char *text = said->text, *reason;
	char address[512];

	nbdc_server_show(s, address, sizeof(address));
	if (strstr(text, ": getaddrinfo: ")) {
		reason = after(text, "\": ");
		return err_set(err, EIO, "address resolution failed for %s: %s", address,
			       reason ? reason : text);
	}
	if (!text[0] || strstr(text, ": connect: ") || code == ECONNREFUSED)
		return err_set_errno(err, code, "Failed to connect to '%s'", address);
	if (code == ENAMETOOLONG)
		return err_set(err, code, "UNIX socket path '%s' is too long", address);
	if (code == ENOENT && strstr(text, "export"))
		return err_set(err, code, "Requested export not available");
	/* The name of the function says nothing here. */
	reason = strncmp(text, "nbd_", 4) ? NULL : after(text, ": ");
	return err_set(err, code, "%s", reason ? reason : text);
}

static int set_tls(const struct nbdc_lib *lib, struct nbd_handle *h, const struct nbdc_server *s)
{
	int rc = lib->set_tls(h, LIBNBD_TLS_REQUIRE);

	if (!rc && s->tls_certificates)
		rc = lib->set_tls_certificates(h, s->tls_certificates);
	if (!rc && s->tls_psk_file)
		rc = lib->set_tls_psk_file(h, s->tls_psk_file);
	if (!rc && s->tls_username)
		rc = lib->set_tls_username(h, s->tls_username);
	if (!rc)
		rc = lib->set_tls_verify_peer(h, !s->tls_trusts_anybody);
	return rc;
}

/* libnbd keeps the host's name, against which the server's certificate is held. */
static void start(void *arg)
{
	struct start *s = arg;
	const struct nbdc_server *to = &s->nn->server;
	const struct nbdc_lib *lib = nbdc_lib_get(s->err);
	struct said said = { 0 };

	s->rc = -ENOPKG;
	if (!lib)
		return;
	if (!s->nn->lib)                        /* the open's dial, before there are others */
		s->nn->lib = lib;
	s->h = lib->create();
	if (!s->h) {
		s->rc = err_set_errno(s->err, ENOMEM, "libnbd");
		return;
	}
	s->rc = 0;
	/* A server may send less than was asked for (N13). */
	if (lib->set_pread_initialize(s->h, true) ||
	    lib->set_export_name(s->h, to->export ? to->export : "") ||
	    lib->add_meta_context(s->h, to->map_context ? to->map_context : ALLOCATION) ||
	    (to->has_tls && set_tls(lib, s->h, to)) ||
	    (to->path ? lib->aio_connect_unix(s->h, to->path) :
			lib->aio_connect_tcp(s->h, to->host, to->port))) {
		listen_to(lib, &said);
		s->rc = failed(&said, to, s->err);
	}
}

/* ---- the fiber ---- */

static void late(struct timer *t)
{
	struct nbdc_dial *d = container_of(t, struct nbdc_dial, timer);

	d->is_late = true;
	if (d->is_polling)
		loop_cancel(d->loop, &d->io);
}

void nbdc_dial_cancel(struct nbdc_dial *d)
{
	d->is_cancelled = true;
	if (d->is_polling)
		loop_cancel(d->loop, &d->io);
}

/* Waits until the socket is as libnbd wants it, and lets libnbd go on. */
static int step_wait(const struct nbdc_lib *lib, struct nbdc_dial *d, struct nbd_handle *h,
		     unsigned direction)
{
	bool in = direction & LIBNBD_AIO_DIRECTION_READ;
	bool out = direction & LIBNBD_AIO_DIRECTION_WRITE;
	int revents;

	d->io = (struct io){ .op = IO_POLL, .fd = lib->aio_get_fd(h),
			     .mode = (in ? POLLIN : 0) | (out ? POLLOUT : 0) };
	d->is_polling = true;
	revents = loop_io_wait(d->loop, &d->io);
	d->is_polling = false;
	if (revents < 0)
		return revents;
	/* What it thinks of that is in what it says, and in the direction that is left. */
	if (in && ((revents & POLLIN) || !out))
		(void)lib->aio_notify_read(h);
	else
		(void)lib->aio_notify_write(h);
	return 0;
}

/* Until the handle is ready or has failed. */
static int negotiate_wait(const struct nbdc_node *nn, struct nbdc_dial *d, struct nbd_handle *h,
			  struct err *err)
{
	const struct nbdc_lib *lib = nn->lib;
	struct said said = { 0 };
	char address[512];
	int rc = 0;

	while (!rc && !d->is_late && !d->is_cancelled && lib->aio_is_ready(h) != 1) {
		unsigned direction = lib->aio_get_direction(h);

		if (!direction)
			return failed(&said, &nn->server, err);
		rc = step_wait(lib, d, h, direction);
		listen_to(lib, &said);
	}
	if (d->is_cancelled)
		return err_set(err, ECANCELED, "The connection was given up");
	nbdc_server_show(&nn->server, address, sizeof(address));
	if (d->is_late)
		return err_set_errno(err, ETIMEDOUT, "Failed to connect to '%s'", address);
	return rc ? err_set_errno(err, -rc, "Failed to connect to '%s'", address) : 0;
}

/* ---- what the server says ---- */

static int block_sizes(const struct nbdc_lib *lib, struct nbd_handle *h, struct nbdc_info *info,
		       struct err *err)
{
	int64_t block = lib->get_block_size(h, LIBNBD_SIZE_MINIMUM);
	int64_t max = lib->get_block_size(h, LIBNBD_SIZE_MAXIMUM);

	info->block = 1;
	if (block > 0) {
		if (!is_pow2((uint64_t)block) || block > NBDC_BLOCK_MAX)
			return err_set(err, EINVAL, "server minimum block size %" PRId64 " is not "
				       "a power of two, or larger than %d", block, NBDC_BLOCK_MAX);
		info->block = (uint32_t)block;
	}
	info->data_max = NBDC_DATA_MAX;
	if (max > 0)
		info->data_max = (uint32_t)align_down((uint64_t)MIN(max, (int64_t)NBDC_DATA_MAX),
						      info->block);
	if (!info->data_max)
		return err_set(err, EINVAL, "server maximum block size %" PRId64 " is below the "
			       "minimum, %u", max, info->block);
	return 0;
}

static int ask(const struct nbdc_node *nn, struct nbd_handle *h, struct nbdc_info *info,
	       struct err *err)
{
	const struct nbdc_lib *lib = nn->lib;
	const char *context = nn->server.map_context;
	int64_t size = lib->get_size(h);
	struct said said = { 0 };

	if (size < 0) {
		listen_to(lib, &said);
		return failed(&said, &nn->server, err);
	}
	*info = (struct nbdc_info){
		.size = (uint64_t)size,
		.is_read_only = lib->is_read_only(h) == 1,
		.can_flush = lib->can_flush(h) == 1,
		.can_fua = lib->can_fua(h) == 1,
		.can_trim = lib->can_trim(h) == 1,
		.can_zero = lib->can_zero(h) == 1,
		.can_fast_zero = lib->can_fast_zero(h) == 1,
		.can_multi_conn = lib->can_multi_conn(h) == 1,
		.can_map = lib->can_meta_context(h, context ? context : ALLOCATION) == 1,
	};
	if (context && !info->can_map) {
		err_hint(err, "the server has no metadata context '%.200s'", context);
		return err_set_errno(err, EINVAL, "Could not open image");
	}
	if (block_sizes(lib, h, info, err))
		return -EINVAL;
	if (!is_aligned(info->size, info->block))
		return err_set(err, EINVAL, "export length 0x%" PRIx64 " is not multiple of "
			       "minimum block size %u", info->size, info->block);
	return 0;
}

void nbdc_hang_up(const struct nbdc_lib *lib, struct nbd_handle *h)
{
	if (!h)
		return;
	/* Sent at once where the socket takes it; else closing says as much. */
	if (lib->aio_is_ready(h) == 1)
		(void)lib->aio_disconnect(h, 0);
	lib->close(h);
}

int nbdc_dial_wait(struct nbdc_node *nn, struct nbdc_dial *d, struct nbd_handle **ret,
		   struct nbdc_info *ret_info, struct err *err)
{
	struct start s = { .nn = nn, .err = err };
	struct nbdc_info info;
	int rc;

	d->is_late = false;
	loop_work_wait(d->loop, start, &s);
	rc = s.rc;
	if (!rc) {
		d->timer.fn = late;
		timer_set(d->loop, &d->timer, loop_now(d->loop) +
			  (d->limit_s ? d->limit_s : NBDC_NEGOTIATION_MAX_S) * NS_PER_SEC);
		rc = negotiate_wait(nn, d, s.h, err);
		timer_cancel(d->loop, &d->timer);
	}
	if (!rc)
		rc = ask(nn, s.h, &info, err);
	if (rc) {
		if (s.h)
			nbdc_hang_up(nn->lib, s.h);
		return rc;
	}
	*ret = s.h;
	*ret_info = info;
	return 0;
}
