/* SPDX-License-Identifier: MIT */
/* Slots and addresses against a plain model, and memory that is taken away. */
#include "export/vub/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/prng.h"
#include "export/vub/descriptor.h"
#include "export/vub/guard.h"

enum { PAGE = 4096, FILE_PAGES = 64 };

static int make_file(unsigned pages)
{
	int fd = memfd_create("guest", 0);

	assert_true(fd >= 0 && !ftruncate(fd, (off_t)pages * PAGE));
	return fd;
}

static struct vub_memory *memory_new(void)
{
	struct vub_memory *mem = calloc(1, sizeof(*mem));

	assert_non_null(mem);
	return mem;
}

/* V14, V16: slots are added and removed at random; each address is where the model has it. */
static void v14_v16_addresses(void **state)
{
	struct vub_memory *mem = memory_new();
	struct vhost_user_region have[8] = { 0 };
	struct prng p = { 1 };
	int fd = make_file(FILE_PAGES);
	unsigned hint = 0;
	uint64_t len;

	for (unsigned round = 0; round < 3000; round++) {
		unsigned i = (unsigned)prng_below(&p, 8), mine = 8;
		uint64_t addr = prng_below(&p, 40 * PAGE);
		struct vhost_user_region r = {
			.guest_addr = prng_below(&p, 32) * PAGE,
			.size = (1 + prng_below(&p, 6)) * PAGE,
			.mmap_offset = prng_below(&p, 8) * PAGE,
		};
		bool is_free = true;

		r.user_addr = r.guest_addr + (1ULL << 40);
		for (unsigned k = 0; k < 8; k++)
			if (have[k].size && r.guest_addr < have[k].guest_addr + have[k].size &&
			    have[k].guest_addr < r.guest_addr + r.size)
				is_free = false;
		if (have[i].size) {
			assert_int_equal(vub_memory_remove(mem, &have[i]), 0);
			assert_int_equal(vub_memory_remove(mem, &have[i]), -ENOENT);
			have[i].size = 0;
		} else if (vub_memory_add(mem, &r, fd) == 0) {
			assert_true(is_free);
			have[i] = r;
		} else {
			assert_false(is_free);
		}
		for (unsigned k = 0; k < 8; k++)
			if (addr - have[k].guest_addr < have[k].size)
				mine = k;
		uint8_t *at = vub_memory_guest(mem, addr, &hint, &len);
		assert_int_equal(at != NULL, mine < 8);
		if (!at)
			continue;
		assert_int_equal(len, have[mine].guest_addr + have[mine].size - addr);
		assert_ptr_equal(vub_memory_user(mem, addr + (1ULL << 40), len), at);
		assert_null(vub_memory_user(mem, addr + (1ULL << 40), len + 1));
		uint64_t back;
		assert_true(vub_memory_where(mem, at, &back));
		assert_int_equal(back, addr);
	}
	vub_memory_clear(mem);
	assert_null(vub_memory_guest(mem, 0, &hint, &len));
	close(fd);
	free(mem);
}

static void v16_ranges_that_are_refused(void **state)
{
	struct vub_memory *mem = memory_new();
	int fd = make_file(4);
	struct vhost_user_region r = { .size = PAGE };

	r.guest_addr = UINT64_MAX - PAGE + 1;
	assert_int_equal(vub_memory_add(mem, &r, fd), -EINVAL);
	r = (struct vhost_user_region){ .size = PAGE, .user_addr = UINT64_MAX - 1 };
	assert_int_equal(vub_memory_add(mem, &r, fd), -EINVAL);
	r = (struct vhost_user_region){ .size = 0 };
	assert_int_equal(vub_memory_add(mem, &r, fd), -EINVAL);
	r = (struct vhost_user_region){ .size = 5 * PAGE };
	assert_int_equal(vub_memory_add(mem, &r, fd), -EINVAL);
	r = (struct vhost_user_region){ .size = PAGE, .mmap_offset = UINT64_MAX - 10 };
	assert_int_equal(vub_memory_add(mem, &r, fd), -EINVAL);
	r = (struct vhost_user_region){ .size = PAGE, .mmap_offset = 100 };
	assert_int_equal(vub_memory_add(mem, &r, fd), 0);
	assert_int_equal(vub_memory_add(mem, &r, -1), -EINVAL);
	r.guest_addr = 1 << 20;                 /* the user address is taken */
	assert_int_equal(vub_memory_add(mem, &r, fd), -EINVAL);
	for (unsigned i = 1; i < VUB_SLOTS_MAX; i++) {
		r.guest_addr = r.user_addr = (uint64_t)i * 2 * PAGE;
		assert_int_equal(vub_memory_add(mem, &r, fd), 0);
	}
	r.guest_addr = r.user_addr = 1ULL << 40;
	assert_int_equal(vub_memory_add(mem, &r, fd), -ENOSPC);
	vub_memory_clear(mem);
	close(fd);
	free(mem);
}

/* V13: zeros are read where the file has ended, and the memory is marked. */
static void v13_a_file_is_cut(void **state)
{
	struct vub_memory *mem = memory_new();
	int fd = make_file(8);
	struct vhost_user_region r = { .size = 8 * PAGE };
	unsigned hint = 0;
	uint64_t len;
	volatile uint8_t *at;

	assert_int_equal(vub_memory_add(mem, &r, fd), 0);
	at = vub_memory_guest(mem, 0, &hint, &len);
	at[5 * PAGE] = 7;
	assert_int_equal(ftruncate(fd, 2 * PAGE), 0);
	assert_false(vub_memory_is_lost(mem));
	at[PAGE] = 3;
	assert_false(vub_memory_is_lost(mem));
	assert_int_equal(at[5 * PAGE], 0);
	assert_true(vub_memory_is_lost(mem));
	at[6 * PAGE] = 9;
	assert_int_equal(at[6 * PAGE], 9);
	assert_int_equal(at[PAGE], 3);
	vub_memory_clear(mem);
	assert_int_equal(ftruncate(fd, 8 * PAGE), 0);
	assert_int_equal(vub_memory_add(mem, &r, fd), 0);       /* the guard is used again */
	assert_false(vub_memory_is_lost(mem));
	vub_memory_clear(mem);
	close(fd);
	free(mem);
}

/* A fault in somebody else's mapping kills, as it did before. */
static void v13_other_faults_stay_deadly(void **state)
{
	int fd = make_file(1), status;
	volatile char *map = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0);
	pid_t pid = fork();

	if (!pid) {
		signal(SIGBUS, SIG_DFL);
		if (!vub_guard_new(state, PAGE, PAGE) || ftruncate(fd, 0) < 0)
			_exit(0);
		_exit(map[0]);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
	munmap((void *)(uintptr_t)map, PAGE);
	close(fd);
}

static void what_can_be_mapped(void **state)
{
	struct vub_memory *mem = memory_new();
	struct vhost_user_region r = { .size = PAGE };
	char path[] = "/tmp/byre-memory.XXXXXX";
	int shared = make_file(1), file = mkstemp(path);
	int event = eventfd(0, EFD_CLOEXEC), zero = open("/dev/zero", O_RDWR | O_CLOEXEC);
	int huge = memfd_create("huge", MFD_HUGETLB);

	assert_true(file >= 0 && !unlink(path) && !ftruncate(file, PAGE));
	assert_int_equal(vub_fd_page_size(shared), PAGE);
	assert_int_equal(vub_fd_page_size(file), PAGE);
	assert_int_equal(vub_fd_page_size(zero), PAGE);
	if (huge >= 0) {
		assert_true(vub_fd_page_size(huge) > PAGE);
		close(huge);
	}
	assert_int_equal(vub_memory_add(mem, &r, event), -ENODEV);
	assert_int_equal(vub_memory_add(mem, &r, file), 0);
	vub_memory_clear(mem);
	close(file);
	file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);    /* not to be written */
	assert_int_equal(vub_memory_add(mem, &r, file), -EACCES);
	close(shared);
	close(file);
	close(event);
	close(zero);
	free(mem);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(v14_v16_addresses),
		cmocka_unit_test(v16_ranges_that_are_refused),
		cmocka_unit_test(v13_a_file_is_cut),
		cmocka_unit_test(v13_other_faults_stay_deadly),
		cmocka_unit_test(what_can_be_mapped),
	};

	return cmocka_run_group_tests_name("vub_memory", tests, NULL, NULL);
}
