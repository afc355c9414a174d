/* SPDX-License-Identifier: MIT */
/* bench/malloc/patterns.c - one pattern of use, with whatever malloc the process has.
 *
 *	patterns NAME [PERCENT]         PERCENT of the pattern's rounds, 100 unless told
 *	patterns --list                 a line each: name, group, what it does
 *
 * compare.py runs it with every allocator; cost.c measures. */
#include <stdbool.h>
#include <string.h>

#include "pattern.h"

uint16_t mixed_sizes[MIXED_SIZES];

static const struct pattern *const tables[] = { patterns_alone, patterns_shared };

static void fill_mixed_sizes(void)
{
	struct prng prng = { 7 };

	for (unsigned i = 0; i < MIXED_SIZES; i++) {
		uint64_t doubling = 16ULL << i % 8;

		mixed_sizes[i] = (uint16_t)(doubling + prng_below(&prng, doubling) + 1);
	}
}

static void list(void)
{
	for (unsigned t = 0; t < ARRAY_SIZE(tables); t++) {
		for (const struct pattern *p = tables[t]; p->name; p++)
			printf("%s %s %s\n", p->name, p->group, p->what);
	}
}

static const struct pattern *find(const char *name)
{
	for (unsigned t = 0; t < ARRAY_SIZE(tables); t++) {
		for (const struct pattern *p = tables[t]; p->name; p++) {
			if (!strcmp(p->name, name))
				return p;
		}
	}
	return NULL;
}

int main(int argc, char **argv)
{
	const struct pattern *p = argc > 1 ? find(argv[1]) : NULL;
	uint64_t percent = argc > 2 ? strtoull(argv[2], NULL, 10) : 100;

	if (argc == 2 && !strcmp(argv[1], "--list")) {
		list();
		return 0;
	}
	if (!p || argc > 3 || !percent) {
		fprintf(stderr, "usage: patterns NAME [PERCENT] | --list\n");
		return 2;
	}
	fill_mixed_sizes();
	p->run(MAX(p->rounds * percent / 100, 1UL));
	return 0;
}
