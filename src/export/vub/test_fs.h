/* SPDX-License-Identifier: MIT */
/* export/vub/test_fs.h - for the tests: a file system in user space with a file and a device, which
 * let whoever asks them for something wait. A child process runs it, for SLOW_FS_LIFE_S at most:
 * whoever is killed while he waits for it must wait for its end. */
#ifndef EXPORT_VUB_TEST_FS_H
#define EXPORT_VUB_TEST_FS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum { SLOW_FS_FILE = 4 << 20, SLOW_FS_WAITERS_MAX = 64, SLOW_FS_LIFE_S = 240 };

/* In memory that is shared with the child. */
struct slow_fs {
	char dir[32];
	int dev;
	pid_t child;
	atomic_bool is_hanging;
	atomic_uint waiters;            /* requests that have no answer yet */
	uint64_t unique[SLOW_FS_WAITERS_MAX];
};

/* NULL: this process may not mount any. */
struct slow_fs *slow_fs_start(void);
/* What waits is answered. */
void slow_fs_stop(struct slow_fs *fs);
/* Its file; it must not hang. */
int slow_fs_open(const struct slow_fs *fs);
/* Its character device, as a place (O_PATH), which nobody needs to be allowed to open. */
int slow_fs_open_device(const struct slow_fs *fs);

#endif
