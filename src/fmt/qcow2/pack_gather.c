/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/pack_gather.c - clusters that wait in memory for more of a guest's small writes. See
 * pack.h.
 *
 * One is compressed when it was written up to its end, when somebody wants it closed (pending.h),
 * or when there are more than gathered_max: then the oldest. Whoever wrote to it has his answer, so
 * what fails then is tried again when it is to be closed the next time. It is placed whenever it
 * is ready: the turns of jobs are for those who ask for compression themselves, and one of these
 * may be waiting for it. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "fmt/qcow2/writer.h"

struct pack_gathered {
	struct task task;
	struct list_node link;          /* in pack.gathered */
	struct pack *pack;
	struct pending *p;
	uint8_t *plain;                 /* owned */
	struct pack_cluster c;          /* its out owned, too */
	struct span covered;            /* between the first byte written and the last */
	bool is_closing;                /* nobody joins */
	int res;                        /* why it could not be compressed or placed */
};

static void gathered_free(struct pack_gathered *g)
{
	list_del(&g->link);
	g->pack->ngathered--;
	free(g->plain);
	free(g->c.out);
	free(g);
}

/* Its place is found: it is in a buffer, or written. */
static int close_wait(struct pack_gathered *g)
{
	struct pack *pk = g->pack;
	uint64_t host;
	int rc = pack_compress_wait(&g->c);

	if (!rc)
		rc = pack_retry_wait(pk);
	if (rc)
		return rc;
	if (g->c.len) {
		g->p->gathered = NULL;
		rc = pack_place_wait(pk, g->p, g->c.out, (size_t)g->c.len);
		if (rc)
			g->p->gathered = g;
		return rc;
	}
	rc = pack_take_wait(pk, &host);
	return rc ? rc : pack_store_wait(pk, g->p, g->plain, host);
}

static void close_fiber(struct task *t)
{
	struct pack_gathered *g = container_of(t, struct pack_gathered, task);
	struct pack *pk = g->pack;

	g->res = close_wait(g);
	if (!g->res) {
		gathered_free(g);
	} else {
		g->is_closing = false;
		pending_pack_failed(g->p, g->res);
	}
	fiber_queue_wake(&pk->closed);
}

static void close_start(struct pack_gathered *g)
{
	if (g->is_closing)
		return;
	g->is_closing = true;
	g->task.fn = close_fiber;
	fiber_start(g->pack->w->home, &g->task);
}

/* After a write to it. */
static void look(struct pack_gathered *g)
{
	struct pack *pk = g->pack;
	uint64_t size = atomic_load_explicit(&pk->w->q->node.size, memory_order_relaxed);

	commit_note(&pk->w->commit);
	if (g->p->is_closing || (!g->covered.lo && g->p->guest + g->covered.hi >=
						   MIN(size, g->p->guest + pk->w->cluster)))
		close_start(g);
}

int pack_gather(struct pack *pk, struct pending *p, uint8_t *plain, uint8_t *out, uint64_t lo,
		uint64_t hi)
{
	struct pack_gathered *g = calloc(1, sizeof(*g));

	if (!g)
		return -ENOMEM;
	g->pack = pk;
	g->p = p;
	g->plain = plain;
	g->c = (struct pack_cluster){ .pack = pk, .plain = plain, .out = out };
	g->covered = (struct span){ lo, hi };
	list_add_tail(&pk->gathered, &g->link);
	pk->ngathered++;
	p->gathered = g;
	p->is_acked = true;
	look(g);
	return 0;
}

bool pack_gather_join(struct pack *pk, struct pending *p, const struct req *part)
{
	struct pack_gathered *g = p->gathered;
	uint64_t lo = part->off - p->guest;

	if (!g || g->is_closing || p->is_closing || pk->w->dead)
		return false;
	req_copy_from(part, 0, g->plain + lo, part->len);
	g->covered.lo = MIN(g->covered.lo, lo);
	g->covered.hi = MAX(g->covered.hi, lo + part->len);
	pk->njoined++;
	look(g);
	return true;
}

const uint8_t *pack_gathered_bytes(const struct pending *p)
{
	return p->gathered ? p->gathered->plain : NULL;
}

static struct pack_gathered *oldest(const struct pack *pk, bool is_closing)
{
	list_for_each(n, &pk->gathered) {
		struct pack_gathered *g = list_entry(n, struct pack_gathered, link);

		if (g->is_closing == is_closing)
			return g;
	}
	return NULL;
}

int pack_gather_room_wait(struct pack *pk)
{
	struct pack_gathered *g;

	/* One at a time is on its way; more only where that is not enough. */
	if (pk->ngathered >= pk->gathered_max && !oldest(pk, true))
		close_start(oldest(pk, false));
	while (pk->ngathered >= 2 * pk->gathered_max) {
		g = oldest(pk, true);
		if (!g) {
			g = oldest(pk, false);
			if (g->res)
				return g->res;
			close_start(g);
		}
		fiber_queue_wait(&pk->closed);
	}
	return 0;
}

void pack_gather_push(struct pack *pk)
{
	list_for_each(n, &pk->gathered) {
		struct pack_gathered *g = list_entry(n, struct pack_gathered, link);

		if (g->p->is_closing)
			close_start(g);
	}
}

void pack_gather_end_wait(struct pack *pk)
{
	while (oldest(pk, true))
		fiber_queue_wait(&pk->closed);
}

void pack_gather_fini(struct pack *pk)
{
	/* A writer that was never set up has no list. */
	while (pk->ngathered)
		gathered_free(list_entry(pk->gathered.next, struct pack_gathered, link));
}
