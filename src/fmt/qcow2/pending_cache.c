/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/pending_cache.c - what the mapping cache shows of pending clusters (W8). */
#include <string.h>

#include "base/endian.h"
#include "fmt/qcow2/writer.h"

static uint64_t cache_key_of(const struct pendings *ps, uint64_t guest)
{
	return cache_key(ps->w->q->layer, guest >> ps->w->q->slice_shift);
}

static unsigned cache_word_of(const struct pendings *ps, uint64_t guest)
{
	const struct qcow2 *q = ps->w->q;

	return (unsigned)((guest & ((1ULL << q->slice_shift) - 1)) >> q->cluster_bits) *
	       q->entry_words;
}

void pendings_mark_slice(const struct pendings *ps, uint64_t first, uint8_t *words)
{
	uint64_t bytes = 1ULL << ps->w->q->slice_shift;

	guard_slice(ps->w, words);
	/* A damaged image may hold what looks like a mark: then it is as damaged as it was. */
	for (size_t at = 0; at < ps->w->q->slice_bytes; at += 8 * ps->w->q->entry_words)
		if (be64_load(words + at) == CACHE_PENDING)
			be64_store(words + at, CACHE_PENDING ^ 1ULL << 61);
	if (ps->w->broken & BREAK_W8_UNSEEN)
		return;
	list_for_each(n, &ps->all) {
		const struct pending *p = list_entry(n, struct pending, link);

		if (p->guest >= first && p->guest - first < bytes)
			be64_store(words + 8 * (size_t)cache_word_of(ps, p->guest), CACHE_PENDING);
	}
}

static void insert_slice(struct pendings *ps, const struct l2_at *at)
{
	memcpy(ps->slice, at->page->bytes, ps->w->q->slice_bytes);
	pendings_mark_slice(ps, at->first, ps->slice);
	cache_insert(ps->w->q->cache, cache_key_of(ps, at->first), ps->slice);
}

void pendings_cache_slice(struct pendings *ps, const struct l2_at *at)
{
	bool is_empty;

	if (cache_find(ps->w->q->cache, cache_key_of(ps, at->first), &is_empty) < 0 || is_empty)
		insert_slice(ps, at);
}

void pendings_show(struct pendings *ps, const struct l2_at *at, uint64_t guest, unsigned n,
		   const struct l2_pair *pair)
{
	static const struct l2_pair pending = { CACHE_PENDING, 0 };
	unsigned per_cluster = ps->w->q->entry_words;
	uint64_t words[2 * PENDING_RUN_MAX];

	if (!pair && ps->w->broken & BREAK_W8_UNSEEN)
		return;
	for (unsigned i = 0; i < n; i++) {
		const struct l2_pair *p = pair ? &pair[i] : &pending;

		words[i * per_cluster] = p->entry;
		if (per_cluster == 2)
			words[i * 2 + 1] = p->bitmap;
	}
	if (!cache_store(ps->w->q->cache, cache_key_of(ps, guest), cache_word_of(ps, guest),
			 n * per_cluster, words))
		insert_slice(ps, at);
}
