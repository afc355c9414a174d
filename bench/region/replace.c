/* SPDX-License-Identifier: MIT */
/* bench/region/replace.c - objects of given sizes, replaced at random at a fixed number alive.
 *
 *	replace [options] region|slab|malloc|none held|freed|cpu
 *	--sizes FILE            the sizes of all objects, one a line (page-sizes);
 *	--uniform LOW:HIGH      or any between the two, for 100000 objects
 *	--alive N               how many objects are alive at any time (60000)
 *	--replace N             how many are replaced (1200000)
 *	--region BYTES          what the subject takes from the system at a time (65536)
 *	--seed N
 *
 * held    bytes held for each byte alive: mean and worst of samples over the second half.
 * freed   then 70 % of the objects are freed, chosen at random, and the subject is asked to give
 *         back what is free: how many of the pages in which no object is left the kernel has taken.
 * cpu     CPU time of a call, alloc and free alike, while replacing. Each object's first bytes are
 *         written. `none' allocates nothing: the cost of the harness, to be taken off.
 *
 * As in a store of pages, an object is there once at most: the next to come is one of those that
 * are not alive. Every subject sees the same calls. A JSON line is printed. */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/prng.h"
#include "subject.h"

enum { SAMPLE_EVERY = 1000, FREED_PERCENT = 70, STEPS = 1 << 21,
       OBJECTS_MAX = 1 << 20, OBJECTS_UNIFORM = 100000 };

/* The first @alive of them are. */
struct object {
	char *p;
	uint32_t size;
};

/* One replacement of the trace: the objects at two places change places. */
struct step {
	uint32_t goes, comes;
};

static struct options {
	const struct subject *subject;
	const char *mode, *sizes_path;
	uint64_t low, high, alive, replace, region, seed;
} o = { .alive = 60000, .replace = 1200000, .region = 65536, .seed = 1 };

static struct object *objects;
static size_t count;
static uint64_t live;           /* bytes */
static struct prng prng;

static _Noreturn void die(const char *what, int code)
{
	fprintf(stderr, "replace: %s: %s\n", what, strerror(code));
	exit(1);
}

/* Memory of the harness, which must not come from the subject. */
static void *map(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (p == MAP_FAILED)
		die("mmap", errno);
	return p;
}

/* ---- the subject that is none ---- */

static char nothing[PAGE];

static void none_open(size_t region_bytes)
{
	(void)region_bytes;
}

static void *none_alloc(size_t size)
{
	(void)size;
	return nothing;
}

static void none_free(void *p, size_t size)
{
	(void)p;
	(void)size;
}

static const struct subject subject_none = {
	.name = "none", .open = none_open, .alloc = none_alloc, .free = none_free,
};

/* ---- objects ---- */

static void objects_read(const char *path)
{
	FILE *in = fopen(path, "r");
	unsigned size;

	if (!in)
		die(path, errno);
	while (count < OBJECTS_MAX && fscanf(in, "%u", &size) == 1)
		objects[count++].size = size;
	fclose(in);
}

static void objects_open(void)
{
	objects = map(OBJECTS_MAX * sizeof(*objects));
	if (o.sizes_path)
		objects_read(o.sizes_path);
	else
		while (count < OBJECTS_UNIFORM)
			objects[count++].size =
				(uint32_t)(o.low + prng_below(&prng, o.high - o.low + 1));
	if (count <= o.alive)
		die("there are not more objects than shall be alive", EINVAL);
}

/* ---- replacing ---- */

static void object_alloc(struct object *obj)
{
	obj->p = o.subject->alloc(obj->size);
	if (!obj->p)
		die("no memory", ENOMEM);
	live += obj->size;
	memset(obj->p, 1, obj->size);
}

static void object_free(struct object *obj)
{
	o.subject->free(obj->p, obj->size);
	live -= obj->size;
	obj->p = NULL;
}

static struct step next_step(void)
{
	return (struct step){
		.goes = (uint32_t)prng_below(&prng, o.alive),
		.comes = (uint32_t)(o.alive + prng_below(&prng, count - o.alive)),
	};
}

static void swap(struct step s)
{
	struct object goes = objects[s.goes];

	objects[s.goes] = objects[s.comes];
	objects[s.comes] = goes;
}

static size_t resident(void)
{
	unsigned long all, here = 0;
	FILE *in = fopen("/proc/self/statm", "r");

	if (!in || fscanf(in, "%lu %lu", &all, &here) != 2)
		die("/proc/self/statm", errno);
	fclose(in);
	return here * (size_t)sysconf(_SC_PAGESIZE);
}

static void measure_held(bool print)
{
	size_t before = resident();
	double sum = 0, worst = 0;
	unsigned samples = 0;

	for (uint64_t i = 0; i < o.alive; i++)
		object_alloc(&objects[i]);
	for (uint64_t i = 0; i < o.replace; i++) {
		struct step s = next_step();
		double ratio;

		object_free(&objects[s.goes]);
		swap(s);
		object_alloc(&objects[s.goes]);
		if (!print || i < o.replace / 2 || i % SAMPLE_EVERY)
			continue;
		ratio = (double)(o.subject->held ? o.subject->held() : resident() - before) /
			(double)live;
		sum += ratio;
		worst = MAX(worst, ratio);
		samples++;
	}
	if (print)
		printf("{\"subject\": \"%s\", \"region\": %llu, \"mean_size\": %.0f, "
		       "\"held\": %.4f, \"worst\": %.4f}\n", o.subject->name,
		       (unsigned long long)o.region, (double)live / (double)o.alive,
		       sum / samples, worst);
}

/* ---- what is given back ---- */

static bool is_resident(uintptr_t page)
{
	unsigned char in;

	return mincore((void *)page, PAGE, &in) == 0 && (in & 1);
}

static int by_number(const void *a, const void *b)
{
	uintptr_t x = *(const uintptr_t *)a, y = *(const uintptr_t *)b;

	return (x > y) - (x < y);
}

/* Appends the pages that @obj touches to @pages, which has @n. */
static size_t add_pages(uintptr_t *pages, size_t n, const struct object *obj)
{
	uintptr_t end = (uintptr_t)obj->p + obj->size;

	for (uintptr_t p = align_down((uintptr_t)obj->p, PAGE); p < end; p += PAGE)
		pages[n++] = p;
	return n;
}

/* Sorts and drops doubles. */
static size_t make_set(uintptr_t *pages, size_t n)
{
	size_t kept = 0;

	qsort(pages, n, sizeof(*pages), by_number);
	for (size_t i = 0; i < n; i++)
		if (!kept || pages[kept - 1] != pages[i])
			pages[kept++] = pages[i];
	return kept;
}

static void measure_freed(void)
{
	size_t room = o.alive * 3, nfreed = 0, nlive = 0, empty = 0, back = 0;
	uintptr_t *freed = map(room * sizeof(*freed)), *kept = map(room * sizeof(*kept));

	measure_held(false);
	for (uint64_t i = 0; i < o.alive; i++) {
		struct object *obj = &objects[i];

		if (prng_below(&prng, 100) < FREED_PERCENT) {
			nfreed = add_pages(freed, nfreed, obj);
			object_free(obj);
		} else {
			nlive = add_pages(kept, nlive, obj);
		}
	}
	nfreed = make_set(freed, nfreed);
	nlive = make_set(kept, nlive);
	o.subject->release();
	for (size_t i = 0; i < nfreed; i++) {
		if (bsearch(&freed[i], kept, nlive, sizeof(*kept), by_number))
			continue;
		empty++;
		back += !is_resident(freed[i]);
	}
	for (uint64_t i = 0; i < o.alive; i++)          /* nothing in use may have been taken */
		for (uint32_t k = 0; objects[i].p && k < objects[i].size; k++)
			if (objects[i].p[k] != 1)
				die("an object has lost its content", EIO);
	printf("{\"subject\": \"%s\", \"region\": %llu, \"empty_pages\": %zu, \"back\": %zu, "
	       "\"percent\": %.2f}\n", o.subject->name, (unsigned long long)o.region, empty, back,
	       100 * (double)back / (double)MAX(empty, (size_t)1));
}

/* ---- what it costs ---- */

static double cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

static void run_steps(const struct step *steps, size_t n)
{
	const struct subject *s = o.subject;

	for (size_t i = 0; i < n; i++) {
		struct object *obj = &objects[steps[i].goes];

		s->free(obj->p, obj->size);
		swap(steps[i]);
		obj->p = s->alloc(obj->size);
		if (!obj->p)
			die("no memory", ENOMEM);
		memcpy(obj->p, &i, sizeof(i));
	}
}

static void measure_cpu(void)
{
	size_t n = MIN(o.replace, (uint64_t)STEPS);
	struct step *steps = map(n * sizeof(*steps));
	double ns;

	for (size_t i = 0; i < n; i++)
		steps[i] = next_step();
	measure_held(false);
	ns = cpu_ns();
	run_steps(steps, n);
	ns = cpu_ns() - ns;
	printf("{\"subject\": \"%s\", \"region\": %llu, \"ns\": %.2f}\n", o.subject->name,
	       (unsigned long long)o.region, ns / (double)(2 * n));
}

/* ---- options ---- */

static const struct subject *subject_find(const char *name)
{
	static const struct subject *const all[] = {
		&subject_region, &subject_slab, &subject_malloc, &subject_none,
	};

	for (size_t i = 0; i < ARRAY_SIZE(all); i++)
		if (!strcmp(all[i]->name, name))
			return all[i];
	die(name, EINVAL);
}

static void parse_option(const char *name, const char *value)
{
	char *end;
	uint64_t n = strtoull(value, &end, 10);

	if (!strcmp(name, "--sizes")) {
		o.sizes_path = value;
	} else if (!strcmp(name, "--uniform")) {
		o.low = n;
		o.high = *end == ':' ? strtoull(end + 1, NULL, 10) : 0;
	} else if (!strcmp(name, "--alive")) {
		o.alive = n;
	} else if (!strcmp(name, "--replace")) {
		o.replace = n;
	} else if (!strcmp(name, "--region")) {
		o.region = n;
	} else if (!strcmp(name, "--seed")) {
		o.seed = n;
	} else {
		die(name, EINVAL);
	}
}

int main(int argc, char **argv)
{
	for (; argc > 3 && argv[1][0] == '-'; argc -= 2, argv += 2)
		parse_option(argv[1], argv[2]);
	if (argc != 3)
		die("give a subject and a mode", EINVAL);
	o.subject = subject_find(argv[1]);
	if (!o.sizes_path && (!o.low || o.high < o.low))
		die("give --sizes or --uniform", EINVAL);
	if (!o.alive || !is_pow2(o.region) || o.region < PAGE)
		die("--alive, --region", EINVAL);
	prng.state = o.seed;
	objects_open();
	o.subject->open(o.region);
	if (!strcmp(argv[2], "held"))
		measure_held(true);
	else if (!strcmp(argv[2], "freed"))
		measure_freed();
	else if (!strcmp(argv[2], "cpu"))
		measure_cpu();
	else
		die(argv[2], EINVAL);
	return 0;
}
