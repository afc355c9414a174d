/* SPDX-License-Identifier: MIT */
/* mem/slab_test.c - classes, and slabs of each beside a list of what was handed out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/prng.h"
#include "mem/heap.h"

enum { OUT_MAX = 3000, STEPS = 1500, OWNER = 3 };

static struct slab_list list;
static unsigned class;
static unsigned char *out[OUT_MAX];     /* what was handed out */
static size_t outs;

/* ---- classes ---- */

static void classes_fit_and_waste_little(void **state)
{
	for (size_t size = 1; size <= CLASS_MAX; size++) {
		unsigned c = class_of(size);

		assert_true(c < CLASSES && class_size(c) >= size);
		assert_true(!c || class_size(c - 1) < size);
		if (size > 128)
			assert_true(class_size(c) - size < class_size(c) / 5);
		if (size > 1024)
			assert_true(class_size(c) - size < class_size(c) / 9);
	}
	assert_int_equal(class_size(CLASSES - 1), CLASS_MAX);
	for (unsigned c = 0; c < CLASSES; c++)
		assert_int_equal(class_of(class_size(c)), c);
}

static void aligned_classes_are_aligned(void **state)
{
	for (size_t align = 1; align <= SLICE_BYTES; align *= 2) {
		for (size_t size = 1; size <= CLASS_MAX; size += 1 + size / 50) {
			unsigned c = class_of_aligned(size, align);

			assert_true(c < CLASSES && class_size(c) >= size);
			for (unsigned i = 0; i < class_objects(c); i++)
				assert_int_equal(i * class_size(c) % align, 0);
		}
	}
}

/* All offsets of all classes. */
static void s12_only_objects_are_objects(void **state)
{
	for (unsigned c = 0; c < CLASSES; c++) {
		size_t size = class_size(c);

		for (uint32_t off = 0; off < SLICE_BYTES; off++) {
			bool is = class_is_object(class_mul(c), off);

			assert_int_equal(is, size > CLASS_SHARED_MAX ? !off : off % size == 0);
			if (is)
				assert_int_equal(class_index(class_mul(c), off), off / size);
		}
	}
}

/* ---- slabs ---- */

static void take(unsigned n)
{
	void *got[64];
	unsigned count = slab_take(&list, class, OWNER, got + 64, n);

	assert_true(count > 0 && count <= n);
	for (unsigned i = 0; i < count; i++) {
		unsigned char *p = got[64 - count + i];

		/* The lowest comes last. */
		if (i && slice_of(p) == slice_of(got[64 - count + i - 1]))
			assert_true(p < (unsigned char *)got[64 - count + i - 1]);
		assert_true(slab_is_out(p));
		assert_int_equal(map_of(p), OWNER << MAP_HEAP_SHIFT | class);
		for (size_t k = 0; k < outs; k++)
			assert_ptr_not_equal(out[k], p);
		p[0] = 1;
		p[class_size(class) - 1] = (unsigned char)(uintptr_t)p >> 4;
		out[outs++] = p;
	}
}

static void put(size_t which)
{
	unsigned char *p = out[which];

	assert_int_equal(p[0], 1);
	if (class_size(class) > 1)
		assert_int_equal(p[class_size(class) - 1], (unsigned char)(uintptr_t)p >> 4);
	out[which] = out[--outs];
	slab_put(&list, p);
}

/* Drops what can be dropped of the slab that @where is in, with some coming back meanwhile. */
static void drop_pages(const void *where, struct prng *p)
{
	uint32_t slab = (uint32_t)slice_of(where);
	uint16_t pages = slab_hold(&list, slab, false);

	if (!pages)
		return;
	for (size_t k = 0; k < outs; k++) {
		size_t from = slice_offset(out[k]) / OS_PAGE;
		size_t to = (slice_offset(out[k]) + class_size(class) - 1) / OS_PAGE;

		for (size_t page = from; slice_of(out[k]) == slab && page <= to; page++)
			assert_false(pages >> page & 1);
	}
	if (outs && prng_below(p, 2))
		put(prng_below(p, outs));
	for (unsigned page = 0; page < SLICE_BYTES / OS_PAGE; page++) {
		if (pages >> page & 1)
			os_drop((char *)slice_at(slab) + page * OS_PAGE, OS_PAGE);
	}
	slab_let_go(&list, slab, pages);
}

/* A slab is cold when two looks find the same, and holds nothing that costs memory after that. */
static void s14_only_cold_slabs_if_asked(void **state)
{
	void *p[64];
	uint32_t slab;

	class = class_of(1024);
	list = (struct slab_list){ 0 };
	assert_int_equal(slab_take(&list, class, OWNER, p + 64, 63), 63);
	slab = (uint32_t)slice_of(p[1]);
	for (unsigned i = 1; i < 64; i++) {
		assert_int_equal(slice_of(p[i]), slab);
		memset(p[i], 1, 1024);
		if (i > 16)
			slab_put(&list, p[i]);
	}
	assert_int_equal(slab_hold(&list, slab, true), 0);
	slab_put(&list, p[16]);
	assert_int_equal(slab_hold(&list, slab, true), 0);
	assert_int_equal(slab_hold(&list, slab, true), 0x0fff);
	assert_int_equal(list.first, 0);
	slab_let_go(&list, slab, 0x0fff);
	assert_int_equal(list.first, slab);
	assert_int_equal(slab_hold(&list, slab, false), 0);
	for (unsigned i = 1; i < 16; i++)
		slab_put(&list, p[i]);
	/* Free: not held, but gone. */
	assert_int_equal(slab_hold(&list, slab, false), 0);
	assert_int_equal(list.slabs, 0);
	assert_int_equal(map_of(p[1]), MAP_DIRTY);
}

static void use_class(unsigned c, struct prng *p)
{
	const char *wrong;

	class = c;
	list = (struct slab_list){ 0 };
	for (int step = 0; step < STEPS; step++) {
		unsigned n = 1 + (unsigned)prng_below(p, 63);
		/* Sometimes more is taken, sometimes more comes back. */
		bool takes = prng_below(p, 100) < (step / 200 % 2 ? 20 : 60);

		if (takes && outs + n <= OUT_MAX && outs * class_size(c) < 4 << 20)
			take(n);
		for (unsigned i = 0; !takes && i < n && outs; i++)
			put(prng_below(p, outs));
		for (size_t k = 0; outs && k < outs && step % 50 == 0; k += 1 + outs / 20)
			drop_pages(out[k], p);
		wrong = slab_check(&list, c, OWNER);
		if (wrong)
			fail_msg("class %u, step %d: %s", c, step, wrong);
	}
	while (outs)
		put(outs - 1);
	slab_trim(&list);
	assert_int_equal(list.first, 0);
	assert_int_equal(list.slabs, 0);
	assert_null(pages_check());
}

static void s11_s13_s14_slabs_hand_out_what_is_free(void **state)
{
	const unsigned some[] = { 0, 1, 5, 11, 19, 26, 40, 44, 58, 61, 70, CLASSES - 1 };
	struct prng p = { 5 };

	assert_true(heap_start());
	for (size_t i = 0; i < ARRAY_SIZE(some); i++)
		use_class(some[i], &p);
}

/* ---- what is no object ends the program ---- */

static void dies(size_t offset, int times)
{
	int status;
	pid_t pid;

	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		const struct rlimit no_core = { 0, 0 };
		void *p[3];

		setrlimit(RLIMIT_CORE, &no_core);
		signal(SIGABRT, SIG_DFL);
		close(STDERR_FILENO);
		if (slab_take(&list, 3, OWNER, p + 3, 3) != 3)
			_exit(1);
		for (int i = 0; i < times; i++)
			slab_put(&list, (char *)p[1] + offset);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

static void s11_s12_wrong_pointers_are_reported(void **state)
{
	list = (struct slab_list){ 0 };
	dies(0, 2);                     /* twice */
	dies(16, 1);                    /* inside */
	dies(1, 1);
	dies(64 * 200, 1);              /* never handed out */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(classes_fit_and_waste_little),
		cmocka_unit_test(aligned_classes_are_aligned),
		cmocka_unit_test(s12_only_objects_are_objects),
		cmocka_unit_test(s11_s13_s14_slabs_hand_out_what_is_free),
		cmocka_unit_test(s14_only_cold_slabs_if_asked),
		cmocka_unit_test(s11_s12_wrong_pointers_are_reported),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
