/* SPDX-License-Identifier: MIT */
/* mem/class.c - the table of classes. */
#include "mem/class.h"

struct class_info class_info[CLASSES];

static unsigned room(size_t size)
{
	size_t n = 32 * KiB / size;

	return (unsigned)(n < 2 ? 2 : MIN(n, (size_t)63));
}

void class_start(void)
{
	for (unsigned c = 0; c < CLASSES; c++)
		class_info[c] = (struct class_info){
			.size = (uint32_t)class_size(c),
			.objects = (uint16_t)class_objects(c),
			.slices = (uint8_t)class_slices(c),
			.room = (uint8_t)room(class_size(c)),
			.mul = class_mul(c),
		};
}
