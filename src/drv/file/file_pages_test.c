/* SPDX-License-Identifier: MIT */
/* What is in the page cache before and after a file was read or written through a node. */
#include "drv/file/file_test_util.h"

#include <sys/mman.h>

enum { PAGE = 4096, SIZE = 6 << 20, PAGES = SIZE / PAGE, PIECE = 256 << 10 };

struct trial {
	char path[32];
	int fd;
	bool writable;
	unsigned char before[PAGES], after[PAGES];
	uint8_t buf[PIECE] __attribute__((aligned(PAGE)));
};

static void look(const struct trial *t, unsigned char *ret)
{
	void *map = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, t->fd, 0);

	assert_true(map != MAP_FAILED);
	assert_int_equal(mincore(map, SIZE, ret), 0);
	munmap(map, SIZE);
	for (unsigned i = 0; i < PAGES; i++)
		ret[i] &= 1;
}

static unsigned count(const unsigned char *pages)
{
	unsigned n = 0;

	for (unsigned i = 0; i < PAGES; i++)
		n += pages[i];
	return n;
}

static void forget(const struct trial *t)
{
	assert_int_equal(fsync(t->fd), 0);
	assert_int_equal(posix_fadvise(t->fd, 0, 0, POSIX_FADV_DONTNEED), 0);
}

static int use_wait(void *arg)
{
	struct trial *t = arg;
	struct file_opts o = { .path = t->path, .fd = -1, .writable = t->writable,
			       .drop_pages = true, .no_lock = true };
	struct node *n;

	assert_int_equal(file_open_wait(&o, loop_current(), &n, NULL), 0);
	for (uint64_t off = 0; off < SIZE; off += PIECE) {
		if (t->writable)
			assert_int_equal(chan_write_wait(n->home_chan, off, t->buf, PIECE), 0);
		else
			assert_int_equal(chan_read_wait(n->home_chan, off, t->buf, PIECE), 0);
	}
	node_put_wait(n);
	return 0;
}

static void trial_open(struct trial *t)
{
	t->fd = temp_file(0, t->path);
	memset(t->buf, 7, sizeof(t->buf));
	for (uint64_t off = 0; off < SIZE; off += PIECE)
		assert_int_equal(pwrite(t->fd, t->buf, PIECE, (off_t)off), PIECE);
	assert_int_equal(posix_fadvise(t->fd, 0, 0, POSIX_FADV_RANDOM), 0);
	forget(t);
	look(t, t->before);
	if (!count(t->before))
		return;
	unlink(t->path);
	close(t->fd);
	skip();                         /* a file system in memory */
}

static void trial_run(struct trial *t)
{
	struct loop *l = new_loop(LOOP_AUTO, 0);

	look(t, t->before);
	loop_call(l, use_wait, t);
	loop_free(l);
	look(t, t->after);
	unlink(t->path);
	close(t->fd);
}

/* Caches every @n-th page of [@first, @end). */
static void cache_pages(const struct trial *t, unsigned first, unsigned end, unsigned n)
{
	char byte;

	for (unsigned i = first; i < end; i += n)
		assert_int_equal(pread(t->fd, &byte, 1, (off_t)i * PAGE), 1);
}

/* The kernel takes pages that nobody seems to want whenever it likes, also where there is much free
 * memory (DAMON), and keeps those that it looks at just then, but not each time. */
static bool at_times(bool (*is_so)(unsigned how), unsigned how)
{
	for (unsigned tries = 0; tries < 10; tries++)
		if (is_so(how))
			return true;
	return false;
}

static bool none_stays(unsigned how)
{
	static struct trial t;

	t = (struct trial) { .writable = how };
	trial_open(&t);
	trial_run(&t);
	return !count(t.after);
}

static void f15_nothing_stays_of_what_was_not_there(void **state)
{
	for (unsigned how = 0; how < 2; how++)
		assert_true(at_times(none_stays, how));
}

/* Caches pages in one of several ways, and looks whether all of them stay. */
static bool all_stay(unsigned how)
{
	static struct trial t;

	t = (struct trial) { .writable = how % 2 && how < 6 };
	trial_open(&t);
	if (how < 2)
		cache_pages(&t, 0, PAGES, 1);
	else if (how < 4)
		cache_pages(&t, 0, PAGES, 3);
	else if (how < 6)
		cache_pages(&t, 100, 400, 1);
	else
		cache_pages(&t, 50, 60, 1);
	trial_run(&t);
	return count(t.before) >= (how < 6 ? PAGES / 6 : 10) &&
	       !memcmp(t.before, t.after, sizeof(t.before));
}

static void f14_what_was_there_stays(void **state)
{
	for (unsigned how = 0; how < 6; how++)
		assert_true(at_times(all_stay, how));
}

static void f14_a_few_pages_stay_where_the_rest_is_read_past_them(void **state)
{
	assert_true(at_times(all_stay, 6));
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(f15_nothing_stays_of_what_was_not_there),
		cmocka_unit_test(f14_what_was_there_stays),
		cmocka_unit_test(f14_a_few_pages_stay_where_the_rest_is_read_past_them),
	};

	return cmocka_run_group_tests(tests, setup_workers, teardown_workers);
}
