/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/zero.c - requests that zero and discard.
 *
 * Whole clusters get the zero flag; they keep their place in the file unless the request allows
 * to unmap. What reads as zeros anyway is left alone, and no table is made for it. Parts of
 * clusters are written, where they do not read as zeros. Version 2 has no zero flag: zeros are
 * written where there is a backing file, and clusters unmapped where there is none.
 *
 * A discard frees whole clusters and sets the zero flag, so that nothing of a backing file shows
 * through. In version 2 it can only unmap, and only without a backing file. Parts of clusters are
 * left alone, but for the last one of a disk that does not end with a cluster.
 *
 * Ranges are worked off a slice of an L2 table at a time.
 *
 * Invariants:
 *	Y4  a zero leaves the range reading as zeros, and nothing else changed;
 *	Y5  nothing of a range that needs no change costs more than a look at its slice. */
#include <errno.h>

#include "fmt/qcow2/writer.h"

enum { SLICES_IN_A_ROW = 256 };

struct change {
	struct writer *w;
	bool unmap;                     /* clusters lose their place in the file */
};

/* What @entry of the cluster at @guest becomes. */
static uint64_t changed(const struct change *c, uint64_t entry, uint64_t guest)
{
	const struct qcow2 *q = c->w->q;
	struct unit u = map_entry(q, entry, guest);
	uint64_t zero = q->has_zero_flag ? QCOW2_ZERO : 0;

	switch (u.kind) {
	case EXT_BACKING:
		return fill_is_zero(c->w, entry, guest) ? entry : zero;
	case EXT_COMPRESSED:
		return zero;
	case EXT_DATA:
	case EXT_ZERO:
		return c->unmap || !u.has_host ? zero : entry | zero;
	case EXT_MISS:
	case EXT_CORRUPT:
		break;
	}
	return entry;                   /* look_at() has refused it */
}

/* Is there something to change in [@off, @end) of the slice @at? -EUCLEAN: an entry that cannot be
 * is among them. */
static int look_at(const struct change *c, const struct l2_at *at, uint64_t off, uint64_t end)
{
	struct writer *w = c->w;
	int needed = pendings_any(&w->pendings, off, end - off);

	if (!at->page)                  /* all are alike, but for the end of the backing file */
		return changed(c, 0, off) ? 1 : 0;
	for (; off < end; off += w->cluster) {
		uint64_t entry = l2_entry(w, at, off);

		if (map_entry(w->q, entry, off).kind == EXT_CORRUPT)
			return write_corrupt(w, entry, off);
		if (guard_entry(w, entry, off))
			return -EUCLEAN;
		needed |= changed(c, entry, off) != entry;
	}
	return needed;
}

/* Changes [@off, @end) of the slice @at. Never waits. */
static void change(const struct change *c, struct l2_at *at, uint64_t off, uint64_t end)
{
	struct writer *w = c->w;

	for (; off < end; off += w->cluster) {
		uint64_t old, new;

		pendings_zero(&w->pendings, off, w->q->has_zero_flag && !c->unmap);
		old = l2_entry(w, at, off);
		new = changed(c, old, off);
		if (new == old)
			continue;
		l2_set(w, at, off, new, false);
		if (!(new & QCOW2_OFFSET_MASK))
			pendings_free_old(&w->pendings, old);
	}
}

/* Does what is to be done from @off on, up to @end or the end of its slice: *@ret. 0 or -errno. */
static int slice_wait(const struct change *c, uint64_t off, uint64_t end, uint64_t *ret)
{
	struct writer *w = c->w;
	struct l2_at at = { .page = NULL };
	bool make = false;
	int rc;

	for (;;) {
		rc = l2_get_wait(w, off, make, &at);
		if (rc)
			return rc;
		*ret = MIN(end, at.end);
		if (pendings_busy(&w->pendings, off, *ret - off)) {
			l2_put(w, &at);
			rc = pendings_close_wait(&w->pendings, off, *ret - off);
			if (rc)
				return rc;
			continue;
		}
		rc = w->dead ? w->dead : look_at(c, &at, off, *ret);
		if (rc <= 0 || make)
			break;
		l2_put(w, &at);
		rc = mark_set_wait(w);
		if (rc)
			return rc;
		make = true;
	}
	if (rc > 0)
		change(c, &at, off, *ret);
	l2_put(w, &at);
	return MIN(rc, 0);
}

/* @off and @end are multiples of a cluster. */
static int clusters_wait(const struct change *c, uint64_t off, uint64_t end)
{
	int rc = 0;

	for (unsigned n = 1; off < end && !rc; n++) {
		rc = slice_wait(c, off, end, &off);
		if (!rc)
			rc = write_throttle_wait(c->w);
		if (n % SLICES_IN_A_ROW == 0)
			fiber_yield_wait();
	}
	return rc;
}

/* ---- writing zeros ---- */

/* @len is a cluster's at most. */
static int write_zeros_wait(struct writer *w, uint64_t off, uint64_t len)
{
	struct iovec iov[FILL_ZERO_IOVS];
	struct req req = { .kind = REQ_WRITE, .off = off, .len = len, .iov = iov };

	req.iovcnt = fill_zero_iov(iov, len);
	return write_range_wait(w, &req);
}

/* Zeros [@off, @off + @len) of one cluster without the zero flag. */
static int part_wait(struct writer *w, uint64_t off, uint64_t len, unsigned flags)
{
	uint64_t guest = align_down(off, w->cluster), entry;
	struct req below = { .kind = REQ_ZERO, .flags = REQ_FAST_ONLY, .len = len };
	struct l2_at at;
	int rc;

	if (!(flags & REQ_FAST_ONLY) && pending_find(&w->pendings, guest))
		return write_zeros_wait(w, off, len);   /* it joins */
	do {
		rc = pendings_close_wait(&w->pendings, off, len);
		if (!rc)
			rc = l2_get_wait(w, off, false, &at);
		if (rc)
			return rc;
		entry = l2_entry(w, &at, guest);
		l2_put(w, &at);
	} while (pending_find(&w->pendings, guest));
	/* Nothing gives way until something is sent. */
	if (map_entry(w->q, entry, guest).kind == EXT_CORRUPT)
		return write_corrupt(w, entry, off);
	if (guard_entry(w, entry, off))
		return -EUCLEAN;
	if (fill_is_zero(w, entry, guest))
		return 0;
	if (map_is_own(w->q, entry) && (flags & REQ_FAST_ONLY || len > FILL_ZERO_WRITE_MAX)) {
		below.off = (entry & QCOW2_OFFSET_MASK) + (off - guest);
		commit_note(&w->commit);
		rc = chan_submit_wait(w->file, &below);
		if (rc != -ENOTSUP)
			return rc;
	}
	return flags & REQ_FAST_ONLY ? -ENOTSUP : write_zeros_wait(w, off, len);
}

/* The same for many clusters. */
static int parts_wait(struct writer *w, uint64_t off, uint64_t end, unsigned flags)
{
	int rc = 0;

	while (off < end && !rc) {
		uint64_t next = MIN(end, align_down(off, w->cluster) + w->cluster);

		rc = part_wait(w, off, next - off, flags);
		if (!rc)
			rc = write_throttle_wait(w);
		off = next;
	}
	return rc;
}

/* What counts as the end of the last cluster. */
static uint64_t whole_end(const struct writer *w, uint64_t end)
{
	bool is_last = end == atomic_load_explicit(&w->q->node.size, memory_order_relaxed);

	return is_last ? align_up(end, w->cluster) : align_down(end, w->cluster);
}

/* Version 2. A range that is nowhere is passed over as fast as with the flag. */
static int zero_v2_wait(struct writer *w, uint64_t off, uint64_t end, unsigned flags)
{
	int rc = 0;

	if (flags & REQ_FAST_ONLY)
		return -ENOTSUP;
	while (off < end && !rc) {
		uint64_t next = end;
		struct l2_at at;

		rc = l2_get_wait(w, off, false, &at);
		if (rc)
			break;
		next = MIN(end, at.end);
		if (at.page || !fill_is_zero(w, 0, align_down(off, w->cluster))) {
			l2_put(w, &at);
			rc = parts_wait(w, off, next, flags);
		}
		off = next;
	}
	return rc;
}

int zero_range_wait(struct writer *w, uint64_t off, uint64_t len, unsigned flags)
{
	struct change c = { .w = w, .unmap = flags & REQ_MAY_UNMAP };
	uint64_t end = off + len, first = align_up(off, w->cluster), last = whole_end(w, end);
	int rc;

	if (!w->q->has_zero_flag && w->q->node.child[CHILD_BACKING])
		return zero_v2_wait(w, off, end, flags);
	c.unmap |= !w->q->has_zero_flag;
	if (first >= last)
		return parts_wait(w, off, end, flags);
	/* FAST_ONLY fails before anything is changed, if it does. */
	rc = parts_wait(w, off, first, flags);
	if (!rc && last < end)
		rc = parts_wait(w, last, end, flags);
	return rc ? rc : clusters_wait(&c, first, last);
}

int discard_range_wait(struct writer *w, uint64_t off, uint64_t len)
{
	struct change c = { .w = w, .unmap = true };
	uint64_t first = align_up(off, w->cluster), last = whole_end(w, off + len);

	if (first >= last)
		return 0;
	if (!w->q->has_zero_flag && w->q->node.child[CHILD_BACKING])
		return 0;               /* the backing file would show through */
	return clusters_wait(&c, first, last);
}
