/* SPDX-License-Identifier: MIT */
/* export/vub/guard.h - memory that others may take away.
 *
 * A front end that makes the file behind its memory shorter turns our mappings into SIGBUS. The
 * kernel's own accesses (a read into the guest's memory) fail with EFAULT, but rings, headers and
 * what drivers copy are read by us, anywhere, on any thread. So the handler puts a page of zeros
 * where one is missing, marks the mapping as *lost* and lets the instruction go on. Whoever uses
 * the mapping looks at the mark before it believes what it has read, and tells nobody that
 * something was written there.
 *
 * A fault that is not in a guarded mapping goes to whoever had the signal before.
 *
 * Invariants:
 *	V13  an access to a guarded mapping never kills the process, whatever becomes of its file;
 *	    from then on vub_guard_is_lost() says so. */
#ifndef EXPORT_VUB_GUARD_H
#define EXPORT_VUB_GUARD_H

#include <stdbool.h>
#include <stddef.h>

struct vub_guard;

/* Guards [@start, @start + @len), which begins on a page of @page bytes. NULL: no memory. */
struct vub_guard *vub_guard_new(void *start, size_t len, size_t page);
/* Before the mapping goes. NULL is fine. */
void vub_guard_free(struct vub_guard *g);
bool vub_guard_is_lost(const struct vub_guard *g);

#endif
