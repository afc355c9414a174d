/* SPDX-License-Identifier: MIT */
/* fmt/raw/probe.h - which format an image has, from its first bytes. Pure. */
#ifndef FMT_RAW_PROBE_H
#define FMT_RAW_PROBE_H

#include <stddef.h>

enum { PROBE_BYTES = 512 };             /* more than this is not looked at */

/* The name of the format as QEMU has it, "raw" if none is recognised. */
const char *probe_format(const void *head, size_t len);

#endif
