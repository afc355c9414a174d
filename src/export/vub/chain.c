/* SPDX-License-Identifier: MIT */
/* export/vub/chain.c - descriptors to iovecs, each of them copied and checked once (V17). */
#include <string.h>

#include "export/vub/vub_impl.h"

void vub_chain_begin(struct vub_chain *c, struct vub_queue *q, struct vub_req *vr)
{
	*c = (struct vub_chain){ .q = q, .vr = vr };
	vr->iov = vr->few;
}

static bool is_wrong(struct vub_chain *c, const char *why)
{
	c->wrong = why;
	return false;
}

static bool append(struct vub_chain *c, void *base, uint64_t len)
{
	struct vub_req *vr = c->vr;

	if (c->n == VUB_IOV_MAX)
		return is_wrong(c, "a chain has too many descriptors");
	if (c->n == VUB_IOV_FEW && vr->iov == vr->few) {
		vr->iov = c->q->many + (size_t)(vr - c->q->reqs) * VUB_IOV_MAX;
		memcpy(vr->iov, vr->few, sizeof(vr->few));
	}
	vr->iov[c->n++] = (struct iovec){ base, len };
	return true;
}

bool vub_chain_add(struct vub_chain *c, uint64_t addr, uint32_t len, bool is_in)
{
	uint64_t left = len, room;

	if (!len)
		return is_wrong(c, "a descriptor is empty");
	if (!is_in && c->n != c->nout)
		return is_wrong(c, "a chain has a buffer to read behind one to write");
	while (left) {
		void *at = vub_memory_guest(&c->q->v->memory, addr, &c->q->hint, &room);
		uint64_t n;

		if (!at)
			return is_wrong(c, "a descriptor names an address outside the memory");
		n = MIN(left, room);
		if (!append(c, at, n))
			return false;
		addr += n;
		left -= n;
	}
	if (is_in) {
		c->in_len += len;
	} else {
		c->nout = c->n;
		c->out_len += len;
	}
	return true;
}

unsigned vub_chain_copy_table(struct vub_chain *c, uint64_t addr, uint32_t len, void *table,
			      unsigned max)
{
	const unsigned size = sizeof(struct vring_desc);        /* packed ones are as large */
	uint8_t *to = table;
	uint64_t left = len, room;

	c->wrong = "an indirect table has a wrong length";
	if (!len || len % size || len / size > max)
		return 0;
	c->wrong = "an indirect table is outside the memory";
	while (left) {
		const void *at = vub_memory_guest(&c->q->v->memory, addr, &c->q->hint, &room);
		uint64_t n = MIN(left, at ? room : 0);

		if (!n)
			return 0;
		memcpy(to, at, n);
		to += n;
		addr += n;
		left -= n;
	}
	__asm__ volatile("" ::: "memory");      /* what was copied is not read again */
	c->wrong = NULL;
	return len / size;
}
