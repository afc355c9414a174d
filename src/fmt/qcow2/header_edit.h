/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/header_edit.h - the header of an image, changed in place without a writer. Each change
 * lies in one sector (Q7), and is durable when the function returns. In a fiber of @file's loop.
 * @h is kept as the file's becomes. */
#ifndef FMT_QCOW2_HEADER_EDIT_H
#define FMT_QCOW2_HEADER_EDIT_H

#include <stdbool.h>

#include "fmt/qcow2/header.h"

struct chan;

/* Where the extension of type @type begins in the @len bytes of @buf, the start of the image, or
 * (@type is QCOW2_EXT_END) where the list ends. False: not there. */
bool header_find_extension(const struct qcow2_header *h, const uint8_t *buf, uint64_t len,
			   uint32_t type, uint64_t *ret);

/* Q5: clears the autoclear bits that nobody here knows. */
int header_clear_autoclear_wait(struct chan *file, struct qcow2_header *h);
/* Takes the mark of an image in use away (mark.c), wherever in the list it stands last. */
int header_drop_mark_wait(struct chan *file, struct qcow2_header *h);
/* Takes the extension of void bitmaps away, unless that would change more than a sector: then it
 * stays void. */
int header_drop_bitmaps_wait(struct chan *file, struct qcow2_header *h);

/* Q11: what was created unfinished is whole. Not where it is already. */
int header_finish_wait(struct chan *file);

#endif
