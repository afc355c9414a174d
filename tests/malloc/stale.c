/* SPDX-License-Identifier: MIT */
/* tests/malloc/stale.c - reads what it has freed: ASan and Valgrind must see it, whatever malloc
 * the program was linked or preloaded with. Also calls what only other mallocs have. */
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>

int main(void)
{
	volatile char *p = malloc(100);
	void *aligned;

	if (!p || posix_memalign(&aligned, 4096, 5000))
		return 3;
	free(realloc(aligned, 10000));
	malloc_trim(0);
	p[10] = 1;
	free((void *)(size_t)p);
	printf("%d\n", p[10]);
	return 0;
}
