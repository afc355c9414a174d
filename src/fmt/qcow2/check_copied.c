/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/check_copied.c - names the entries of the active tables whose COPIED flag does not fit
 * the refcount (check_impl.h). Runs only where it is known that there are some.
 *
 * A repair mends them in two walks: the first tells all of them and takes flags away, before
 * refcounts go down; the second sets flags, when the lower refcounts are durable. Both go by the
 * refcounts that there will be. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fmt/qcow2/check_impl.h"

/* What an L2 table needs. */
struct wants {
	bool any;                       /* now or in the second walk */
	bool now;
};

struct copied_walk {
	struct check *ck;
	bool is_mended;                 /* what is told */
	bool is_second;                 /* sets flags, silently */
	uint8_t *l1;                    /* a piece of the table */
	uint8_t *l2;
};

/* The refcount of cluster @k when all is done. */
static int refcount_wait(struct check *ck, uint64_t k, uint64_t *ret)
{
	int rc = check_refcount_wait(ck, k, ret);

	if (!rc && ck->repair && k < ck->clusters)
		*ret = MIN(*ret, counts_get(&ck->counts, k));
	return rc;
}

/* Refcounts that cannot be read were told of before. After a repair there are none of these. */
static int failure(const struct check *ck, int rc)
{
	return rc == -ENOMEM || ck->repair == QCOW2_REPAIR_ALL ? rc : 0;
}

/* Does the flag of @entry say the wrong thing about a refcount of @refcount? */
static bool differs(uint64_t entry, uint64_t refcount)
{
	return (refcount == 1) != !!(entry & QCOW2_COPIED);
}

/* Is a wrong flag of @entry mended in this walk? */
static bool is_of_walk(const struct copied_walk *w, uint64_t entry)
{
	return w->is_second == !(entry & QCOW2_COPIED);
}

/* Mends or counts what was told. Is the flag to be changed now? */
static bool judge(struct copied_walk *w, uint64_t entry, bool is_mended)
{
	struct check *ck = w->ck;

	if (!w->is_second && is_mended) {
		ck->result.corruptions_fixed++;
		ck->is_to_set |= !(entry & QCOW2_COPIED);
	} else if (!w->is_second) {
		ck->result.corruptions++;
	}
	return is_mended && is_of_walk(w, entry);
}

static int data_refcount_wait(struct copied_walk *w, uint64_t entry, uint64_t *ret)
{
	*ret = 1;
	return w->ck->has_data_file ? 0 :
	       refcount_wait(w->ck, (entry & QCOW2_OFFSET_MASK) >> w->ck->cluster_bits, ret);
}

/* Entry @i of the table at @off. */
static int l2_entry_wait(struct copied_walk *w, uint64_t off, unsigned i, struct wants *wants)
{
	struct check *ck = w->ck;
	uint8_t *at = w->l2 + 8ULL * ck->entry_words * i;
	uint64_t entry = be64_load(at), refcount;
	enum l2_kind kind = check_l2_kind(ck, entry);
	bool is_mended = w->is_mended && is_aligned(off, ck->cluster);
	int rc;

	if (kind != L2_DATA && kind != L2_ZERO_KEPT)
		return 0;
	rc = data_refcount_wait(w, entry, &refcount);
	if (rc || !differs(entry, refcount))
		return failure(ck, rc);
	if (!w->is_second)
		check_say(ck, "%s OFLAG_COPIED data cluster: l2_entry=%llx refcount=%llu",
			  is_mended ? "Repairing" : "ERROR", (unsigned long long)entry,
			  (unsigned long long)refcount);
	wants->any |= is_mended;
	if (judge(w, entry, is_mended)) {
		be64_store(at, entry ^ QCOW2_COPIED);
		wants->now = true;
	}
	return 0;
}

/* The table at @off is to be changed. */
static int l2_write_wait(struct copied_walk *w, uint64_t off, bool now)
{
	struct check *ck = w->ck;
	int rc = repair_may_write_wait(ck, MAP_ACTIVE_L2, off, ck->cluster);

	if (rc) {
		check_say(ck, "ERROR: Could not write L2 table; metadata overlap check failed: %s",
			  strerror(-rc));
		ck->result.check_errors++;
		return rc;
	}
	if (now)
		rc = repair_write_wait(ck, off, w->l2, ck->cluster);
	if (rc) {
		check_say(ck, "ERROR: Could not write L2 table: %s", strerror(-rc));
		ck->result.check_errors++;
	}
	return rc;
}

static int l2_wait(struct copied_walk *w, uint64_t off)
{
	struct check *ck = w->ck;
	unsigned n = (unsigned)(ck->cluster / 8 / ck->entry_words);
	struct wants wants = { 0 };
	int rc = check_budget_wait(ck, ck->cluster);

	if (!rc)
		rc = check_read_wait(ck, off, w->l2, ck->cluster);
	if (rc == -EIO) {
		check_say(ck, "ERROR: I/O error in check_oflag_copied: Input/output error");
		ck->result.check_errors++;
	}
	for (unsigned i = 0; i < n && !rc; i++)
		rc = l2_entry_wait(w, off, i, &wants);
	if (!rc && wants.any)
		rc = l2_write_wait(w, off, wants.now);
	return !rc && check_is_endless(ck) ? check_budget_wait(ck, 0) : rc;
}

static int l1_write_wait(struct copied_walk *w, uint64_t index, uint64_t entry, bool now)
{
	struct check *ck = w->ck;
	uint64_t off = ck->h->l1_off + 8 * index;
	be64_t field = be64_make(entry);
	int rc = repair_may_write_wait(ck, MAP_ACTIVE_L1, off, sizeof(field));

	if (!rc && now)
		rc = repair_write_wait(ck, off, &field, sizeof(field));
	if (rc)
		ck->result.check_errors++;
	return rc;
}

static int l1_entry_wait(struct copied_walk *w, uint64_t index, uint64_t entry)
{
	struct check *ck = w->ck;
	uint64_t off = entry & QCOW2_OFFSET_MASK, refcount;
	bool is_now;
	int rc;

	if (!off)
		return 0;
	rc = refcount_wait(ck, off >> ck->cluster_bits, &refcount);
	if (rc)
		return failure(ck, rc);
	if (differs(entry, refcount)) {
		if (!w->is_second)
			check_say(ck, "%s OFLAG_COPIED L2 cluster: l1_index=%llu l1_entry=%llx "
				  "refcount=%llu", w->is_mended ? "Repairing" : "ERROR",
				  (unsigned long long)index, (unsigned long long)entry,
				  (unsigned long long)refcount);
		is_now = judge(w, entry, w->is_mended);
		if (w->is_mended)
			rc = l1_write_wait(w, index, entry ^ QCOW2_COPIED, is_now);
		if (rc)
			return rc;
	}
	return off < ck->file_end ? l2_wait(w, off) : 0;
}

static int walk_wait(struct copied_walk *w)
{
	struct check *ck = w->ck;
	uint64_t bytes = (uint64_t)ck->h->l1_entries * 8;
	int rc;

	w->l1 = malloc(CHECK_PIECE_BYTES);
	w->l2 = malloc(ck->cluster);
	rc = w->l1 && w->l2 ? 0 : -ENOMEM;
	for (uint64_t at = 0; at < bytes && !rc; at += CHECK_PIECE_BYTES) {
		uint64_t len = MIN(bytes - at, (uint64_t)CHECK_PIECE_BYTES);

		rc = check_read_wait(ck, ck->h->l1_off + at, w->l1, len);
		for (uint64_t i = 0; i < len / 8 && !rc; i++)
			rc = l1_entry_wait(w, at / 8 + i, be64_load(w->l1 + 8 * i));
	}
	free(w->l2);
	free(w->l1);
	return rc;
}

int check_copied_wait(struct check *ck)
{
	const struct qcow2_check *r = &ck->result;
	/* Where only leaks are mended, if the refcounts are beyond doubt now. */
	struct copied_walk w = { .ck = ck, .is_mended = ck->repair == QCOW2_REPAIR_ALL ||
				 (ck->repair == QCOW2_REPAIR_LEAKS && !r->check_errors &&
				  !r->corruptions && !r->leaks) };

	return walk_wait(&w);
}

int check_copied_set_wait(struct check *ck)
{
	struct copied_walk w = { .ck = ck, .is_mended = true, .is_second = true };

	return walk_wait(&w);
}
