/* SPDX-License-Identifier: MIT */
/* export/vub/request.c - block requests to the port, and back (virtio 1.2, 5.2.6).
 *
 * A chain is a header of 16 bytes, data and a status byte, wherever its buffers begin and end. What
 * has no room for header and status is no request, and breaks the queue; everything else is
 * answered. Ranges of a discard or write-zeroes are copied, checked, all of them, and sent one
 * after the other; so are the parts of a long read or write (V29). */
#include <errno.h>
#include <string.h>

#include "export/vub/vub_impl.h"

/* ---- the chain's two ends ---- */

/* Copies the next @len bytes of *@iov and takes them off; there are that many. */
static void take_front(struct iovec **iov, unsigned *n, void *buf, size_t len)
{
	uint8_t *to = buf;

	while (len) {
		struct iovec *v = *iov;
		size_t part = MIN(len, v->iov_len);

		memcpy(to, v->iov_base, part);
		to += part;
		len -= part;
		v->iov_base = (uint8_t *)v->iov_base + part;
		v->iov_len -= part;
		if (!v->iov_len) {
			(*iov)++;
			(*n)--;
		}
	}
	__asm__ volatile("" ::: "memory");      /* V17 */
}

/* Takes the last byte off; there is one. */
static uint8_t *take_last(struct iovec *iov, unsigned *n)
{
	struct iovec *v = &iov[*n - 1];

	v->iov_len--;
	if (!v->iov_len)
		(*n)--;
	return (uint8_t *)v->iov_base + v->iov_len;
}

/* ---- answers ---- */

static uint8_t status_of(int res)
{
	switch (res) {
	case 0:
		return VIRTIO_BLK_S_OK;
	case -EOPNOTSUPP:
		return VIRTIO_BLK_S_UNSUPP;
	default:
		return VIRTIO_BLK_S_IOERR;
	}
}

static void done(struct req *req, int res)
{
	vub_queue_done(container_of(req, struct vub_req, req), status_of(res));
}

/* @at: where in its data the request goes on. */
static void submit(struct vub_req *vr, enum req_kind kind, uint64_t at, uint64_t len, uint8_t flags,
		   void (*then)(struct req *req, int res))
{
	struct req *req = &vr->req;

	req->done = then;
	req->off = vr->sector * VUB_SECTOR + at;
	req->len = len;
	req->iov = vr->iov;
	req->iovcnt = vr->niov;
	req->iov_skip = at;
	req->kind = (uint8_t)kind;
	req->flags = flags;
	port_submit(vr->q->pc, req);
}

/* ---- reads, writes, the serial ---- */

static void part_done(struct req *req, int res)
{
	struct vub_req *vr = container_of(req, struct vub_req, req);

	if (res || vr->sent == vr->len)
		done(req, res);
	else
		vub_queue_send_later(vr);
}

void vub_request_send(struct vub_req *vr)
{
	bool is_write = vr->type == VIRTIO_BLK_T_OUT;
	uint64_t at = vr->sent, len = MIN(vr->len - at, (uint64_t)VUB_PART_MAX);

	vr->sent += len;
	submit(vr, is_write ? REQ_WRITE : REQ_READ, at, len,
	       (uint8_t)(REQ_FOREIGN | (is_write ? vr->q->write_flags : 0)), part_done);
}

/* Is it one that the port refuses, or would, if that saw all of it at once? */
static bool is_beyond(const struct vub_req *vr)
{
	return vr->sector > UINT64_MAX / VUB_SECTOR ||
	       (vr->len > VUB_PART_MAX &&
		!range_within(vr->sector * VUB_SECTOR, vr->len, port_size(vr->q->v->port)));
}

static void start_rw(struct vub_req *vr, uint64_t len)
{
	bool is_write = vr->type == VIRTIO_BLK_T_OUT;

	vr->len = len;
	vr->sent = 0;
	if (len % VUB_SECTOR || is_beyond(vr) || (is_write && vr->q->v->read_only)) {
		vub_queue_done(vr, VIRTIO_BLK_S_IOERR);
		return;
	}
	if (!is_write)
		vr->used_len = (uint32_t)MIN(len + 1, UINT32_MAX);
	vub_queue_send(vr);
}

static void answer_id(struct vub_req *vr, uint64_t room)
{
	const char *id = vr->q->v->serial;
	size_t left = MIN(room, (uint64_t)VUB_SERIAL_MAX);

	vr->used_len = (uint32_t)left + 1;
	for (unsigned i = 0; left && i < vr->niov; i++) {
		size_t n = MIN(left, vr->iov[i].iov_len);

		memcpy(vr->iov[i].iov_base, id, n);
		id += n;
		left -= n;
	}
	vub_queue_done(vr, VIRTIO_BLK_S_OK);
}

/* ---- discard and write-zeroes ---- */

static struct virtio_blk_discard_write_zeroes *ranges_of(struct vub_req *vr)
{
	return (void *)(vr->q->many + (size_t)(vr - vr->q->reqs) * VUB_IOV_MAX);
}

/* The status that one range deserves before it is tried. */
static uint8_t check_range(const struct vub_req *vr,
			   const struct virtio_blk_discard_write_zeroes *r)
{
	uint32_t known = vr->type == VIRTIO_BLK_T_DISCARD ? 0 :
			 VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
	uint64_t sectors = port_size(vr->q->v->port) / VUB_SECTOR;

	if (r->flags & ~known)
		return VIRTIO_BLK_S_UNSUPP;
	return range_within(r->sector, r->num_sectors, sectors) ? VIRTIO_BLK_S_OK
								 : VIRTIO_BLK_S_IOERR;
}

static void range_done(struct req *req, int res);

static void submit_range(struct vub_req *vr)
{
	const struct virtio_blk_discard_write_zeroes *r = &ranges_of(vr)[vr->range++];
	bool is_discard = vr->type == VIRTIO_BLK_T_DISCARD;
	uint8_t flags = vr->q->write_flags;

	if (!is_discard && r->flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP)
		flags |= REQ_MAY_UNMAP;
	vr->sector = r->sector;
	submit(vr, is_discard ? REQ_DISCARD : REQ_ZERO, 0, (uint64_t)r->num_sectors * VUB_SECTOR,
	       flags, range_done);
}

static void range_done(struct req *req, int res)
{
	struct vub_req *vr = container_of(req, struct vub_req, req);

	if (res || vr->range == vr->nranges) {
		done(req, res);
		return;
	}
	submit_range(vr);
}

/* @iov has @len bytes of ranges. */
static void start_ranges(struct vub_req *vr, struct iovec *iov, unsigned n, uint64_t len)
{
	struct virtio_blk_discard_write_zeroes list[VUB_RANGES_MAX];
	uint8_t status = VIRTIO_BLK_S_OK;

	static_assert(sizeof(list) <= VUB_IOV_MAX * sizeof(struct iovec), "ranges_of()");
	if (!len || len % sizeof(*list) || vr->q->v->read_only) {
		vub_queue_done(vr, VIRTIO_BLK_S_IOERR);
		return;
	}
	if (len > sizeof(list)) {
		vub_queue_done(vr, VIRTIO_BLK_S_UNSUPP);
		return;
	}
	take_front(&iov, &n, list, len);
	vr->nranges = (uint16_t)(len / sizeof(*list));
	for (unsigned i = 0; i < vr->nranges && status == VIRTIO_BLK_S_OK; i++)
		status = check_range(vr, &list[i]);
	if (status != VIRTIO_BLK_S_OK) {
		vub_queue_done(vr, status);
		return;
	}
	memcpy(ranges_of(vr), list, len);
	vr->range = 0;
	vr->niov = 0;
	submit_range(vr);
}

/* ---- all ---- */

bool vub_request_start(struct vub_chain *c)
{
	struct vub_req *vr = c->vr;
	struct iovec *out = vr->iov, *in = vr->iov + c->nout;
	unsigned nout = c->nout, nin = c->n - c->nout;
	struct virtio_blk_outhdr head;
	uint64_t out_len = c->out_len - sizeof(head), in_len = c->in_len - 1;
	bool is_read;

	if (c->out_len < sizeof(head) || !c->in_len) {
		c->wrong = "a request has no room for its header or status";
		return false;
	}
	vr->status_at = take_last(in, &nin);
	take_front(&out, &nout, &head, sizeof(head));
	vr->type = head.type & ~VIRTIO_BLK_T_BARRIER;
	vr->sector = head.sector;
	vr->used_len = 1;
	is_read = vr->type == VIRTIO_BLK_T_IN || vr->type == VIRTIO_BLK_T_GET_ID;
	vr->iov = is_read ? in : out;
	vr->niov = (uint16_t)(is_read ? nin : nout);
	switch (vr->type) {
	case VIRTIO_BLK_T_IN:
		start_rw(vr, in_len);
		break;
	case VIRTIO_BLK_T_OUT:
		start_rw(vr, out_len);
		break;
	case VIRTIO_BLK_T_FLUSH:
		vr->sector = 0;
		submit(vr, REQ_FLUSH, 0, 0, 0, done);
		break;
	case VIRTIO_BLK_T_GET_ID:
		answer_id(vr, in_len);
		break;
	case VIRTIO_BLK_T_DISCARD:
	case VIRTIO_BLK_T_WRITE_ZEROES:
		start_ranges(vr, out, nout, out_len);
		break;
	default:
		vub_queue_done(vr, VIRTIO_BLK_S_UNSUPP);
	}
	return true;
}
