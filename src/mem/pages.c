/* SPDX-License-Identifier: MIT */
/* mem/pages.c - the free runs, growing, and giving back. */
#include "mem/pages.h"

#include <assert.h>
#include <errno.h>

#include "mem/lock.h"
#include "tlsf/tlsf.h"

_Static_assert(1 << TLSF_STRIDE_LOG2 == 32, "os.h gives a slice 32 bytes");

enum {
	CORE_BYTES = 8 << 10,           /* of the lists for SLICES_MAX */
	/* It grows by a share of what it has, so that a large program asks seldom and a small one
	 * has little. */
	GROW_MIN = (int)(1 * MiB / SLICE_BYTES),
	GROW_MAX = (int)(64 * MiB / SLICE_BYTES),
	GROW_SHARE = 8,
	SKIP_MIN = (int)(1 * GiB / SLICE_BYTES),
	SKIPS = 12,
};

_Atomic size_t pages_end;

static struct mem_lock lock;
/* Under the lock from here on. */
static _Alignas(16) char core_bytes[CORE_BYTES];
static size_t dirty, dirty_low, held, peak, skipped;    /* slices */
static size_t purged;                   /* bytes */
static size_t run_hint;                 /* where a free run began */

static struct tlsf *core(void)
{
	return (struct tlsf *)(void *)core_bytes;
}

static struct tlsf_tag *tag_at(size_t slice)
{
	char *tags = os_area_start(OS_TAGS_BELOW);

	return (struct tlsf_tag *)(void *)(tags + (slice << TLSF_STRIDE_LOG2));
}

static size_t slice_of_tag(const struct tlsf_tag *t)
{
	return ((uintptr_t)t - (os_base - OS_TAGS_BELOW)) >> TLSF_STRIDE_LOG2;
}

static void map_set(size_t slice, uint32_t word)
{
	atomic_store_explicit(map_at(slice), word, memory_order_relaxed);
}

static uint32_t map_get(size_t slice)
{
	return atomic_load_explicit(map_at(slice), memory_order_relaxed);
}

static size_t end(void)
{
	return atomic_load_explicit(&pages_end, memory_order_relaxed);
}

/* In runs. */
static size_t used(void)
{
	return (core()->used >> TLSF_FLAGS) - skipped - held;
}

/* ---- growing ---- */

/* Metadata for slices up to @n. */
static int grow_metadata(size_t n)
{
	int err = os_grow(OS_MAP, n * sizeof(uint32_t));

	if (!err)
		err = os_grow(OS_TAGS, (n + 1) << TLSF_STRIDE_LOG2);
	if (!err)
		err = os_grow(OS_SLABS, n * 64);
	if (!err)
		err = os_grow(OS_BITS, n * 512);
	return err;
}

/* Makes the slices from the end to @n part of the run before the end, which is in use; or a run of
 * their own that is in use. */
static void append(size_t n)
{
	struct tlsf_tag *t = tag_at(end());
	uint32_t size = tlsf_word((uint32_t)(n - end()));
	struct tlsf_tag *last = tlsf_after(TLSF_TABLE, t, size);

	t->size = size | TLSF_USED;
	last->prev = size | TLSF_USED;
	last->size = TLSF_USED;
	core()->hi = (uintptr_t)last;
	core()->granules = slice_of_tag(last) - 1;
	core()->used += size;
	/* Pairs with nothing: who has a pointer into these slices got it after this. */
	atomic_store_explicit(&pages_end, n, memory_order_relaxed);
}

/* Something lies where slices would come next: leaves it out, as a run in use for ever. The map
 * says what is true, that it is not ours. */
static int skip(size_t slices)
{
	size_t n = end() + slices;

	if (n >= SLICES_MAX || grow_metadata(n))
		return -ENOMEM;
	os_skip(OS_SLICES, n << SLICE_LOG2);
	skipped += slices;
	/* Who looks for the ends of a free run next to it stops there. */
	map_set(end(), MAP_FOREIGN);
	map_set(n - 1, MAP_FOREIGN);
	append(n);
	return 0;
}

/* Slices that are free at the end. */
static size_t free_at_end(void)
{
	uint32_t before = tag_at(end())->prev;

	return before & TLSF_USED ? 0 : before >> TLSF_FLAGS;
}

/* Adds @n slices, or more. */
static int grow_by(size_t n)
{
	size_t more = end() / GROW_SHARE, from;
	int err;

	more = MAX(more, (size_t)GROW_MIN);
	more = MIN(more, (size_t)GROW_MAX);
	more = MAX(more, n);
	if (more > SLICES_MAX - end())
		more = n;
	if (n > SLICES_MAX - end())
		return -ENOMEM;
	err = grow_metadata(end() + more);
	if (!err)
		err = os_grow(OS_SLICES, (end() + more) << SLICE_LOG2);
	if (err && err != -EEXIST && more > n) {
		more = n;
		err = grow_metadata(end() + more);
		if (!err)
			err = os_grow(OS_SLICES, (end() + more) << SLICE_LOG2);
	}
	if (err)
		return err;
	from = end();
	append(from + more);
	tlsf_free(core(), TLSF_TABLE, tag_at(from));
	return 0;
}

/* So that there will be a run of @n with any alignment of @align. */
static int grow(size_t n)
{
	size_t slices = SKIP_MIN;
	int err;

	for (int i = 0;; i++) {
		size_t have = free_at_end();

		err = grow_by(n > have ? n - have : 1);
		if (err != -EEXIST || i == SKIPS)
			return err ? -ENOMEM : 0;
		/* It may be only the rounding up that met something. */
		err = skip(slices);
		if (err)
			return err;
		slices *= 2;
	}
}

int pages_start(void)
{
	int err = os_start();

	if (err)
		return err;
	assert(tlsf_bytes(SLICES_MAX) <= CORE_BYTES);
	tlsf_init(core(), SLICES_MAX);
	err = grow_metadata(1);
	if (err)
		return err;
	/* Slice 0 is nobody's, so that its number can say "none". */
	map_set(0, MAP_INNER);
	tag_at(1)->size = TLSF_USED;
	tag_at(1)->prev = TLSF_USED;
	core()->lo = (uintptr_t)tag_at(1);
	core()->hi = core()->lo;
	atomic_store_explicit(&pages_end, 1, memory_order_relaxed);
	return 0;
}

/* ---- runs ---- */

/* Takes [@first, @first + @n) from the free ones: the map follows. Returns how many are dirty. */
static size_t map_take(size_t first, size_t n)
{
	size_t was_dirty = 0;

	for (size_t i = first; i < first + n; i++) {
		was_dirty += map_get(i) == MAP_DIRTY;
		map_set(i, MAP_INNER);
	}
	map_set(first, MAP_RUN);
	dirty -= was_dirty;
	dirty_low = MIN(dirty_low, dirty);
	return was_dirty;
}

static void map_give(size_t first, size_t n, uint32_t state)
{
	for (size_t i = first; i < first + n; i++)
		map_set(i, state);
	if (state == MAP_DIRTY)
		dirty += n;
}

static size_t find(size_t n)
{
	size_t list;

	if (n > SLICES_MAX)
		return 0;
	list = tlsf_find(core(), tlsf_word((uint32_t)n));
	if (list || grow(n))
		return list;
	return tlsf_find(core(), tlsf_word((uint32_t)n));
}

static size_t alloc_locked(size_t n, size_t align, size_t *ret_dirty)
{
	size_t list, first, front;
	struct tlsf_tag *t;

	if (n > SLICES_MAX || align > SLICES_MAX)
		return 0;
	list = find(n + align - 1);
	if (!list)
		return 0;
	first = slice_of_tag(*tlsf_head(core(), list));
	/* Addresses count, not numbers: the window begins anywhere. */
	front = (size_t)(align_up((uintptr_t)slice_at(first), align << SLICE_LOG2) -
			 (uintptr_t)slice_at(first)) >> SLICE_LOG2;
	t = tlsf_take(core(), TLSF_TABLE, list, tlsf_word((uint32_t)front),
		      tlsf_word((uint32_t)n));
	if (!t)
		os_die("damaged records of free pages", core()->damage);
	first = slice_of_tag(t);
	*ret_dirty = map_take(first, n);
	peak = MAX(peak, used());
	return first;
}

size_t pages_alloc(size_t n, size_t align, size_t *ret_dirty)
{
	size_t first;

	mem_lock(&lock);
	first = alloc_locked(n, align, ret_dirty);
	mem_unlock(&lock);
	return first;
}

/* The map knows already. */
static void free_run(size_t first)
{
	if (!tlsf_free(core(), TLSF_TABLE, tag_at(first)))
		os_die("damaged records of free pages", core()->damage);
}

static void free_locked(size_t first, uint32_t state)
{
	struct tlsf_tag *t = tag_at(first);

	if (!tlsf_is_used(core(), TLSF_TABLE, t))
		os_die("damaged records of pages in use", slice_at(first));
	map_give(first, tlsf_granules(t), state);
	free_run(first);
}

void pages_free(size_t first, bool clean)
{
	mem_lock(&lock);
	free_locked(first, clean ? MAP_CLEAN : MAP_DIRTY);
	mem_unlock(&lock);
}

size_t pages_run(size_t first)
{
	/* A run in use belongs to the caller, and so does its size. */
	return tlsf_granules(tag_at(first));
}

/* Makes the run at @first longer, if nothing is behind it up to the end but what is free. */
static bool resize_at_end(size_t first, size_t n)
{
	size_t old = pages_run(first), have = free_at_end();

	if (n < old + have || first + old + have != end() || grow_by(n - old - have))
		return false;
	return tlsf_resize(core(), TLSF_TABLE, tag_at(first), tlsf_word((uint32_t)n));
}

bool pages_resize(size_t first, size_t n)
{
	size_t old;
	bool done;

	if (n >= SLICES_MAX)
		return false;
	mem_lock(&lock);
	old = pages_run(first);
	done = tlsf_resize(core(), TLSF_TABLE, tag_at(first), tlsf_word((uint32_t)n)) ||
	       resize_at_end(first, n);
	if (done && n > old) {
		map_take(first + old, n - old);
		map_set(first + old, MAP_INNER);
	} else if (done) {
		map_give(first + n, old - n, MAP_DIRTY);
	}
	if (core()->damage)
		os_die("damaged records of free pages", core()->damage);
	peak = MAX(peak, used());
	mem_unlock(&lock);
	return done;
}

/* ---- giving back ---- */

static bool is_free(size_t slice)
{
	return map_get(slice) <= MAP_DIRTY;
}

/* Where the free run begins that @slice is in. What precedes a run never looks free. */
static size_t run_start(size_t slice)
{
	size_t at = run_hint;

	if (at && at <= slice && is_free(at) && !is_free(at - 1) &&
	    at + tlsf_granules(tag_at(at)) > slice)
		return at;
	for (at = slice; is_free(at - 1);)
		at--;
	run_hint = at;
	return at;
}

/* Takes @n slices from @slice on, which are part of the free run at @first, out of that. */
static void cut_out(size_t first, size_t slice, size_t n)
{
	struct tlsf_tag *t = tag_at(first), *after;
	uint32_t whole = t->size, front = tlsf_word((uint32_t)(slice - first));

	after = tlsf_after(TLSF_TABLE, t, whole);
	if (whole & TLSF_USED || after->prev != whole || !tlsf_unlink(core(), TLSF_TABLE, t))
		os_die("damaged records of free pages", slice_at(first));
	if (front) {
		t->size = front;
		tlsf_link(core(), t, front);
		t = tag_at(slice);
		t->prev = front;
		whole -= front;
	}
	tlsf_cut(core(), TLSF_TABLE, t, after, whole, tlsf_word((uint32_t)n));
}

/* Up to where the page of bitmaps begins that slice @at has a part of, as far as slices are clean.
 * What is dirty there will find these clean. */
static size_t widen_down(size_t first, size_t at)
{
	while (at > first && at % PAGES_BITS_SLICES && map_get(at - 1) == MAP_CLEAN)
		at--;
	return at;
}

/* Dirty slices from @at on, and whatever is free up to where their last page of bitmaps ends; no
 * more than @max dirty ones, of which *@ret_last is the last. Returns how many. */
static size_t widen_up(size_t at, size_t end, size_t max, size_t *ret_last, size_t *ret_hi)
{
	size_t hi = at, n = 0;
	bool is_dirty = true;

	for (; hi < end; hi++) {
		is_dirty = map_get(hi) == MAP_DIRTY;
		if (is_dirty ? n == max : hi % PAGES_BITS_SLICES == 0)
			break;
		n += is_dirty;
		if (is_dirty)
			*ret_last = hi;
	}
	*ret_hi = hi;
	return n;
}

static void hold_locked(size_t slice, size_t max, struct pages_held *ret)
{
	size_t first = run_start(slice), all = tlsf_granules(tag_at(first));
	size_t lo = widen_down(first, slice), hi, last = slice;
	size_t n = widen_up(slice, first + all, max, &last, &hi);

	for (size_t i = lo; i < hi; i++)
		map_set(i, MAP_HELD);
	cut_out(first, lo, hi - lo);
	dirty -= n;
	held += hi - lo;
	*ret = (struct pages_held){
		.record = (uint32_t)lo,
		.slices = (uint32_t)(hi - lo),
		.from = (uint32_t)slice,
		.to = (uint32_t)last + 1,
		.dirty = (uint32_t)n,
	};
}

bool pages_hold(size_t slice, size_t max, struct pages_held *ret)
{
	bool is_dirty;

	mem_lock(&lock);
	is_dirty = slice < end() && map_get(slice) == MAP_DIRTY;
	if (is_dirty)
		hold_locked(slice, max, ret);
	mem_unlock(&lock);
	return is_dirty;
}

void pages_let_go(struct pages_held *h, bool dropped)
{
	mem_lock(&lock);
	held -= h->slices;
	if (dropped)
		purged += (size_t)h->dirty << SLICE_LOG2;
	map_give(h->record, h->slices, MAP_CLEAN);
	if (!dropped)
		map_give(h->from, h->to - h->from, MAP_DIRTY);
	free_run(h->record);
	h->record = 0;
	mem_unlock(&lock);
}

/* ---- the rest ---- */

void pages_stats(struct pages_stats *ret)
{
	mem_lock(&lock);
	*ret = (struct pages_stats){
		.mapped = (end() - skipped) << SLICE_LOG2,
		.used = used() << SLICE_LOG2,
		.dirty = (dirty + held) << SLICE_LOG2,
		.peak = peak << SLICE_LOG2,
		.purged = purged,
	};
	mem_unlock(&lock);
}

size_t pages_dirty(void)
{
	size_t n;

	mem_lock(&lock);
	n = dirty;
	mem_unlock(&lock);
	return n << SLICE_LOG2;
}

size_t pages_dirty_low(void)
{
	size_t n;

	mem_lock(&lock);
	n = MIN(dirty_low, dirty);
	dirty_low = dirty;
	mem_unlock(&lock);
	return n << SLICE_LOG2;
}

void pages_lock(void)
{
	mem_lock(&lock);
}

void pages_unlock(void)
{
	mem_unlock(&lock);
}

void pages_reset(void)
{
	mem_lock_init(&lock);
}

static bool owns(void *arg, const struct tlsf_tag *t)
{
	return t >= tag_at(1) && t < tag_at(end()) && tag_at(slice_of_tag(t)) == t;
}

/* P11, for the run at @first. */
static const char *check_run(size_t first, size_t n, bool in_use, size_t *ndirty)
{
	/* Where something lay in the way, the slices are not ours, but in use as far as we care. */
	bool foreign = in_use && map_get(first) == MAP_FOREIGN;
	uint32_t inner = map_get(first) == MAP_HELD ? MAP_HELD : MAP_INNER;

	for (size_t i = first; i < first + n; i++) {
		uint32_t word = map_get(i);

		*ndirty += word == MAP_DIRTY;
		if (!in_use && word != MAP_CLEAN && word != MAP_DIRTY)
			return "a free slice has an owner";
		if (foreign && word != MAP_CLEAN && word != MAP_FOREIGN)
			return "a slice of somebody else's is said to be ours";
		if (in_use && !foreign && word <= MAP_DIRTY)
			return "a slice in use is said to be free";
		if (in_use && !foreign && i != first && word != inner)
			return "a run's first slice is not where it should be";
	}
	return NULL;
}

static const char *check_map(void)
{
	const char *what = NULL;
	size_t ndirty = 0;

	for (size_t at = 1, n; at < end() && !what; at += n) {
		struct tlsf_tag *t = tag_at(at);

		n = tlsf_granules(t);
		what = check_run(at, n, t->size & TLSF_USED, &ndirty);
	}
	if (!what && ndirty != dirty)
		return "the count of dirty slices is wrong";
	return what;
}

const char *pages_check(void)
{
	struct tlsf_count count = { 0 };
	struct tlsf_fault f = { 0 };
	const char *what;

	mem_lock(&lock);
	if (end() > 1)
		f = tlsf_check_pool(core(), TLSF_TABLE, tag_at(1), (uint32_t)(end() - 1), owns,
				    NULL, &count);
	if (!f.what)
		f = tlsf_check_lists(core(), owns, NULL, &count);
	what = f.what ? f.what : check_map();
	mem_unlock(&lock);
	return what;
}
