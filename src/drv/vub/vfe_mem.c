/* SPDX-License-Identifier: MIT */
#include "drv/vub/vfe_mem.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

int vfe_mem_init(struct vfe_mem *m, size_t size)
{
	int fd = memfd_create("vhost-user", MFD_CLOEXEC | MFD_ALLOW_SEALING), rc;
	void *map;

	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)size) < 0)
		goto fail;
	map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (map == MAP_FAILED)
		goto fail;
	*m = (struct vfe_mem){ .fd = fd, .map = map, .size = size };
	return 0;
fail:
	rc = -errno;
	close(fd);
	return rc;
}

int vfe_mem_seal(const struct vfe_mem *m)
{
	return fcntl(m->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0 ? -errno
											 : 0;
}

void vfe_mem_fini(struct vfe_mem *m)
{
	if (!m->map)
		return;
	munmap(m->map, m->size);
	close(m->fd);
	*m = (struct vfe_mem){ 0 };
}
