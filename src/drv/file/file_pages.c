/* SPDX-License-Identifier: MIT */
/* drv/file/file_pages.c - leaves the host's page cache as it was found.
 *
 * Who reads or writes a whole file once has no use for its pages afterwards, and others have use
 * for the memory. So a node that is opened with drop_pages notes, before anything is read, which
 * pages of the file are there, and drops those that it has brought in behind itself: a batch at a
 * time on a worker, and what is left when it is closed. What has been written is written back
 * first. Nothing is read ahead, for nobody would know whose pages those are.
 *
 * A file that is read, and of which next to nothing is there, is read past the page cache at once.
 *
 * What was there is told by cachestat(2), a window at a time, and page by page by mincore(2) where
 * a window was there in part. Where neither can tell, everything is taken to have been there.
 *
 * Invariants:
 *	F14 a page that was in the page cache when the file was opened is never dropped;
 *	F15 when the node is gone, no page is left that it brought in and that nobody else uses, but
 *	    for those in windows beyond PAGES_MIXED_MAX that were there in part. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/bits.h"
#include "drv/file/file_impl.h"

#ifndef __NR_cachestat
#define __NR_cachestat 451              /* Linux 6.5, on all architectures */
#endif

enum {
	PAGE = 4096,                    /* or more: whole pages are told of as several */
	WINDOW_PAGES = 16384,
	PAGES_MIXED_MAX = 4096,         /* windows with a bitmap each: 8 MiB */
	COLD_SHARE = 8,                 /* one in so many pages is next to nothing */
	TOUCHED_MAX = 64,
	TOUCHED_BYTES = 8 << 20,        /* a batch */
};

#define WINDOW ((uint64_t)WINDOW_PAGES * PAGE)

struct touched {
	uint64_t off, end;
};

struct file_pages {
	int fd;                         /* borrowed from the node, as is what follows */
	uint64_t size;                  /* of the file, at first */
	uint64_t nwindows;
	/* NULL: none of a window's pages was there; &all_there: all; else a bit for each. */
	uint64_t **windows;
	bool is_written;

	/* The home loop's. */
	struct touched touched[TOUCHED_MAX];
	unsigned ntouched;
	uint64_t bytes;
	struct work work;
	bool is_running;
	struct fiber_queue ended;
	/* The worker's while it runs. */
	struct touched batch[TOUCHED_MAX];
	unsigned nbatch;
};

static uint64_t all_there;

/* ---- what was there ---- */

/* Pages of [@off, @off + @len) that are cached; negative: it cannot be told so. */
static int64_t count_cached(int fd, uint64_t off, uint64_t len)
{
	struct { uint64_t off, len; } range = { off, len };
	struct { uint64_t cached, dirty, writeback, evicted, recently; } stat = { 0 };

	if (syscall(__NR_cachestat, fd, &range, &stat, 0) < 0)
		return -errno;
	return (int64_t)stat.cached;
}

/* Fills a window's bitmap. False: it cannot be told. */
static bool look_closely(int fd, uint64_t off, uint64_t len, uint64_t *bits)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	unsigned char *there = malloc(len / page + 1);
	void *map = there ? mmap(NULL, len, PROT_READ, MAP_SHARED, fd, (off_t)off) : MAP_FAILED;
	bool ok = map != MAP_FAILED && !mincore(map, len, there);

	for (uint64_t at = 0; ok && at < len; at += PAGE)
		if (there[at / page] & 1)
			bits[at / PAGE / 64] |= 1ULL << (at / PAGE % 64);
	if (map != MAP_FAILED)
		munmap(map, len);
	free(there);
	return ok;
}

/* Returns what windows[] says. */
static uint64_t *look_at_window(int fd, uint64_t off, uint64_t len, unsigned *mixed)
{
	int64_t n = count_cached(fd, off, len);
	uint64_t *bits;

	if (!n)
		return NULL;
	if (n == (int64_t)((len + PAGE - 1) / PAGE) || *mixed == PAGES_MIXED_MAX)
		return &all_there;
	bits = calloc(WINDOW_PAGES / 64, sizeof(*bits));
	if (!bits || !look_closely(fd, off, len, bits)) {
		free(bits);
		return &all_there;
	}
	++*mixed;
	return bits;
}

bool file_pages_is_cold(const struct file_node *fn)
{
	int64_t n = count_cached(fn->fd, 0, file_size(fn));
	struct stat st;

	return n >= 0 && !fstat(fn->fd, &st) &&
	       n * PAGE * COLD_SHARE <= (int64_t)st.st_blocks * 512;
}

int file_pages_new(const struct file_node *fn, struct file_pages **ret)
{
	struct file_pages *p = calloc(1, sizeof(*p));
	uint64_t size = file_size(fn);
	unsigned mixed = 0;

	if (!p)
		return -ENOMEM;
	p->fd = fn->fd;
	p->size = size;
	p->is_written = !fn->node.read_only;
	if (count_cached(fn->fd, 0, size)) {
		p->nwindows = (size + WINDOW - 1) / WINDOW;
		p->windows = calloc(MAX(p->nwindows, (uint64_t)1), sizeof(*p->windows));
		if (!p->windows) {
			free(p);
			return -ENOMEM;
		}
	}
	for (uint64_t i = 0; i < p->nwindows; i++)
		p->windows[i] = look_at_window(fn->fd, i * WINDOW, MIN(size - i * WINDOW, WINDOW),
					       &mixed);
	posix_fadvise(fn->fd, 0, 0, POSIX_FADV_RANDOM);
	*ret = p;
	return 0;
}

/* ---- dropping ---- */

static bool was_there(const struct file_pages *p, uint64_t off)
{
	uint64_t *bits = off / WINDOW < p->nwindows ? p->windows[off / WINDOW] : NULL;
	uint64_t page = off % WINDOW / PAGE;

	return bits && (bits == &all_there || (bits[page / 64] >> (page % 64) & 1));
}

/* The end of what is like @off, in pages or whole windows, at most @end. */
static uint64_t alike_end(const struct file_pages *p, uint64_t off, uint64_t end)
{
	bool first = was_there(p, off);

	while (off < end && was_there(p, off) == first) {
		uint64_t *bits = off / WINDOW < p->nwindows ? p->windows[off / WINDOW] : NULL;

		if (off >= p->nwindows * WINDOW)
			return end;
		off = bits && bits != &all_there ? align_down(off, PAGE) + PAGE :
						   align_down(off, WINDOW) + WINDOW;
	}
	return MIN(off, end);
}

static void drop(const struct file_pages *p, uint64_t off, uint64_t end)
{
	if (p->is_written)
		sync_file_range(p->fd, (off_t)off, (off_t)(end - off),
				SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
				SYNC_FILE_RANGE_WAIT_AFTER);
	for (uint64_t next; off < end; off = next) {
		next = alike_end(p, off, end);
		if (!was_there(p, off))
			posix_fadvise(p->fd, (off_t)off, (off_t)(next - off), POSIX_FADV_DONTNEED);
	}
}

static void drop_batch(struct work *w)
{
	struct file_pages *p = container_of(w, struct file_pages, work);

	for (unsigned i = 0; i < p->nbatch; i++)
		drop(p, p->batch[i].off, p->batch[i].end);
}

static void start(struct file_pages *p, struct loop *l)
{
	for (unsigned i = 0; i < p->ntouched; i++)
		p->batch[i] = p->touched[i];
	p->nbatch = p->ntouched;
	p->ntouched = 0;
	p->bytes = 0;
	p->is_running = true;
	loop_work(l, &p->work);
}

static void dropped(struct work *w)
{
	struct file_pages *p = container_of(w, struct file_pages, work);

	p->is_running = false;
	if (p->bytes >= TOUCHED_BYTES)
		start(p, w->loop);
	else
		fiber_queue_wake(&p->ended);
}

void file_pages_touch(struct file_chan *fc, uint64_t off, uint64_t len)
{
	struct file_pages *p = file_node(&fc->chan)->pages;
	struct touched *t = p->touched, *last = t + p->ntouched;

	if (fc->chan.loop != fc->chan.node->home)
		return;
	p->bytes += len;
	while (t < last && (off > t->end || off + len < t->off))
		t++;
	if (t < last) {
		t->off = MIN(t->off, off);
		t->end = MAX(t->end, off + len);
	} else if (p->ntouched < TOUCHED_MAX) {
		p->touched[p->ntouched++] = (struct touched) { off, off + len };
	}                                       /* else it is dropped at the end */
	if (p->is_running || (p->bytes < TOUCHED_BYTES && p->ntouched < TOUCHED_MAX))
		return;
	p->work.fn = drop_batch;
	p->work.done = dropped;
	start(p, fc->chan.loop);
}

void file_pages_idle_wait(struct file_chan *fc)
{
	struct file_pages *p = file_node(&fc->chan)->pages;

	while (p && fc->chan.loop == fc->chan.node->home && p->is_running)
		fiber_queue_wait(&p->ended);
}

void file_pages_free(struct file_pages *p)
{
	struct stat st;

	if (!p)
		return;
	drop(p, 0, MAX(fstat(p->fd, &st) ? 0 : (uint64_t)st.st_size, p->size));
	for (uint64_t i = 0; i < p->nwindows; i++)
		if (p->windows[i] != &all_there)
			free(p->windows[i]);
	free(p->windows);
	free(p);
}
