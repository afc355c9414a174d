/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/pending_raw.c - what failed writes have left in a raw data file: W7 of pending.h. */
#include "fmt/qcow2/pending.h"
#include "fmt/qcow2/writer.h"

/* Does @p hold nothing that was answered, but what failed writes have left, for all to see in a raw
 * data file? */
static bool is_left_over(const struct pending *p)
{
	return !p->is_acked && p->nfailed && p->ps->w->q->has_raw_data;
}

/* Waits until none of them that is no younger than @seq is being closed. */
static void left_overs_wait(struct pendings *ps, uint64_t seq)
{
	struct list_node *n = ps->all.next;

	while (n != &ps->all) {
		struct pending *p = list_entry(n, struct pending, link);

		if (p->seq > seq)
			break;
		n = n->next;
		if (!is_left_over(p) || !p->is_closing)
			continue;
		fiber_queue_wait(&p->waiting);
		n = ps->all.next;
	}
}

void pendings_restore_wait(struct pendings *ps)
{
	uint64_t seq = ps->seq;

	if (!ps->w->q->has_raw_data || ps->w->broken & BREAK_W7_ONCE)
		return;
	left_overs_wait(ps, seq);
	list_for_each(n, &ps->all) {
		struct pending *p = list_entry(n, struct pending, link);

		if (is_left_over(p))
			pending_close_start(p);
	}
	left_overs_wait(ps, seq);
}
