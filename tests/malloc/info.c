/* SPDX-License-Identifier: MIT */
/* tests/malloc/info.c - what malloc tells about itself, and gives back when it is asked. */
#include "case.h"

enum { BLOCKS = 60000, BLOCK = 1024 };

static void *blocks[BLOCKS];

static void take(void)
{
	for (unsigned i = 0; i < BLOCKS; i++) {
		blocks[i] = malloc(BLOCK);
		CHECK(blocks[i]);
		memset(blocks[i], 1, BLOCK);
	}
}

/* All but the last, which keeps the heap from simply getting shorter. */
static void give(void)
{
	for (unsigned i = 0; i < BLOCKS - 1; i++)
		free(blocks[i]);
}

static size_t in_use(void)
{
	struct mallinfo2 m = mallinfo2();

	return m.uordblks + m.hblkhd;
}

static void mallinfo2_counts(void)
{
	size_t at_first = in_use(), full, after, all = (size_t)BLOCKS * BLOCK;
	void *large;

	take();
	large = malloc(40 << 20);
	full = in_use();
	CHECK(full >= at_first + all + (40 << 20));
	CHECK(full <= at_first + all + all / 4 + (44 << 20));
	give();
	free(hide(large));
	after = in_use();
	CHECK(after >= BLOCK && after <= at_first + all / 10);
	CHECK(mallinfo2().fordblks <= mallinfo2().arena);
}

/* The older one has ints. */
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
static void mallinfo_is_mallinfo2(void)
{
	struct mallinfo2 now;
	struct mallinfo old;

	take();
	old = mallinfo();
	now = mallinfo2();
	CHECK(labs((long)now.uordblks - old.uordblks) < 100000 && old.uordblks > 0);
	CHECK(labs((long)now.arena - old.arena) < 1 << 20);
}

static void malloc_trim_gives_back(void)
{
	size_t full, after;

	take();
	full = resident_bytes();
	give();
	CHECK(malloc_trim(0) == 1);
	after = resident_bytes();
	CHECK(full >= after + (size_t)BLOCKS * BLOCK / 100 * 98);
	CHECK(is_filled("", 0, 0) && *(char *)blocks[BLOCKS - 1] == 1);
	take();
}

/* Every page in which nothing lives goes, also between blocks that live. */
static void malloc_trim_finds_pages_between(void)
{
	size_t full, after;

	take();
	full = resident_bytes();
	for (unsigned i = 0; i < BLOCKS; i++) {
		if (i / 32 % 8)
			free(blocks[i]);
	}
	malloc_trim(0);
	after = resident_bytes();
	CHECK(full >= after + (size_t)BLOCKS * BLOCK / 100 * 70);
	for (unsigned i = 0; i < BLOCKS; i++)
		CHECK(i / 32 % 8 || *(char *)blocks[i] == 1);
}

static void malloc_info_is_xml(void)
{
	char *text = NULL;
	size_t len, end;
	FILE *f = open_memstream(&text, &len);

	CHECK(f && malloc_info(0, f) == 0 && !fclose(f));
	CHECK(!strncmp(text, "<malloc", 7));
	end = len > 10 ? len - 10 : 0;
	CHECK(!strcmp(text + end, "</malloc>\n"));
	free(text);
	f = tmpfile();
	CHECK(f && malloc_info(1, f) == EINVAL && ftell(f) == 0);
	fclose(f);
}

static void malloc_stats_goes_to_stderr(void)
{
	char text[100] = "";
	FILE *f = tmpfile();
	int saved = dup(STDERR_FILENO);
	ssize_t n;

	CHECK(f && saved >= 0 && dup2(fileno(f), STDERR_FILENO) >= 0);
	malloc_stats();
	fflush(stderr);
	CHECK(dup2(saved, STDERR_FILENO) >= 0);
	n = pread(fileno(f), text, sizeof(text) - 1, 0);
	CHECK(n > 10 && strchr(text, '\n'));
	fclose(f);
}

static void mallopt_accepts(void)
{
	CHECK(mallopt(M_TRIM_THRESHOLD, 1 << 20) == 1);
	CHECK(mallopt(M_TOP_PAD, 1 << 20) == 1);
	CHECK(mallopt(M_MMAP_THRESHOLD, 1 << 20) == 1);
	CHECK(mallopt(M_MMAP_MAX, 1000) == 1);
	CHECK(mallopt(M_ARENA_MAX, 2) == 1);
	CHECK(mallopt(M_CHECK_ACTION, 3) == 1);
	free(malloc(2 << 20));
	take();
	give();
}

/* As gperftools has them in C: programs built for it find them by name. */
static void extension_release(void)
{
	void (*release)(void) = must_find("MallocExtension_ReleaseFreeMemory");
	size_t full, after;

	take();
	full = resident_bytes();
	give();
	release();
	after = resident_bytes();
	CHECK(full >= after + (size_t)BLOCKS * BLOCK / 100 * 90);
}

static void extension_numbers(void)
{
	int (*get)(const char *, size_t *) = must_find("MallocExtension_GetNumericProperty");
	size_t before = 7, used = 7, heap = 7, none = 7, all = (size_t)BLOCKS * BLOCK;

	CHECK(get("generic.current_allocated_bytes", &before) == 1);
	take();
	CHECK(get("generic.current_allocated_bytes", &used) == 1);
	CHECK(used >= before + all && used < before + all * 5 / 4);
	CHECK(get("generic.heap_size", &heap) == 1 && heap >= used);
	CHECK(get("tcmalloc.pageheap_free_bytes", &none) == 1 && none != 7);
	CHECK(get("no.such.property", &none) == 0);
}

static void extension_asks_about_blocks(void)
{
	int (*own)(const void *) = (int (*)(const void *))must_find("MallocExtension_GetOwnership");
	int (*verify)(const void *) = must_find("MallocExtension_VerifyMallocMemory");
	int (*all)(void) = must_find("MallocExtension_VerifyAllMemory");
	int (*stats)(int *, size_t *, int *) = must_find("MallocExtension_MallocMemoryStats");
	int n = 0, histogram[64] = { 0 }, here, sum = 0;
	char *small = malloc(100), *big = malloc(5 << 20);
	size_t total = 0;

	CHECK(own(small) == 1 && own(big) == 1 && own(&here) == 2);
	CHECK(verify(small) && verify(big) && all());
	CHECK(stats(&n, &total, histogram));
	if (is_byre()) {
		CHECK(!verify(small + 16) && !verify(big + PAGE) && !verify(&here));
		CHECK(n >= 2 && total >= 5 << 20);
		for (unsigned i = 0; i < 64; i++)
			sum += histogram[i];
		CHECK(sum == n);
	}
	free(small);
	free(big);
}

/* A program that was built for tcmalloc alone. */
static void names_of_tcmalloc(void)
{
	void *(*tc_malloc)(size_t) = must_find("tc_malloc");
	void *(*tc_realloc)(void *, size_t) = must_find("tc_realloc");
	void (*tc_free)(void *) = must_find("tc_free");
	size_t (*tc_malloc_size)(void *) = must_find("tc_malloc_size");
	size_t (*tc_nallocx)(size_t, int) = must_find("tc_nallocx");
	size_t (*cached)(void) = must_find("MallocExtension_GetThreadCacheSize");
	const char *(*version)(int *, int *, const char **) = must_find("tc_version");
	int major = 0, minor = -1;
	const char *patch = NULL;
	char *p = tc_malloc(100);

	CHECK(p && tc_malloc_size(p) >= 100 && tc_nallocx(100, 0) == tc_malloc_size(p));
	CHECK(tc_nallocx(100, 12) >= 4096);
	p = tc_realloc(p, 3000);
	CHECK(p && malloc_usable_size(p) >= 3000);
	tc_free(p);
	CHECK(cached() >= 3000);
	CHECK(*version(&major, &minor, &patch) && major >= 2 && minor >= 0 && patch);
}

const struct test_case cases_info[] = {
	{ .name = "mallinfo2_counts", .run = mallinfo2_counts },
	{ .name = "mallinfo_is_mallinfo2", .run = mallinfo_is_mallinfo2 },
	{ .name = "malloc_trim_gives_back", .run = malloc_trim_gives_back },
	{ .name = "malloc_trim_finds_pages_between", .run = malloc_trim_finds_pages_between },
	{ .name = "malloc_info_is_xml", .run = malloc_info_is_xml },
	{ .name = "malloc_stats_goes_to_stderr", .run = malloc_stats_goes_to_stderr },
	{ .name = "mallopt_accepts", .run = mallopt_accepts },
	{ .name = "extension_release", .run = extension_release },
	{ .name = "extension_numbers", .run = extension_numbers },
	{ .name = "extension_asks_about_blocks", .run = extension_asks_about_blocks },
	{ .name = "names_of_tcmalloc", .run = names_of_tcmalloc },
	{ .name = NULL },
};
