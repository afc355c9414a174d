/* SPDX-License-Identifier: MIT */
#include "export/vub/memory.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/bits.h"
#include "export/vub/descriptor.h"
#include "export/vub/guard.h"

/* ---- mappings ---- */

int vub_mapping_init(struct vub_mapping *m, int fd, uint64_t off, uint64_t len, void **ret_at)
{
	size_t page = vub_fd_page_size(fd);
	struct stat st;

	if (!page || !len || !range_within(off, len, (uint64_t)INT64_MAX - page))
		return -EINVAL;
	if (fstat(fd, &st) < 0)
		return -errno;
	if (S_ISREG(st.st_mode) && !range_within(off, len, (uint64_t)st.st_size))
		return -EINVAL;

	uint64_t from = align_down(off, page), bytes = align_up(off + len, page) - from;
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd,
			(off_t)from);

	if (at == MAP_FAILED)
		return -errno;
	m->guard = vub_guard_new(at, bytes, page);
	if (!m->guard) {
		munmap(at, bytes);
		return -ENOMEM;
	}
	madvise(at, bytes, MADV_DONTDUMP);      /* the guest's secrets, and its size */
	m->start = at;
	m->len = bytes;
	*ret_at = (uint8_t *)at + (off - from);
	return 0;
}

void vub_mapping_fini(struct vub_mapping *m)
{
	if (!m->start)
		return;
	vub_guard_free(m->guard);
	munmap(m->start, m->len);
	*m = (struct vub_mapping){ 0 };
}

/* ---- slots ---- */

static bool has_wrapped(uint64_t addr, uint64_t size)
{
	return addr + size < addr;
}

static bool is_overlapping(const struct vub_memory *mem, const struct vhost_user_region *r)
{
	for (unsigned i = 0; i < mem->n; i++) {
		const struct vub_slot *s = &mem->slots[i];

		if (ranges_overlap(s->guest, s->size, r->guest_addr, r->size) ||
		    ranges_overlap(s->user, s->size, r->user_addr, r->size))
			return true;
	}
	return false;
}

int vub_memory_add(struct vub_memory *mem, const struct vhost_user_region *r, int fd)
{
	struct vub_slot slot = { .guest = r->guest_addr, .user = r->user_addr, .size = r->size };
	unsigned at = 0;
	void *host;
	int rc;

	if (mem->n == VUB_SLOTS_MAX)
		return -ENOSPC;
	if (!r->size || has_wrapped(r->guest_addr, r->size) || has_wrapped(r->user_addr, r->size) ||
	    is_overlapping(mem, r))
		return -EINVAL;
	rc = vub_mapping_init(&slot.mapping, fd, r->mmap_offset, r->size, &host);
	if (rc)
		return rc;
	slot.host = host;
	while (at < mem->n && mem->slots[at].guest < slot.guest)
		at++;
	memmove(&mem->slots[at + 1], &mem->slots[at], (mem->n - at) * sizeof(slot));
	mem->slots[at] = slot;
	mem->n++;
	return 0;
}

int vub_memory_remove(struct vub_memory *mem, const struct vhost_user_region *r)
{
	for (unsigned i = 0; i < mem->n; i++) {
		struct vub_slot *s = &mem->slots[i];

		if (s->guest != r->guest_addr || s->user != r->user_addr || s->size != r->size)
			continue;
		vub_mapping_fini(&s->mapping);
		mem->n--;
		memmove(s, s + 1, (mem->n - i) * sizeof(*s));
		return 0;
	}
	return -ENOENT;
}

void vub_memory_clear(struct vub_memory *mem)
{
	while (mem->n)
		vub_mapping_fini(&mem->slots[--mem->n].mapping);
}

/* ---- addresses ---- */

void *vub_memory_guest(const struct vub_memory *mem, uint64_t addr, unsigned *hint,
		       uint64_t *ret_len)
{
	unsigned lo = 0, hi = mem->n;
	const struct vub_slot *s = &mem->slots[*hint];

	if (*hint >= mem->n || addr - s->guest >= s->size) {
		while (lo < hi) {       /* the first slot that begins behind @addr */
			unsigned mid = (lo + hi) / 2;

			if (mem->slots[mid].guest <= addr)
				lo = mid + 1;
			else
				hi = mid;
		}
		if (!lo)
			return NULL;
		s = &mem->slots[lo - 1];
		if (addr - s->guest >= s->size)
			return NULL;
		*hint = lo - 1;
	}
	*ret_len = s->size - (addr - s->guest);
	return s->host + (addr - s->guest);
}

void *vub_memory_user(const struct vub_memory *mem, uint64_t addr, uint64_t len)
{
	for (unsigned i = 0; i < mem->n; i++) {
		const struct vub_slot *s = &mem->slots[i];

		if (addr - s->user < s->size && range_within(addr - s->user, len, s->size))
			return s->host + (addr - s->user);
	}
	return NULL;
}

bool vub_memory_where(const struct vub_memory *mem, const void *host, uint64_t *ret_guest)
{
	for (unsigned i = 0; i < mem->n; i++) {
		const struct vub_slot *s = &mem->slots[i];
		uint64_t off = (uint64_t)((uintptr_t)host - (uintptr_t)s->host);

		if (off < s->size) {
			*ret_guest = s->guest + off;
			return true;
		}
	}
	return false;
}

bool vub_memory_is_lost(const struct vub_memory *mem)
{
	for (unsigned i = 0; i < mem->n; i++)
		if (vub_guard_is_lost(mem->slots[i].mapping.guard))
			return true;
	return false;
}
