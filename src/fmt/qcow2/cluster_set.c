/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/cluster_set.h"

#include <errno.h>
#include <stdlib.h>

#include "base/bits.h"
#include "base/prng.h"

enum { SLOTS_MIN = 64 };

void cluster_set_fini(struct cluster_set *s)
{
	free(s->slots);
	*s = (struct cluster_set){ 0 };
}

/* Where group @number is, or would be. There is a free slot. */
static struct cluster_group *slot_of(const struct cluster_set *s, uint64_t number)
{
	uint64_t i = mix64(number);

	for (;; i++) {
		struct cluster_group *g = &s->slots[i & (s->nslots - 1)];

		if (!g->number_plus_1 || g->number_plus_1 == number + 1)
			return g;
	}
}

/* Moves to a table of @nslots; groups without a bit stay behind. */
static int resize(struct cluster_set *s, uint64_t nslots)
{
	struct cluster_set to = { .nslots = nslots };

	to.slots = calloc(nslots, sizeof(*to.slots));
	if (!to.slots)
		return -ENOMEM;
	for (uint64_t i = 0; i < s->nslots; i++) {
		const struct cluster_group *g = &s->slots[i];

		if (!g->bits)
			continue;
		*slot_of(&to, g->number_plus_1 - 1) = *g;
		to.ngroups++;
	}
	free(s->slots);
	*s = to;
	return 0;
}

static uint64_t used_groups(const struct cluster_set *s)
{
	uint64_t n = 0;

	for (uint64_t i = 0; i < s->nslots; i++)
		n += s->slots[i].bits != 0;
	return n;
}

/* Room for @more groups; a quarter of the slots stays free. */
static int make_room(struct cluster_set *s, uint64_t more)
{
	uint64_t need, nslots = SLOTS_MIN;

	if (more <= CLUSTER_SET_GROUPS_MAX && s->ngroups + more <= s->nslots / 4 * 3)
		return 0;
	need = used_groups(s) + more;
	if (more > CLUSTER_SET_GROUPS_MAX || need > CLUSTER_SET_GROUPS_MAX)
		return -EFBIG;
	while (nslots / 2 < need)
		nslots *= 2;
	return resize(s, nslots);
}

/* The part of [@first, @end) that lies in its first group, as bits; moves @first behind it. */
static uint64_t group_bits(uint64_t *first, uint64_t end, uint64_t *ret_number)
{
	uint64_t from = *first % CLUSTER_SET_GROUP;
	uint64_t n = MIN(CLUSTER_SET_GROUP - from, end - *first);

	*ret_number = *first / CLUSTER_SET_GROUP;
	*first += n;
	return (n == CLUSTER_SET_GROUP ? UINT64_MAX : (1ULL << n) - 1) << from;
}

int cluster_set_add(struct cluster_set *s, uint64_t first, uint64_t n)
{
	uint64_t end = first + n, number;
	int rc = n ? make_room(s, n / CLUSTER_SET_GROUP + 2) : 0;

	while (!rc && first < end) {
		uint64_t bits = group_bits(&first, end, &number);
		struct cluster_group *g = slot_of(s, number);

		if (!g->number_plus_1) {
			g->number_plus_1 = number + 1;
			s->ngroups++;
		}
		g->bits |= bits;
	}
	return rc;
}

void cluster_set_del(struct cluster_set *s, uint64_t first, uint64_t n)
{
	uint64_t end = first + n, number;

	while (s->nslots && first < end) {
		uint64_t bits = group_bits(&first, end, &number);

		slot_of(s, number)->bits &= ~bits;      /* of a free slot they are zero */
	}
}

bool cluster_set_has(const struct cluster_set *s, uint64_t first, uint64_t n)
{
	uint64_t end = first + n, number;

	while (s->nslots && first < end) {
		uint64_t bits = group_bits(&first, end, &number);

		if (slot_of(s, number)->bits & bits)
			return true;
	}
	return false;
}
