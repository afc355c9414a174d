/* SPDX-License-Identifier: MIT */
/* drv/vub/vfe_part.c - which part of a request goes next, and as what. Nothing here waits or
 * answers. */
#include "drv/vub/vfe_part.h"

#include <errno.h>
#include <string.h>

#include "base/bits.h"

/* req->priv[0]: bytes that are done; priv[1]: enum phase. */
enum phase { PHASE_BODY, PHASE_FUA };

static bool has(const struct vfe_chan *vc, unsigned feature)
{
	return vc->vn->features >> feature & 1;
}

int vfe_part_admit(const struct vfe_chan *vc, struct req *req)
{
	const struct node *n = &vc->vn->node;
	bool is_whole = is_aligned(req->off | req->len, VFE_SECTOR);

	req->priv[0] = 0;
	req->priv[1] = PHASE_BODY;
	switch ((enum req_kind)req->kind) {
	case REQ_READ:
		return req->len ? 1 : 0;
	case REQ_WRITE:
		return n->read_only ? -EROFS : !is_whole ? -EINVAL : req->len ? 1 : 0;
	case REQ_ZERO:
		if (!has(vc, VIRTIO_BLK_F_WRITE_ZEROES) && req->flags & REQ_FAST_ONLY)
			return -ENOTSUP;
		return n->read_only ? -EROFS : !is_whole ? -EINVAL : req->len ? 1 : 0;
	case REQ_DISCARD:
		if (!n->read_only && (!has(vc, VIRTIO_BLK_F_DISCARD) || !is_whole))
			return 0;
		return n->read_only ? -EROFS : req->len ? 1 : 0;
	case REQ_FLUSH:
		return has(vc, VIRTIO_BLK_F_FLUSH) ? 1 : 0;
	case REQ_MAP:
		req->map = (struct map_run){ .len = req->len, .flags = MAP_DATA | MAP_PRESENT };
		return 0;
	case REQ_COPY:
		return -ENOTSUP;
	case REQ_KINDS:
		break;
	}
	return -EINVAL;
}

/* Can the back end reach the data of the part, in few enough pieces? */
static bool is_shared(const struct vfe_chan *vc, const struct vfe_slot *s, unsigned segs_max)
{
	struct iovec iov[VFE_SEGS_MAX];
	uint64_t got;
	unsigned n = req_iov_cut(s->req, s->req->priv[0], s->used, iov, segs_max, &got);

	if (got < s->used)
		return false;
	for (unsigned i = 0; i < n; i++)
		if (!vfe_mem_has(&vc->vn->mem, iov[i].iov_base, iov[i].iov_len))
			return false;
	return true;
}

/* The part goes through buffer @b: whole sectors. */
static void use_bounce(struct vfe_slot *s, int16_t b)
{
	uint64_t at = s->req->off + s->req->priv[0];

	s->bounce = b;
	s->start = align_down(at, VFE_SECTOR);
	s->skip = at - s->start;
	s->used = MIN(s->used, VFE_BOUNCE_BYTES - s->skip);
	s->len = align_up(s->skip + s->used, VFE_SECTOR);
}

static char *bounce_at(const struct vfe_chan *vc, const struct vfe_slot *s)
{
	return vc->area->bounces + (size_t)s->bounce * VFE_BOUNCE_BYTES;
}

static bool choose_data(struct vfe_chan *vc, struct vfe_slot *s)
{
	const struct req *req = s->req;
	uint64_t at = req->off + req->priv[0];

	s->used = MIN(req->len - req->priv[0], (uint64_t)VFE_PART_MAX);
	s->type = req->kind == REQ_READ ? VIRTIO_BLK_T_IN : VIRTIO_BLK_T_OUT;
	if (req->kind != REQ_ZERO && is_aligned(at | s->used, VFE_SECTOR) &&
	    is_shared(vc, s, vc->vn->segs_max)) {
		s->start = at;
		s->len = s->used;
		return true;
	}
	if (!vc->nbounces)
		return false;
	use_bounce(s, vc->bounce_idle[--vc->nbounces]);
	if (req->kind == REQ_WRITE)
		req_copy_from(req, req->priv[0], bounce_at(vc, s), s->used);
	else if (req->kind == REQ_ZERO)
		memset(bounce_at(vc, s), 0, s->len);
	return true;
}

/* At most @sectors_max of a range, for which one request needs no data. */
static bool choose_range(struct vfe_slot *s, uint32_t type, uint32_t sectors_max)
{
	const struct req *req = s->req;
	uint64_t max = MAX(sectors_max, 1u) * (uint64_t)VFE_SECTOR;

	s->type = type;
	s->start = req->off + req->priv[0];
	s->len = s->used = MIN(req->len - req->priv[0], max);
	return true;
}

bool vfe_part_choose(struct vfe_chan *vc, struct vfe_slot *s, struct req *req)
{
	const struct virtio_blk_config *c = &vc->vn->config;

	*s = (struct vfe_slot){ .req = req, .bounce = -1 };
	if (req->kind == REQ_FLUSH || req->priv[1] == PHASE_FUA) {
		s->type = VIRTIO_BLK_T_FLUSH;
		return true;
	}
	if (req->kind == REQ_DISCARD)
		return choose_range(s, VIRTIO_BLK_T_DISCARD, c->max_discard_sectors);
	if (req->kind == REQ_ZERO && has(vc, VIRTIO_BLK_F_WRITE_ZEROES))
		return choose_range(s, VIRTIO_BLK_T_WRITE_ZEROES, c->max_write_zeroes_sectors);
	return choose_data(vc, s);
}

/* The data's segments at @out, whose number is returned. */
static unsigned data_segs(const struct vfe_chan *vc, const struct vfe_slot *s, struct vfe_seg *out)
{
	bool is_in = s->type == VIRTIO_BLK_T_IN;
	struct iovec iov[VFE_SEGS_MAX];
	uint64_t got;
	unsigned n;

	if (s->bounce >= 0) {
		out[0] = (struct vfe_seg){ vfe_mem_guest(&vc->vn->mem, bounce_at(vc, s)),
					   (uint32_t)s->len, is_in };
		return 1;
	}
	n = req_iov_cut(s->req, s->req->priv[0], s->used, iov, vc->vn->segs_max, &got);
	for (unsigned i = 0; i < n; i++)
		out[i] = (struct vfe_seg){ vfe_mem_guest(&vc->vn->mem, iov[i].iov_base),
					   (uint32_t)iov[i].iov_len, is_in };
	return n;
}

static void fill_range(const struct vfe_chan *vc, const struct vfe_slot *s, struct vfe_place *p)
{
	bool unmap = s->type == VIRTIO_BLK_T_WRITE_ZEROES && s->req->flags & REQ_MAY_UNMAP &&
		     vc->vn->config.write_zeroes_may_unmap;

	p->range = (struct virtio_blk_discard_write_zeroes){
		.sector = s->start / VFE_SECTOR,
		.num_sectors = (uint32_t)(s->len / VFE_SECTOR),
		.flags = unmap ? VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP : 0,
	};
}

int vfe_part_put(struct vfe_chan *vc, uint16_t token)
{
	struct vfe_slot *s = &vc->slots[token];
	struct vfe_place *p = &vc->area->places[token];
	const struct vfe_mem *m = &vc->vn->mem;
	struct vfe_seg segs[VFE_SEGS_MAX + 2];
	struct vfe_table table = { 0 };
	bool is_range = s->type == VIRTIO_BLK_T_DISCARD || s->type == VIRTIO_BLK_T_WRITE_ZEROES;
	unsigned n = 0;

	p->head = (struct virtio_blk_outhdr){
		.type = s->type, .sector = is_range ? 0 : s->start / VFE_SECTOR,
	};
	p->status = UINT8_MAX;
	segs[n++] = (struct vfe_seg){ vfe_mem_guest(m, &p->head), sizeof(p->head), false };
	if (is_range) {
		fill_range(vc, s, p);
		segs[n++] = (struct vfe_seg){ vfe_mem_guest(m, &p->range), sizeof(p->range),
					      false };
	} else if (s->type != VIRTIO_BLK_T_FLUSH) {
		n += data_segs(vc, s, segs + n);
	}
	segs[n++] = (struct vfe_seg){ vfe_mem_guest(m, &p->status), 1, true };
	if (has(vc, VIRTIO_RING_F_INDIRECT_DESC))
		table = (struct vfe_table){ p->table, vfe_mem_guest(m, p->table) };
	return vfe_ring_add(&vc->q->ring, segs, n, &table, token);
}

static int part_result(const struct vfe_chan *vc, uint16_t token)
{
	switch (*(volatile uint8_t *)&vc->area->places[token].status) {
	case VIRTIO_BLK_S_OK:
		return 0;
	case VIRTIO_BLK_S_UNSUPP:
		return -ENOTSUP;
	default:
		return -EIO;
	}
}

int vfe_part_end(struct vfe_chan *vc, uint16_t token, bool *ret_has_more)
{
	const struct vfe_slot *s = &vc->slots[token];
	struct req *req = s->req;
	int rc = part_result(vc, token);

	*ret_has_more = false;
	if (rc)
		return rc;
	if (s->bounce >= 0 && req->kind == REQ_READ)
		req_copy_to(req, req->priv[0], bounce_at(vc, s) + s->skip, s->used);
	req->priv[0] += s->used;
	if (req->priv[1] == PHASE_FUA || req->kind == REQ_FLUSH)
		return 0;
	if (req->priv[0] == req->len && req->flags & REQ_FUA && has(vc, VIRTIO_BLK_F_FLUSH)) {
		req->priv[1] = PHASE_FUA;
		*ret_has_more = true;
	} else {
		*ret_has_more = req->priv[0] < req->len;
	}
	return 0;
}
