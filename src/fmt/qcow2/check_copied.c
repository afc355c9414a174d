/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/check_copied.c - names the entries of the active tables whose COPIED flag does not fit
 * the refcount (check_impl.h). Runs only where it is known that there are some. */
#include <errno.h>
#include <stdlib.h>

#include "fmt/qcow2/check_impl.h"

/* Does the flag of @entry say the wrong thing about a refcount of @refcount? */
static bool differs(uint64_t entry, uint64_t refcount)
{
	return (refcount == 1) != !!(entry & QCOW2_COPIED);
}

static int copied_l2_wait(struct check *ck, const uint8_t *table)
{
	unsigned words = ck->entry_words, n = (unsigned)(ck->cluster / 8 / words);

	for (unsigned i = 0; i < n; i++) {
		uint64_t entry = be64_load(table + 8ULL * words * i), refcount = 1;
		enum l2_kind kind = check_l2_kind(ck, entry);
		int rc = 0;

		if (kind != L2_DATA && kind != L2_ZERO_KEPT)
			continue;
		if (!ck->has_data_file)
			rc = check_refcount_wait(ck, (entry & QCOW2_OFFSET_MASK) >>
						 ck->cluster_bits, &refcount);
		if (rc == -ENOMEM)
			return rc;
		if (rc || !differs(entry, refcount))
			continue;       /* unreadable refcounts were told of before */
		check_say(ck, "ERROR OFLAG_COPIED data cluster: l2_entry=%llx refcount=%llu",
			  (unsigned long long)entry, (unsigned long long)refcount);
		ck->result.corruptions++;
	}
	return check_is_endless(ck) ? check_budget_wait(ck, 0) : 0;
}

static int copied_l1_wait(struct check *ck, uint64_t index, uint64_t entry, uint8_t *buf)
{
	uint64_t off = entry & QCOW2_OFFSET_MASK, refcount;
	int rc;

	if (!off)
		return 0;
	rc = check_refcount_wait(ck, off >> ck->cluster_bits, &refcount);
	if (rc)
		return rc == -ENOMEM ? rc : 0;
	if (differs(entry, refcount)) {
		check_say(ck, "ERROR OFLAG_COPIED L2 cluster: l1_index=%llu l1_entry=%llx "
			  "refcount=%llu", (unsigned long long)index, (unsigned long long)entry,
			  (unsigned long long)refcount);
		ck->result.corruptions++;
	}
	if (off >= ck->file_end)
		return 0;
	rc = check_budget_wait(ck, ck->cluster);
	if (!rc)
		rc = check_read_wait(ck, off, buf, ck->cluster);
	if (rc == -EIO) {
		check_say(ck, "ERROR: I/O error in check_oflag_copied: Input/output error");
		ck->result.check_errors++;
	}
	return rc ? rc : copied_l2_wait(ck, buf);
}

int check_copied_wait(struct check *ck)
{
	uint64_t bytes = (uint64_t)ck->h->l1_entries * 8;
	uint8_t *table = malloc(CHECK_PIECE_BYTES), *buf = malloc(ck->cluster);
	int rc = table && buf ? 0 : -ENOMEM;

	for (uint64_t at = 0; at < bytes && !rc; at += CHECK_PIECE_BYTES) {
		uint64_t len = MIN(bytes - at, (uint64_t)CHECK_PIECE_BYTES);

		rc = check_read_wait(ck, ck->h->l1_off + at, table, len);
		for (uint64_t i = 0; i < len / 8 && !rc; i++)
			rc = copied_l1_wait(ck, at / 8 + i, be64_load(table + 8 * i), buf);
	}
	free(buf);
	free(table);
	return rc;
}
