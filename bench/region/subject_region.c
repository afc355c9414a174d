/* SPDX-License-Identifier: MIT */
/* bench/region/subject_region.c - a region that takes its memory in pieces and gives back those
 * that are wholly free at once. Its own records are counted, too. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "byre/region.h"
#include "subject.h"

enum { RECORDS_MAX = 16384 };

static _Alignas(16) char records[RECORDS_MAX];
static size_t records_len, piece_bytes;
static struct byre_region *region;

static void *get_pages(void *cookie, size_t len)
{
	(void)cookie;
	return len <= piece_bytes ? memory_get() : NULL;
}

static void put_pages(void *cookie, void *mem, size_t len)
{
	(void)cookie;
	(void)len;
	memory_put(mem);
}

static void drop_pages(void *cookie, void *mem, size_t len)
{
	(void)cookie;
	memory_drop(mem, len);
}

static void report(void *cookie, const struct byre_region_fault *fault)
{
	(void)cookie;
	fprintf(stderr, "replace: %s at %p\n", fault->what, fault->where);
	exit(1);
}

static void region_open(size_t region_bytes)
{
	struct byre_region_config config = {
		.pool_max = region_bytes,
		.grow = region_bytes,
		.hooks = {
			.get_pages = get_pages, .put_pages = put_pages,
			.drop_pages = drop_pages, .report = report,
		},
	};

	memory_open(region_bytes);
	piece_bytes = region_bytes;
	records_len = byre_region_records(&config, 0);
	if (records_len <= sizeof(records))
		region = byre_region_init(records, records_len, &config);
	if (!region) {
		fputs("replace: cannot make a region\n", stderr);
		exit(1);
	}
}

static void *region_alloc(size_t size)
{
	return byre_region_alloc(region, size, 0);
}

static void region_free(void *p, size_t size)
{
	(void)size;
	byre_region_free(region, p);
}

static size_t region_held(void)
{
	return memory_held() + records_len;
}

static void region_release(void)
{
	struct byre_region_fault fault;

	byre_region_trim(region, SIZE_MAX);
	memory_drop_pieces();
	if (!byre_region_check(region, &fault))
		report(NULL, &fault);
}

const struct subject subject_region = {
	.name = "region",
	.open = region_open,
	.alloc = region_alloc,
	.free = region_free,
	.held = region_held,
	.release = region_release,
};
