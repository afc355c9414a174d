/* SPDX-License-Identifier: MIT */
/* mem/class.h - size classes: what a request is rounded up to.
 *
 *	16 .. 128         steps of 16           classes  0 ..  7
 *	.. 1 KiB          4 for each doubling   classes  8 .. 19
 *	.. 256 KiB        8 for each doubling   classes 20 .. 83
 *
 * Above 128 bytes less than a fifth is lost to rounding, above 1 KiB less than a ninth. Objects of
 * a class lie side by side in slabs that begin on a slice, so an object is aligned to the largest
 * power of two that divides its class's size: where that is what somebody asks for, alignment costs
 * nothing (class_of_aligned()).
 *
 * Up to 32 KiB a slab is one slice; above, it is one object, in as many slices as that takes. */
#ifndef MEM_CLASS_H
#define MEM_CLASS_H

#include "base/bits.h"
#include "mem/os.h"

enum {
	CLASSES = 84,
	CLASS_SMALL = 1024,             /* up to here there are 4 for each doubling */
	CLASS_TABLE = 4096,             /* up to here a table has the class */
	CLASS_TABLE_SLOTS = CLASS_TABLE / 16 + 1,
	CLASS_SHARED_MAX = 32 << 10,    /* the largest of which a slab has more than one object */
	CLASS_MAX = 256 << 10,
};

/* What tells objects from what lies inside of them. With mul = 2^32 / size, rounded up, an offset
 * into a slab, which has 16 bits, is an object's if and only if the low 32 bits of offset * mul are
 * below 2^16: a multiple of the size leaves no more there than the rounding, offset / size times
 * less than size; anything else leaves at least 2^32 / size, and a shared slab's objects have up to
 * 2^15 bytes. The high 32 bits are the object's number. (After Lemire, Kaser, Kurz: "Faster
 * remainder by direct computation", 2019.) */
#define CLASS_REST_MAX 0xffffu

static inline size_t class_size(unsigned c)
{
	if (c < 8)
		return 16 * (c + 1);
	if (c < 20) {
		size_t base = (size_t)128 << (c - 8) / 4;

		return base + ((c - 8) % 4 + 1) * (base / 4);
	}
	return (size_t)((c - 20) % 8 + 9) << (7 + (c - 20) / 8);
}

/* The smallest class of at least @size, which is at most CLASS_MAX. */
static inline unsigned class_of(size_t size)
{
	if (size <= 128)
		return size ? (unsigned)(size - 1) / 16 : 0;
	if (size <= CLASS_SMALL) {
		unsigned log = log2_floor(size - 1);

		return 8 + (log - 7) * 4 + ((unsigned)((size - 1) >> (log - 2)) & 3);
	}
	unsigned log = log2_floor(size - 1);

	return 20 + (log - 10) * 8 + ((unsigned)((size - 1) >> (log - 3)) & 7);
}

/* The smallest class whose objects have at least @size bytes and are aligned to @align, a power of
 * two up to SLICE_BYTES; CLASSES if there is none. */
static inline unsigned class_of_aligned(size_t size, size_t align)
{
	size = MAX(size, align);
	if (size > CLASS_MAX)
		return CLASSES;
	for (unsigned c = class_of(size); c < CLASSES; c++)
		if (class_size(c) > CLASS_SHARED_MAX || is_aligned(class_size(c), align))
			return c;
	return CLASSES;
}

/* Slices a slab. */
static inline size_t class_slices(unsigned c)
{
	return div_round_up(class_size(c), SLICE_BYTES);
}

/* Objects a slab. */
static inline unsigned class_objects(unsigned c)
{
	size_t size = class_size(c);

	return size > CLASS_SHARED_MAX ? 1 : (unsigned)(SLICE_BYTES / size);
}

static inline uint32_t class_mul(unsigned c)
{
	size_t size = class_size(c);

	/* Where there is one object, only offset 0 is an object's. */
	return size > CLASS_SHARED_MAX ? 1u << 16 : (uint32_t)(UINT32_MAX / size + 1);
}

static inline bool class_is_object(uint32_t mul, uint32_t offset)
{
	return offset * mul <= CLASS_REST_MAX;
}

static inline unsigned class_index(uint32_t mul, uint32_t offset)
{
	return (unsigned)((uint64_t)offset * mul >> 32);
}

/* What takes divisions to find out, for slow paths. Const after class_start(). */
struct class_info {
	uint32_t size;
	uint16_t objects;               /* a slab */
	uint8_t slices;                 /* a slab */
	uint8_t room;                   /* objects a magazine takes: 32 KiB, and at least two */
	uint32_t mul;
};

extern struct class_info class_info[CLASSES];

void class_start(void);

#endif
