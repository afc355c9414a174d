/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/fill.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fmt/qcow2/writer.h"

enum { ALIGN = 4096 };

/* Never written. */
static uint8_t zeros[FILL_ZERO_CHUNK] __attribute__((aligned(ALIGN)));

void fills_init(struct fills *f, struct writer *w)
{
	uint64_t n = FILL_BYTES / w->cluster;

	f->w = w;
	f->max = MAX((unsigned)FILL_BUFS_MIN, (unsigned)MIN(n, (uint64_t)FILL_BUFS_MAX));
}

void fills_fini(struct fills *f)
{
	while (f->nidle)
		free(f->idle[--f->nidle]);
}

void *fill_buf_wait(struct fills *f)
{
	for (;;) {
		void *buf = NULL;

		if (f->nidle) {
			buf = f->idle[--f->nidle];
		} else if (f->nused < f->max) {
			buf = aligned_alloc(ALIGN, align_up(f->w->cluster, ALIGN));
			if (!buf && !f->nused)
				return NULL;
		}
		if (buf) {
			f->nused++;
			return buf;
		}
		fiber_queue_wait(&f->waiting);
	}
}

void fill_buf_put(struct fills *f, void *buf)
{
	f->nused--;
	f->idle[f->nidle++] = buf;
	fiber_queue_wake(&f->waiting);
}

/* Where the backing file ends; 0: there is none. */
static uint64_t backing_end(const struct writer *w)
{
	const struct chan *backing = w->q->node.home_chan->child[CHILD_BACKING];

	return backing ? atomic_load_explicit(&backing->node->size, memory_order_relaxed) : 0;
}

uint32_t fill_zero_units(const struct writer *w, const struct units *u, uint64_t guest)
{
	uint64_t end = backing_end(w), below = end > guest ? end - guest : 0;
	uint32_t backed = below ? units_touched(w->q, 0, MIN(below, w->cluster)) : 0;

	return u->is_bad ? 0 : (units_all(w->q) & ~(u->data | backed)) | u->zero;
}

static int read_backing_wait(struct writer *w, uint64_t guest, uint8_t *buf, uint64_t lo,
			     uint64_t hi)
{
	uint64_t end = backing_end(w), from = MIN(guest + lo, end), to = MIN(guest + hi, end);

	memset(buf + lo + (to - from), 0, hi - lo - (to - from));
	return to == from ? 0 : chan_read_wait(w->q->node.home_chan->child[CHILD_BACKING], from,
					       buf + lo, to - from);
}

static int inflate_wait(struct writer *w, uint64_t entry, uint64_t guest, uint8_t *buf,
			uint64_t lo, uint64_t hi)
{
	struct iovec iov = { buf + lo, hi - lo };
	struct req req = { .kind = REQ_READ, .off = guest + lo, .len = hi - lo, .iov = &iov,
			   .iovcnt = 1 };

	return inflate_read_wait(w->q->node.home_chan, &req, req.off, entry);
}

/* The same of units that are alike. */
static int read_alike_wait(struct writer *w, const struct units *u, uint64_t guest, uint8_t *buf,
			   uint64_t lo, uint64_t hi)
{
	unsigned i = (unsigned)(lo >> w->q->unit_bits);

	if (u->data >> i & 1)
		return chan_read_wait(writer_data(w), u->host + lo, buf + lo, hi - lo);
	if (!(u->zero >> i & 1))
		return read_backing_wait(w, guest, buf, lo, hi);
	memset(buf + lo, 0, hi - lo);
	return 0;
}

int fill_read_wait(struct fills *f, const struct units *u, uint64_t guest, uint8_t *buf,
		   uint64_t lo, uint64_t hi)
{
	int rc = 0;

	if (u->is_bad)
		return -EUCLEAN;
	if (u->is_compressed)
		return inflate_wait(f->w, u->pair.entry, guest, buf, lo, hi);
	while (lo < hi && !rc) {
		uint64_t end = MIN(hi, units_alike_end(f->w->q, u->data, u->zero, lo));

		rc = read_alike_wait(f->w, u, guest, buf, lo, end);
		lo = end;
	}
	return rc;
}

unsigned fill_zero_iov(struct iovec *iov, uint64_t len)
{
	unsigned n = 0;

	for (; len; n++) {
		iov[n] = (struct iovec){ zeros, MIN(len, (uint64_t)FILL_ZERO_CHUNK) };
		len -= iov[n].iov_len;
	}
	return n;
}

int fill_zero_wait(struct fills *f, uint64_t host_off, uint64_t len)
{
	struct iovec iov[FILL_ZERO_IOVS];
	struct req req = { .kind = REQ_WRITE, .off = host_off, .len = len, .iov = iov };
	int rc;

	if (len > FILL_ZERO_WRITE_MAX) {
		struct req zero = { .kind = REQ_ZERO, .flags = REQ_FAST_ONLY, .off = host_off,
				    .len = len };

		rc = chan_submit_wait(writer_data(f->w), &zero);
		if (rc != -ENOTSUP)
			return rc;
	}
	req.iovcnt = fill_zero_iov(iov, len);
	f->bytes += len;
	return chan_submit_wait(writer_data(f->w), &req);
}
