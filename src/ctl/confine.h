/* SPDX-License-Identifier: MIT */
/* ctl/confine.h - where files that an image names may lie.
 *
 * Who serves an image trusts its path, not its content: a backing or data file name comes from
 * whoever made the image, and what it names would be readable to the guest. So such files
 * are opened only below a *root*: the folder of the image that was asked for, and each --allow DIR.
 *
 * A name is resolved first (realpath: symbolic links and ".." are fine as long as the result
 * lies below a root), then opened relative to that root's descriptor with every symbolic link
 * refused, so that a link put in between the two steps leads nowhere.
 *
 * Invariants:
 *	A1  what confine_open() opens lies below one of the roots at the moment it is opened;
 *	A2  no symbolic link is followed after the check, with or without openat2(2);
 *	A3  a root stays what it was when it was added, whatever its path names later. */
#ifndef CTL_CONFINE_H
#define CTL_CONFINE_H

#include <stdbool.h>

struct confine;
struct err;

/* One that allows nothing yet. NULL without memory. */
struct confine *confine_new(void);
void confine_free(struct confine *c);

/* Allows what lies below @dir (an existing folder). */
int confine_allow(struct confine *c, const char *dir, struct err *err);

/* Opens @path, a file or block device, with open(2)'s @flags, closing on exec. @what ("backing
 * file") and @asker (the image that names it) are for messages. Returns a descriptor or -errno:
 * -EPERM when it lies below no root. Makes system calls that may block. */
int confine_open(const struct confine *c, const char *path, int flags, const char *what,
		 const char *asker, struct err *err);

/* Tests: behave as on a kernel without openat2(2). */
void confine_without_openat2(bool on);

#endif
