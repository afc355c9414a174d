/* SPDX-License-Identifier: MIT */
/* drv/file/file_align.c - what O_DIRECT asks of offsets, lengths and addresses.
 *
 * statx(2) says it from Linux 6.1 on, for file systems that know. A block device has its sector
 * size. Else reads are tried, from small to large. A file too short to tell gets 4096: that is
 * always safe, for every block size in use divides it or is refused. */
#include <errno.h>
#include <linux/fs.h>
#include <linux/stat.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <fcntl.h>
#include <unistd.h>

#include "base/err.h"
#include "drv/file/file_impl.h"
#include "loop/iobuf.h"

enum { SECTOR = 512, BLOCK_SAFE = 4096 };

/* True if the kernel knows; *@ret_block is 0 where it knows that there is no direct I/O. glibc's
 * own struct may be older than these fields. */
static bool ask_statx(int fd, uint32_t *ret_mem, uint32_t *ret_block)
{
#ifdef STATX_DIOALIGN
	struct statx stx;

	memset(&stx, 0, sizeof(stx));
	if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) < 0 ||
	    !(stx.stx_mask & STATX_DIOALIGN))
		return false;
	*ret_mem = stx.stx_dio_mem_align;
	*ret_block = stx.stx_dio_offset_align;
	return true;
#else
	return false;
#endif
}

/* The smallest length that can be read at the start, and 0 where that cannot be told. */
static uint32_t try_reads(int fd)
{
	char *buf = aligned_alloc(BOUNCE_RESERVE, BOUNCE_RESERVE);
	uint32_t found = 0;

	if (!buf)
		return 0;
	for (uint32_t n = SECTOR; n <= BOUNCE_RESERVE && !found; n *= 2) {
		ssize_t got = pread(fd, buf, n, 0);

		if (got < 0 && errno == EINVAL)
			continue;
		found = got == (ssize_t)n ? n : 0;
		break;
	}
	free(buf);
	return found;
}

int file_align_find(struct file_node *fn, int fd, struct err *err)
{
	uint32_t mem = 0, block = 0;
	int sector = 0;

	if (ask_statx(fd, &mem, &block) && !block) {
		/* It opened, so the kernel goes through the page cache and takes anything. */
		mem = SECTOR;
		block = SECTOR;
	}
	if (!block && fn->is_block_device && !ioctl(fd, BLKSSZGET, &sector) && sector > 0)
		block = (uint32_t)sector;
	if (!block)
		block = try_reads(fd);
	if (!block)
		block = BLOCK_SAFE;
	if (!mem)
		mem = block;
	if (!is_pow2(block) || !is_pow2(mem) || block > BOUNCE_RESERVE || mem > IOBUF_ALIGN) {
		err_set(err, EINVAL, "'%s': direct I/O asks for blocks of %u bytes at multiples "
			"of %u in memory, which is not supported", fn->node.name, block, mem);
		err_hint(err, "use the page cache: cache=writeback");
		return -EINVAL;
	}
	fn->block = MAX(block, (uint32_t)SECTOR);
	fn->mem_align = mem;
	return 0;
}
