/* SPDX-License-Identifier: MIT */
/* byre/region.h - memory from memory that the caller brings, in bounded time.
 *
 * A region is a two-level segregated fit allocator (TLSF) over memory of the caller's. Allocating,
 * freeing and resizing in place take a bounded number of instructions, however many blocks
 * there are and whatever came before; only what must look at memory takes longer: moving a block,
 * poison mode, byre_region_walk(), byre_region_check() and byre_region_trim(). The library is
 * freestanding: it calls nothing but the hooks, and keeps nothing outside of the memory that it was
 * given.
 *
 *	static _Alignas(16) char memory[1 << 20];
 *	struct byre_region *r = byre_region_init(memory, sizeof(memory), NULL);
 *	void *p = byre_region_alloc(r, 1000, 0);
 *	byre_region_free(r, p);
 *
 * There are two kinds, by the granule, the unit in which blocks are cut:
 *	16 bytes    for objects of any size: each costs BYRE_REGION_HEADER bytes, which lie
 *	            before it, and is rounded up to the granule together with them;
 *	64 or more  (a power of two, often the page): for buffers. What is known about blocks lies
 *	in
 *	            a table apart from them, so blocks are aligned to the granule, cost whole
 *	            granules and nothing else, and their memory is never touched by the region.
 *
 * Threads: a region is used by one thread at a time; the lock hooks see to that if there are more.
 * Where a function says that it "fails" it has changed nothing. */
#ifndef BYRE_REGION_H
#define BYRE_REGION_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
	BYRE_REGION_GRANULE = 16,       /* the default granule, and the least alignment */
	BYRE_REGION_HEADER = 8,         /* before each block where the granule is 16 */
};

struct byre_region;

/* What the region found to be wrong, in the caller's doing or in its own records. */
enum byre_region_fault_kind {
	BYRE_REGION_BAD_POINTER = 1,    /* what was passed is no block of this region */
	BYRE_REGION_DOUBLE_FREE,        /* it was one, and is free already */
	BYRE_REGION_DAMAGED,            /* the region's own records contradict each other */
	BYRE_REGION_WRITTEN,            /* poison mode: freed memory was written to */
};

struct byre_region_fault {
	enum byre_region_fault_kind kind;
	const char *what;               /* a sentence without its full stop; never freed */
	const void *where;              /* the pointer passed, or the place of the damage */
};

/* All may be NULL. They get @cookie, and must not call into the region. */
struct byre_region_hooks {
	void *cookie;
	/* Around each call that looks at the region. get_pages(), put_pages() run outside of them,
	 * the other hooks within. */
	void (*lock)(void *cookie);
	void (*unlock)(void *cookie);
	/* More memory, when a request cannot be satisfied: at least @len bytes, a multiple of the
	 * page, aligned to the page, or NULL. All of the @len bytes are used. 16-byte granule
	 * only. */
	void *(*get_pages)(void *cookie, size_t len);
	/* Takes back memory that get_pages() returned, or byre_region_add() got with @give_back,
	 * at once when it is wholly free; @mem and @len are what came in. */
	void (*put_pages)(void *cookie, void *mem, size_t len);
	/* [@mem, @mem + @len), whole pages of free blocks, need not keep their content: as
	 * madvise(MADV_DONTNEED). Reading and writing them must go on working. Called by
	 * byre_region_trim(). */
	void (*drop_pages)(void *cookie, void *mem, size_t len);
	/* Told of each fault. The call that found it then returns, having done nothing or, for
	 * WRITTEN, what it was asked for. Without this hook faults are survived in silence. */
	void (*report)(void *cookie, const struct byre_region_fault *fault);
};

enum {
	/* Fill blocks when they are allocated and freed, and find out whether freed memory was
	 * written to before it is allocated again. Takes time by size; nothing is dropped by
	 * byre_region_trim(). */
	BYRE_REGION_POISON = 1,
};

/* Zeroed: the defaults. */
struct byre_region_config {
	size_t granule;                 /* 0: BYRE_REGION_GRANULE */
	size_t page;                    /* of the hooks, a power of two; 0: 4096 */
	/* The largest memory that will ever be given in one piece, which also bounds a block. (No
	 * piece can have more than 2^30 - 1 granules: 16 GiB by 16 bytes, 4 TiB by pages.)
	 * The lists' heads take 256 bytes (128 on 32 bits) for each doubling. 0: that of
	 * byre_region_init(), or the most possible if there is a get_pages() hook. */
	size_t pool_max;
	size_t grow;                    /* least to ask of get_pages(); 0: one page */
	unsigned flags;                 /* BYRE_REGION_POISON */
	/* Where the region's records shall be, aligned to 16; byre_region_records() says how
	 * much they take. NULL: at the start of the memory. */
	void *records;
	size_t records_len;
	struct byre_region_hooks hooks;
};

/* How many bytes the records take for memory of @len bytes, which are then not part of it. (Where
 * they lie at its start, up to a granule more is lost to alignment.) 0 if @config makes no sense.
 * @config may be NULL. */
size_t byre_region_records(const struct byre_region_config *config, size_t len);

/* A region over the @len bytes at @mem, both of any alignment. @config is copied; NULL means all
 * defaults. @len may be just enough for the records (or 0 where those are elsewhere) if memory
 * comes later. NULL if @mem is too small or @config makes no sense. */
struct byre_region *byre_region_init(void *mem, size_t len,
				     const struct byre_region_config *config);

/* Ends a region: memory that get_pages() returned goes back to put_pages(), with all blocks in it.
 * The caller's own memory is simply no longer used. */
void byre_region_fini(struct byre_region *r);

/* ---- memory ---- */

/* Adds the @len bytes at @mem, of which byre_region_pool_overhead() do not become available. They
 * must not touch memory that the region has. With @give_back they are returned to put_pages() as
 * soon as the last block in them is freed. Fails if @len is too small, above pool_max or the
 * granule not 16. */
bool byre_region_add(struct byre_region *r, void *mem, size_t len, bool give_back);

/* Takes back what byre_region_add() got at @mem. Fails if a block in it is in use, or if there is
 * no such memory. Takes time by the number of memories. */
bool byre_region_remove(struct byre_region *r, void *mem);

/* What a piece of memory costs beyond the blocks in it. */
size_t byre_region_pool_overhead(const struct byre_region *r);

/* Drops the whole pages in free blocks, the largest blocks first, until @max bytes are dropped;
 * pages that are dropped already do not count. SIZE_MAX for all. Returns how many bytes it
 * dropped: 0 without a drop_pages() hook. Takes time by the number of free blocks of a page or
 * more. */
size_t byre_region_trim(struct byre_region *r, size_t max);

/* ---- blocks ---- */

/* A block of at least @size bytes (0 counts as 1), aligned to @align, a power of two, and to the
 * granule, if @align is less. Content undefined. NULL if there is none and get_pages() gives no
 * more, or if an @align above the granule is not a power of two. */
void *byre_region_alloc(struct byre_region *r, size_t size, size_t align);

/* @p comes from byre_region_alloc() or byre_region_resize(); NULL does nothing. What is no block,
 * or is free already, is reported and otherwise ignored. */
void byre_region_free(struct byre_region *r, void *p);

/* Makes @p at least @size bytes long, in place if possible, else by moving it to a block aligned to
 * @align (what it was allocated with). Keeps the content up to the lesser size. NULL if that fails;
 * @p is then as before. @p NULL: as byre_region_alloc(). */
void *byre_region_resize(struct byre_region *r, void *p, size_t size, size_t align);

/* The same, but fails rather than move. Making a block smaller never fails. */
bool byre_region_resize_in_place(struct byre_region *r, void *p, size_t size);

/* How many bytes may be used at @p: at least what was asked for. 0 if @p is no block; NULL: 0. */
size_t byre_region_usable(struct byre_region *r, const void *p);

/* What a request costs beyond its size, before it is rounded up to the granule: sizes of
 * k * granule - overhead waste nothing. */
size_t byre_region_overhead(const struct byre_region *r);

/* The largest block to be had now without get_pages(): byre_region_alloc(r, n, 0) succeeds for this
 * n. 0 if there is none. A free block can be larger than that, by 1/32 at most. */
size_t byre_region_largest(struct byre_region *r);

/* ---- looking at it ---- */

/* Bytes, but for the counts. used + free + records = held. */
struct byre_region_stats {
	size_t held;                    /* memory that the region has */
	size_t used;                    /* by blocks, with their headers and rounding */
	size_t free;
	size_t dropped;                 /* whole pages of free blocks that were dropped */
	size_t records;                 /* neither used nor free */
	size_t blocks;                  /* how many are in use */
	size_t free_blocks;
	size_t pools;                   /* in how many pieces the memory is */
};

/* Takes time by the number of blocks. */
void byre_region_stats(struct byre_region *r, struct byre_region_stats *ret);

/* The @used of that alone, in bounded time. */
size_t byre_region_used(struct byre_region *r);

/* Calls @fn for each block, in use or free, by rising address within each memory, until it returns
 * false; false then, or if damage was met, which is reported. @fn must not call into the region. */
bool byre_region_walk(struct byre_region *r,
		      bool (*fn)(void *arg, const void *p, size_t usable, bool in_use), void *arg);

/* Looks at every record and at each in the light of the others, and in poison mode at all
 * free memory. False if something is wrong, with the first fault in @ret (which may be
 * NULL); it is not reported to the hook. Whatever single bit is wrong, nothing but the region's
 * memory is read. */
bool byre_region_check(struct byre_region *r, struct byre_region_fault *ret);

#ifdef __cplusplus
}
#endif

#endif
