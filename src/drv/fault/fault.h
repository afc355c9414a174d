/* SPDX-License-Identifier: MIT */
/* drv/fault/fault.h - a filter that makes requests fail or wait, by rules: for tests. */
#ifndef DRV_FAULT_FAULT_H
#define DRV_FAULT_FAULT_H

#include <stdbool.h>
#include <stdint.h>

struct err;
struct node;

enum { FAULT_RULES_MAX = 16 };

#define FAULT_KIND(kind) (1u << (kind))
#define FAULT_ALL_KINDS (~0u)

/* Each chan counts the requests that a rule's @kinds name, so what one loop sees does not depend on
 * the others. The first rule that strikes decides. */
struct fault_rule {
	unsigned kinds;                 /* FAULT_KIND(REQ_WRITE) | ... */
	int error;                      /* positive errno; 0: the request goes on */
	uint64_t nth;                   /* strikes every nth of them; 0 or 1: each */
	uint64_t delay_ns;              /* before the error, or before it goes on */
	bool once;                      /* strikes one time, on whichever loop is first */
};

/* In a fiber of @child's home loop. Takes the reference to @child on success. */
int fault_open_wait(struct node *child, const struct fault_rule *rules, unsigned n,
		    struct node **ret, struct err *err);

#endif
