/* SPDX-License-Identifier: MIT */
/* tests/vub/hostile.h - ways to attack a back end. */
#ifndef TESTS_VUB_HOSTILE_H
#define TESTS_VUB_HOSTILE_H

#include "base/prng.h"
#include "peer.h"

struct hostile_case {
	const char *name;
	void (*attack)(struct peer *p, struct prng *prng);
};

/* Against a running queue. The last one has no name. */
extern const struct hostile_case hostile_rings[];
/* Single chains: so many, and the @i-th, whose name is returned. */
unsigned hostile_chains(void);
const char *hostile_chain(struct peer *p, unsigned i);

/* Messages: against a connection, on which a queue runs or not. The last one has no name. */
extern const struct hostile_case hostile_messages[];

#endif
