/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/commit.h"

#include <assert.h>

#include "fmt/qcow2/writer.h"

enum { LAZY_REFS_MAX = META_DIRTY_MAX / 2 };

struct commit_waiter {
	struct list_node link;
	struct fiber *fiber;
	bool is_done;
	int res;
};

/* What one commit writes. */
struct cut {
	struct list_node waiters;
	struct meta_cut *phase[META_PHASES];
	bool needs_a;
	bool is_file_written;
	bool a_is_durable;
};

static struct writer *writer_of(struct commit *c)
{
	return container_of(c, struct writer, commit);
}

static void age_out(struct timer *t)
{
	commit_kick(container_of(t, struct commit, timer));
}

void commit_init(struct commit *c)
{
	list_init(&c->next);
	c->timer.fn = age_out;
}

void commit_note(struct commit *c)
{
	c->is_noted = true;
	if (!c->timer.is_set && !c->is_running)
		timer_set(writer_of(c)->home, &c->timer,
			  loop_now(writer_of(c)->home) + COMMIT_AGE_NS);
}

static void move_all(struct list_node *from, struct list_node *to)
{
	struct list_node *n;

	while ((n = list_pop(from)))
		list_add_tail(to, n);
}

static void answer(struct list_node *waiters, int res)
{
	struct list_node *n;

	while ((n = list_pop(waiters))) {
		struct commit_waiter *cw = list_entry(n, struct commit_waiter, link);

		cw->res = res;
		cw->is_done = true;
		fiber_wake(cw->fiber);
	}
}

static int sync_wait(struct commit *c)
{
	c->stats.syncs++;
	return chan_flush_wait(writer_of(c)->file);
}

/* What the guest wrote is elsewhere: there first, so that B names nothing that is not there. */
static int data_sync_wait(struct commit *c)
{
	const struct writer *w = writer_of(c);

	/* Where it could not be opened nothing was written to it, but leaks may have been freed. */
	if (!w->q->has_data_file || !writer_data(w))
		return 0;
	c->stats.syncs++;
	return chan_flush_wait(writer_data(w));
}

/* Lazy refcounts: do they stay in memory? */
static bool keeps_refs(struct commit *c)
{
	const struct writer *w = writer_of(c);

	return w->is_lazy && !c->is_last &&
	       meta_ndirty(&w->meta, META_PHASE_A_REFS) <= LAZY_REFS_MAX;
}

/* Takes the cut. Never waits. */
static int cut_take(struct commit *c, struct cut *cut)
{
	struct writer *w = writer_of(c);
	int rc = 0;

	cut->needs_a = c->needs_a;
	if (alloc_cut(&w->alloc))
		cut->needs_a = true;
	c->needs_a = false;
	cut->is_file_written = c->is_file_written;
	c->is_file_written = false;
	c->is_noted = false;
	for (unsigned i = 0; i < META_PHASES && !rc; i++)
		if (i != META_PHASE_A_REFS || !keeps_refs(c))
			rc = meta_cut(&w->meta, i, &cut->phase[i]);
	return rc;
}

static int phase_write_wait(struct commit *c, struct meta_cut *cut)
{
	int rc = meta_cut_write_wait(cut, &c->stats.meta_bytes, &c->stats.meta_writes);

	return writer_of(c)->broken & BREAK_Q9_IGNORE ? 0 : rc;
}

static int write_wait(struct commit *c, struct cut *cut)
{
	uint64_t broken = writer_of(c)->broken;
	bool has_b = cut->phase[META_PHASE_B_L2] || cut->phase[META_PHASE_B_L1];
	bool is_data_late = broken & BREAK_Q2_NO_SYNC_DATA;
	int rc = is_data_late ? 0 : data_sync_wait(c);

	/* Then all that a flush is about was in the data file. */
	if (writer_of(c)->q->has_data_file && !has_b && !cut->phase[META_PHASE_A_REFS] &&
	    !cut->phase[META_PHASE_A_L2] && !cut->is_file_written)
		return rc;
	if (!rc && !(broken & BREAK_Q1_NO_REFS))
		rc = phase_write_wait(c, cut->phase[META_PHASE_A_REFS]);
	if (!rc)
		rc = phase_write_wait(c, cut->phase[META_PHASE_A_L2]);
	if (!rc && has_b && cut->needs_a && !(broken & BREAK_Q2_NO_SYNC_A)) {
		rc = sync_wait(c);
		cut->a_is_durable = !rc;
	} else if (has_b && !cut->needs_a) {
		c->stats.skipped++;
	}
	if (!rc)
		rc = phase_write_wait(c, cut->phase[META_PHASE_B_L2]);
	if (!rc)
		rc = phase_write_wait(c, cut->phase[META_PHASE_B_L1]);
	if (!rc && is_data_late)
		rc = data_sync_wait(c);
	return rc ? rc : sync_wait(c);
}

static void cut_end(struct commit *c, struct cut *cut, int res)
{
	struct writer *w = writer_of(c);

	meta_cut_end(cut->phase[META_PHASE_A_REFS], cut->a_is_durable ? 0 : res);
	meta_cut_end(cut->phase[META_PHASE_A_L2], cut->a_is_durable ? 0 : res);
	meta_cut_end(cut->phase[META_PHASE_B_L2], res);
	meta_cut_end(cut->phase[META_PHASE_B_L1], res);
	alloc_cut_end(&w->alloc, res);
	if (res) {
		c->needs_a = true;
		c->is_file_written |= cut->is_file_written;
		c->is_noted = true;
	}
	c->stats.commits++;
}

static void run_wait(struct commit *c)
{
	struct writer *w = writer_of(c);
	struct cut cut = { .needs_a = false };
	bool is_flush;
	int closed, rc;

	list_init(&cut.waiters);
	alloc_topup_wait(&w->alloc);
	/* What they wait for is in a page, or in a cluster that is closed now. Who comes while we
	 * close may have written to others. */
	move_all(&c->next, &cut.waiters);
	is_flush = c->is_flush || (w->pack.is_for_all && !(w->broken & BREAK_Z8_NO_PUSH));
	c->is_flush = false;
	closed = pendings_close_all_wait(&w->pendings, is_flush);
	rc = cut_take(c, &cut);
	c->is_cut = true;
	if (!rc)
		rc = w->dead ? w->dead : write_wait(c, &cut);
	cut_end(c, &cut, rc);
	if (w->broken & BREAK_Q2_JOIN_LATE)
		move_all(&c->next, &cut.waiters);
	answer(&cut.waiters, rc ? rc : closed);
}

static void commit_fiber(struct task *t)
{
	struct commit *c = container_of(t, struct commit, task);

	do {
		c->is_wanted = false;
		c->is_cut = false;
		run_wait(c);
	} while (c->is_wanted || !list_is_empty(&c->next));
	c->is_running = false;
	c->is_cut = false;
	if (c->is_noted)
		commit_note(c);
	if (c->stopper)
		fiber_wake(c->stopper);
}

void commit_kick(struct commit *c)
{
	struct loop *home = writer_of(c)->home;

	if (c->is_running) {
		/* One that has not taken its cut yet will do. */
		c->is_wanted |= c->is_cut;
		return;
	}
	c->is_running = true;
	timer_cancel(home, &c->timer);
	c->task.fn = commit_fiber;
	fiber_start(home, &c->task);
}

int commit_metadata_wait(struct commit *c)
{
	struct commit_waiter cw = { .fiber = fiber_self() };

	if (writer_of(c)->dead)
		return writer_of(c)->dead;
	list_add_tail(&c->next, &cw.link);
	commit_kick(c);
	while (!cw.is_done)
		fiber_park();
	return cw.res;
}

int commit_wait(struct commit *c)
{
	c->is_flush = true;
	return commit_metadata_wait(c);
}

void commit_stop_wait(struct commit *c)
{
	assert(!c->stopper);
	c->stopper = fiber_self();
	while (c->is_running)
		fiber_park();
	c->stopper = NULL;
	timer_cancel(writer_of(c)->home, &c->timer);
}
