/* SPDX-License-Identifier: MIT */
/* bench/region/page-sizes.c - the sizes that real 4 KiB pages have once compressed, as a compressed
 * swap or a hypervisor's page store keeps them.
 *
 *	page-sizes [--seed N] [--count N] lz4|zstd DIRECTORY...
 *
 * Takes pages at random from all files below the directories, each page of each file with the same
 * chance, until @count are compressed, and prints their sizes, one a line. Left out is what such a
 * store does not keep in this form: pages that are one word repeated (a number is enough) and pages
 * that do not get smaller (they stay pages). The same files and seed give the same sizes. */
#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <lz4.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

#include "base/bits.h"
#include "base/prng.h"

enum { PAGE = 4096, ZSTD_LEVEL = 3, TRIES = 8 };

struct file {
	char *path;
	uint64_t first_page;            /* how many pages the files before it have */
};

struct files {
	struct file *list;
	size_t count, room;
	uint64_t pages;
};

static _Noreturn void die(const char *what, int code)
{
	fprintf(stderr, "page-sizes: %s: %s\n", what, strerror(code));
	exit(1);
}

static void files_add(struct files *f, const char *path, uint64_t pages)
{
	if (f->count == f->room) {
		f->room = f->room ? 2 * f->room : 1024;
		f->list = reallocarray(f->list, f->room, sizeof(*f->list));
		if (!f->list)
			die("the list of files", ENOMEM);
	}
	f->list[f->count].path = strdup(path);
	if (!f->list[f->count].path)
		die("the list of files", ENOMEM);
	f->list[f->count++].first_page = f->pages;
	f->pages += pages;
}

static int by_name(const FTSENT **a, const FTSENT **b)
{
	return strcmp((*a)->fts_name, (*b)->fts_name);
}

static void files_find(struct files *f, char **directories)
{
	FTS *fts = fts_open(directories, FTS_PHYSICAL | FTS_XDEV | FTS_NOCHDIR, by_name);
	FTSENT *e;

	if (!fts)
		die(directories[0], errno);
	while ((e = fts_read(fts)))
		if (e->fts_info == FTS_F && e->fts_statp->st_size >= PAGE)
			files_add(f, e->fts_path, (uint64_t)e->fts_statp->st_size / PAGE);
	fts_close(fts);
}

/* Page @n of all. False where it cannot be read. */
static bool read_page(const struct files *f, uint64_t n, unsigned char *page)
{
	size_t low = 0, high = f->count;
	ssize_t got;
	int fd;

	while (high - low > 1) {
		size_t middle = low + (high - low) / 2;

		if (f->list[middle].first_page <= n)
			low = middle;
		else
			high = middle;
	}
	fd = open(f->list[low].path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	got = pread(fd, page, PAGE, (off_t)((n - f->list[low].first_page) * PAGE));
	close(fd);
	return got == PAGE;
}

static bool is_one_word(const unsigned char *page)
{
	return !memcmp(page, page + sizeof(uint64_t), PAGE - sizeof(uint64_t));
}

/* The bytes that @page has once compressed. */
static size_t size_lz4(const unsigned char *page)
{
	char out[LZ4_COMPRESSBOUND(PAGE)];

	return (size_t)LZ4_compress_default((const char *)page, out, PAGE, sizeof(out));
}

static size_t size_zstd(const unsigned char *page)
{
	char out[ZSTD_COMPRESSBOUND(PAGE)];
	size_t size = ZSTD_compress(out, sizeof(out), page, PAGE, ZSTD_LEVEL);

	if (ZSTD_isError(size))
		die(ZSTD_getErrorName(size), EINVAL);
	return size;
}

struct options {
	uint64_t seed, count;
	size_t (*size)(const unsigned char *page);
	char **directories;
};

static struct options parse(int argc, char **argv)
{
	struct options o = { .seed = 1, .count = 100000 };

	for (; argc > 2 && argv[1][0] == '-'; argc -= 2, argv += 2) {
		uint64_t value = strtoull(argv[2], NULL, 10);

		if (!strcmp(argv[1], "--seed"))
			o.seed = value;
		else if (!strcmp(argv[1], "--count"))
			o.count = value;
		else
			die(argv[1], EINVAL);
	}
	if (argc < 3)
		die("no method or no directory given", EINVAL);
	if (strcmp(argv[1], "lz4") && strcmp(argv[1], "zstd"))
		die(argv[1], EINVAL);
	o.size = strcmp(argv[1], "lz4") ? size_zstd : size_lz4;
	o.directories = argv + 2;
	return o;
}

int main(int argc, char **argv)
{
	struct options o = parse(argc, argv);
	struct prng prng = { o.seed };
	struct files f = { 0 };
	unsigned char page[PAGE];

	files_find(&f, o.directories);
	if (!f.pages)
		die("no pages to compress", ENOENT);
	for (uint64_t tries = o.count * TRIES; o.count && tries; tries--) {
		size_t size;

		if (!read_page(&f, prng_below(&prng, f.pages), page) || is_one_word(page))
			continue;
		size = o.size(page);
		if (size >= PAGE)
			continue;
		printf("%zu\n", size);
		o.count--;
	}
	if (o.count)
		die("too few pages", ENOENT);
	for (size_t i = 0; i < f.count; i++)
		free(f.list[i].path);
	free(f.list);
	return 0;
}
