/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/guard.c - what keeps a damaged image from making a guest write its metadata (Q6).
 *
 * An image may map clusters of its own metadata as the guest's. Which clusters those are, is in
 * alloc.metadata:
 *	from the open on    the header, L1, the refcount table and the blocks it names, the L2
 *			    tables that L1 names, the table of snapshots and their L1 tables;
 *	while it is one	    every L2 table, refcount block and refcount table made since;
 *	never		    L2 tables that only snapshots have: to know them would take reading all
 *			    L1 tables. A guest that is made to write there damages a snapshot, as
 *			    with QEMU's own checks, as they are by default.
 *
 * Writes in place go by the mapping cache, on any loop, and look at nothing else. So the look is on
 * the way into the cache: an entry that names metadata loses COPIED there. Reads go on as before;
 * a write goes to the home loop, which looks at the entry itself. A table that is made later may
 * come to lie where an entry in the cache points although the cluster was free: then the cache
 * is searched, which is only needed where the cluster is not fresh; and no cluster that was named
 * when its slice was loaded counts as fresh.
 *
 * Where a check finds something, nothing of the image is changed any more: requests fail, the
 * header's corrupt bit is set (version 3), and no program opens it for writing before a repair. */
#include <assert.h>
#include <errno.h>

#include "base/endian.h"
#include "fmt/qcow2/writer.h"

/* ---- damage ---- */

static void corrupt_fiber(struct task *t)
{
	struct writer *w = container_of(t, struct writer, mark.corrupt);
	/* The header in memory stays: other loops look at it. */
	be64_t field = be64_make(w->q->header.incompatible | QCOW2_INCOMPAT_CORRUPT);

	/* If it fails, the next program that opens the image meets the damage itself. */
	if (!chan_write_wait(w->file, offsetof(struct qcow2_header_disk, incompatible_features),
			     &field, sizeof(field)))
		chan_flush_wait(w->file);
	w->mark.is_corrupting = false;
	fiber_queue_wake(&w->mark.waiting);
}

int writer_latch(struct writer *w, int rc)
{
	assert(rc == -EUCLEAN);
	if (w->dead)
		return w->dead;
	w->dead = rc;
	if (w->q->header.version >= 3) {
		w->mark.is_corrupting = true;
		w->mark.corrupt.fn = corrupt_fiber;
		fiber_start(w->home, &w->mark.corrupt);
	}
	return rc;
}

void writer_latch_wait(struct writer *w)
{
	while (w->mark.is_corrupting)
		fiber_queue_wait(&w->mark.waiting);
}

/* ---- entries ---- */

static bool is_guarded(const struct writer *w)
{
	return !w->q->has_data_file && !(w->broken & BREAK_Q6_OVERLAP);
}

void guard_slice(struct writer *w, uint8_t *words)
{
	struct alloc *a = &w->alloc;

	for (size_t at = 0; is_guarded(w) && at < w->q->slice_bytes; at += 8 * w->q->entry_words) {
		uint64_t entry = be64_load(words + at), host = entry & QCOW2_OFFSET_MASK;

		if (!host || !(entry & QCOW2_COPIED) || entry & QCOW2_COMPRESSED)
			continue;
		alloc_named(a, host / w->cluster);
		if (alloc_is_metadata(a, host / w->cluster, 1))
			be64_store(words + at, entry & ~QCOW2_COPIED);
	}
}

bool guard_allows(const struct writer *w, uint64_t entry)
{
	uint64_t host = entry & QCOW2_OFFSET_MASK;

	return !is_guarded(w) || !host || entry & QCOW2_COMPRESSED ||
	       !alloc_is_metadata(&w->alloc, host / w->cluster, 1);
}

int guard_entry(struct writer *w, uint64_t entry, uint64_t off)
{
	uint64_t host = entry & QCOW2_OFFSET_MASK;

	if (guard_allows(w, entry))
		return 0;
	return writer_latch(w, qcow2_corrupt(w->q, "guest offset %#llx is mapped to metadata at "
					     "%#llx", (unsigned long long)off,
					     (unsigned long long)host));
}

int guard_table(struct writer *w, uint64_t first, uint64_t n)
{
	const struct qcow2 *q = w->q;

	for (uint64_t c = first; is_guarded(w) && c < first + n; c++)
		if (cache_has_word(q->cache, q->layer, q->entry_words,
				   QCOW2_COPIED | QCOW2_COMPRESSED | QCOW2_OFFSET_MASK,
				   QCOW2_COPIED | c * w->cluster))
			return writer_latch(w, qcow2_corrupt(w->q, "the cluster at %#llx has no "
							     "refcount, but is mapped",
							     (unsigned long long)(c * w->cluster)));
	return 0;
}
