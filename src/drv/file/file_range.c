/* SPDX-License-Identifier: MIT */
/* drv/file/file_range.c - the range lock of read-modify-write.
 *
 * With O_DIRECT a part of a block is written by reading the block, changing it and writing it back.
 * Whatever else was written to the block in between would be lost. Only the home loop does this,
 * and first asks every loop that has a chan of the node:
 *
 *	home                                     a chan's loop
 *	lock: posts the range to each chan  -->  from now on holds overlapping requests back
 *	                                    <--  answers when those the kernel had are done
 *	reads, changes, writes
 *	unlock: posts to each chan          -->  submits what it held back again
 *	                                    <--  answers: its struct chan_lock is free
 *
 * So the data path pays a list link for each write of a direct node and one look at a counter: no
 * lock, no atomic. Reads are not concerned: a read beside a write may see either.
 *
 * Invariants:
 *	K1  from file_range_lock_wait() to file_range_unlock_wait() the kernel has no WRITE, ZERO or
 *	    DISCARD of any loop that overlaps the range, and no other lock does;
 *	K2  an answer waits for the kernel alone, never for a lock, a buffer or a fiber: locks
 *	    cannot wait for each other in a circle. (in_flight holds what the kernel has; what is
 *	    held back, what bounces and what waits for a fiber is not in it.)
 *	K3  a chan comes and goes while no lock is held: it misses none and leaves none unanswered;
 *	K4  locks are granted in the order in which they were asked for, as far as they overlap. */
#include <unistd.h>

#include "drv/file/file_impl.h"

/* ---- the chan's side ---- */

static bool overlaps(const struct chan_lock *cl, const struct req *req)
{
	return cl->is_active && req->off < cl->end && cl->off < req->off + req->len;
}

bool file_range_hold(struct file_chan *fc, struct req *req)
{
	for (unsigned i = 0; fc->active_locks && i < RANGE_LOCKS_MAX; i++) {
		struct chan_lock *cl = &fc->locks[i];

		if (overlaps(cl, req)) {
			req->next = NULL;
			*cl->held_tail = req;
			cl->held_tail = &req->next;
			return true;
		}
	}
	list_add_tail(&fc->in_flight, &file_req(req)->link);
	return false;
}

/* Home: a chan has locked or unlocked. */
static void chan_answered(struct chan_lock *cl)
{
	struct range_lock *lk = cl->lock;

	if (!--lk->missing)
		fiber_wake(lk->fiber);
}

static void answered_task(struct task *t)
{
	chan_answered(container_of(t, struct chan_lock, task));
}

static void answer(struct chan_lock *cl)
{
	struct loop *home = cl->fc->chan.node->home;

	if (cl->fc->chan.loop == home) {
		chan_answered(cl);
		return;
	}
	cl->task.fn = answered_task;
	loop_post(home, &cl->task);
}

void file_range_done(struct file_chan *fc, struct req *req)
{
	list_del(&file_req(req)->link);
	for (unsigned i = 0; fc->active_locks && i < RANGE_LOCKS_MAX; i++) {
		struct chan_lock *cl = &fc->locks[i];

		/* It was in flight when the lock came, or it would have been held back. */
		if (overlaps(cl, req)) {
			assert(cl->busy > 0);
			if (!--cl->busy)
				answer(cl);
		}
	}
}

static void chan_lock(struct chan_lock *cl)
{
	struct file_chan *fc = cl->fc;

	assert(!cl->is_active);
	cl->is_active = true;
	cl->off = cl->lock->off;        /* const while it is held */
	cl->end = cl->lock->end;
	cl->busy = 0;
	cl->held = NULL;
	cl->held_tail = &cl->held;
	fc->active_locks++;
	list_for_each(it, &fc->in_flight) {
		struct file_req *fr = list_entry(it, struct file_req, link);

		cl->busy += overlaps(cl, container_of((uint64_t *)(void *)fr, struct req, priv[0]));
	}
	if (!cl->busy)
		answer(cl);
}

static void chan_unlock(struct chan_lock *cl)
{
	struct file_chan *fc = cl->fc;
	struct req *req = cl->held;

	assert(cl->is_active && !cl->busy);
	cl->is_active = false;
	fc->active_locks--;
	answer(cl);                     /* now it may be home's again */
	while (req) {
		struct req *next = req->next;

		file_submit(&fc->chan, req);
		req = next;
	}
}

static void lock_task(struct task *t)
{
	chan_lock(container_of(t, struct chan_lock, task));
}

static void unlock_task(struct task *t)
{
	chan_unlock(container_of(t, struct chan_lock, task));
}

/* ---- home's side ---- */

static bool ranges_meet(const struct range_lock *a, const struct range_lock *b)
{
	return a->off < b->end && b->off < a->end;
}

/* Does nothing that came before @lk overlap it? */
static bool may_go(const struct file_node *fn, const struct range_lock *lk)
{
	list_for_each(it, &fn->ranges) {
		if (it == &lk->link)
			return true;
		if (ranges_meet(list_entry(it, struct range_lock, link), lk))
			return false;
	}
	assert(false);                  /* it is in the list */
	return false;
}

static void enter_wait(struct file_node *fn, struct range_lock *lk, uint64_t off, uint64_t end)
{
	loop_assert(fn->node.home);
	*lk = (struct range_lock){ .off = off, .end = end, .fiber = fiber_self(),
				   .is_waiting = true };
	list_add_tail(&fn->ranges, &lk->link);
	while (!may_go(fn, lk))
		fiber_park();
	lk->is_waiting = false;
}

static void leave(struct file_node *fn, struct range_lock *lk)
{
	list_del(&lk->link);
	list_for_each(it, &fn->ranges) {
		struct range_lock *other = list_entry(it, struct range_lock, link);

		if (other->is_waiting)
			fiber_wake(other->fiber);
	}
}

/* Tells every chan and waits for its answer. */
static void tell_wait(struct file_node *fn, struct range_lock *lk, void (*fn_task)(struct task *))
{
	lk->missing = 1;                /* ours, so that it does not reach 0 too early */
	list_for_each(it, &fn->chans) {
		struct file_chan *fc = list_entry(it, struct file_chan, registered);
		struct chan_lock *cl = &fc->locks[lk->slot];

		cl->lock = lk;
		lk->missing++;
		if (fc->chan.loop == fn->node.home) {
			fn_task(&cl->task);
		} else {
			cl->task.fn = fn_task;
			loop_post(fc->chan.loop, &cl->task);
		}
	}
	lk->missing--;
	while (lk->missing)
		fiber_park();
}

void file_range_lock_wait(struct file_node *fn, struct range_lock *lk, uint64_t off, uint64_t end)
{
	if (fn->leave_lock_out)
		return;
	enter_wait(fn, lk, off, end);
	lk->is_waiting = true;
	while (fn->slots_used == (1u << RANGE_LOCKS_MAX) - 1)
		fiber_park();
	lk->is_waiting = false;
	lk->slot = (unsigned)__builtin_ctz(~fn->slots_used);
	fn->slots_used |= 1u << lk->slot;
	tell_wait(fn, lk, lock_task);
}

void file_range_unlock_wait(struct file_node *fn, struct range_lock *lk)
{
	if (fn->leave_lock_out)
		return;
	tell_wait(fn, lk, unlock_task);
	fn->slots_used &= ~(1u << lk->slot);
	leave(fn, lk);
}

uint64_t file_last_page(const struct file_node *fn, uint64_t at)
{
	return align_down(at, MAX((uint64_t)sysconf(_SC_PAGESIZE), fn->block));
}

static int register_wait(void *arg)
{
	struct file_chan *fc = arg;
	struct file_node *fn = file_node(&fc->chan);
	struct range_lock all;

	enter_wait(fn, &all, 0, UINT64_MAX);    /* K3 */
	list_add_tail(&fn->chans, &fc->registered);
	leave(fn, &all);
	return 0;
}

static int unregister_wait(void *arg)
{
	struct file_chan *fc = arg;
	struct file_node *fn = file_node(&fc->chan);
	struct range_lock all;

	enter_wait(fn, &all, 0, UINT64_MAX);
	list_del(&fc->registered);
	leave(fn, &all);
	return 0;
}

int file_range_register_wait(struct file_chan *fc)
{
	return loop_call_wait(fc->chan.node->home, register_wait, fc);
}

void file_range_unregister_wait(struct file_chan *fc)
{
	loop_call_wait(fc->chan.node->home, unregister_wait, fc);
}
