/* SPDX-License-Identifier: MIT */
#include "sim/image.h"

#include <assert.h>
#include <libdeflate.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/prng.h"
#include "fmt/qcow2/format.h"
#include "sim/bitmaps.h"
#include "sim/disk.h"

struct build {
	const struct sim_image_opts *o;
	struct sim_pages *pages;
	struct model *m;
	struct sim_image *im;
	uint64_t cluster, per_table, per_block;
	unsigned entry_bytes;           /* of L2 */
	uint64_t guest_clusters, l1_entries, l1_clusters;
	uint64_t blind;                 /* guest clusters mapped before the window */
	uint64_t reftable_clusters, nblocks;
	uint64_t next;                  /* the first cluster that is not used */
	uint64_t l1, snapshot_l1, snapshots, reftable, blocks;  /* clusters */
	uint64_t packed;                /* where the next compressed cluster goes; 0: none yet */
	uint16_t *counts;               /* references of each cluster; owned */
	uint64_t counts_room;
};

static void refer(struct build *b, uint64_t k, unsigned times)
{
	if (k >= b->counts_room) {
		uint64_t room = MAX(2 * b->counts_room, k + 64);

		b->counts = realloc(b->counts, room * sizeof(*b->counts));
		assert(b->counts);
		memset(b->counts + b->counts_room, 0,
		       (room - b->counts_room) * sizeof(*b->counts));
		b->counts_room = room;
	}
	b->counts[k] = (uint16_t)(b->counts[k] + times);
}

/* Clusters with one reference. */
static uint64_t take(struct build *b, uint64_t n)
{
	uint64_t at = b->next;

	b->next += n;
	sim_pages_fill(b->pages, at * b->cluster, n * b->cluster, 0);
	for (uint64_t i = 0; i < n; i++)
		refer(b, at + i, 1);
	return at;
}

static void put64(struct build *b, uint64_t off, uint64_t v)
{
	be64_t d = be64_make(v);

	sim_pages_write(b->pages, off, &d, sizeof(d));
}

/* What nothing was written to reads as zeros, whatever the medium is like. */
static void put_data_file(struct build *b)
{
	if (b->o->is_raw_data)
		sim_pages_fill(b->pages, SIM_SECOND + b->im->window_off, b->o->window, 0);
}

static uint64_t own_clusters(const struct build *b)
{
	return b->o->own_every ? div_round_up(b->o->window / b->cluster, b->o->own_every) : 0;
}

/* How much comes before the window, so that the refcount blocks are as full as is wished. */
static void plan_blind(struct build *b)
{
	uint64_t per_block = b->per_block, full = b->o->full_blocks * per_block - b->o->spare, used;

	do {
		uint64_t guest = b->blind + b->o->window / b->cluster;
		uint64_t tables = div_round_up(guest, b->per_table);

		used = 1 + div_round_up((uint64_t)b->o->full_blocks * 8, b->cluster) +
		       b->o->full_blocks + div_round_up(tables * 8, b->cluster) +
		       div_round_up(b->blind, b->per_table) + own_clusters(b) +
		       (b->o->own_every ? div_round_up(b->o->window / b->cluster, b->per_table) +
					  1 : 0);
		if (used + b->blind >= full)
			return;
		b->blind += MAX((full - used - b->blind) / 2, 1u);
	} while (true);
}

static void plan(struct build *b)
{
	const struct sim_image_opts *o = b->o;

	b->cluster = b->im->cluster = 1ULL << o->cluster_bits;
	b->entry_bytes = o->is_extended ? 16 : 8;
	b->per_table = b->cluster / b->entry_bytes;
	b->per_block = b->cluster * 8 >> o->refcount_order;
	if (o->full_blocks)
		plan_blind(b);
	b->im->window_off = b->blind * b->cluster;
	b->im->guest_size = b->im->window_off + o->window;
	b->guest_clusters = div_round_up(b->im->guest_size, b->cluster);
	b->l1_entries = div_round_up(b->guest_clusters, b->per_table);
	b->l1_clusters = div_round_up(b->l1_entries * 8, b->cluster);
	model_init(b->m, b->im->window_off, o->window);
}

/* Where the L2 entry of guest cluster @g is. Tables are recognised by their L1 entry. */
static uint64_t entry_of(struct build *b, uint64_t g)
{
	uint64_t at = b->l1 * b->cluster + g / b->per_table * 8, table;
	be64_t entry;

	sim_pages_read(b->pages, at, &entry, sizeof(entry));
	table = be64_get(entry) & QCOW2_OFFSET_MASK;
	if (!table) {
		table = take(b, 1) * b->cluster;
		put64(b, at, table | (b->o->is_shared ? 0 : QCOW2_COPIED));
		if (b->o->is_shared) {
			put64(b, b->snapshot_l1 * b->cluster + g / b->per_table * 8, table);
			refer(b, table / b->cluster, 1);
		}
	}
	return table + g % b->per_table * b->entry_bytes;
}

/* Maps guest cluster @g; @bitmap is for extended entries. Returns where its data goes. */
static uint64_t map(struct build *b, uint64_t g, uint64_t bitmap)
{
	uint64_t entry = entry_of(b, g), host;

	if (b->o->is_extended)
		put64(b, entry + 8, bitmap);
	if (b->o->has_data_file) {
		put64(b, entry, g * b->cluster | QCOW2_COPIED);
		return SIM_SECOND + g * b->cluster;
	}
	host = b->next++;
	refer(b, host, b->o->is_shared ? 2 : 1);
	put64(b, entry, host * b->cluster | (b->o->is_shared ? 0 : QCOW2_COPIED));
	return host * b->cluster;
}

/* Where @len bytes of compressed data go: behind the last ones, if the refcount of the cluster that
 * they would share allows @times more references, and what they need besides is free. */
static uint64_t place_packed(struct build *b, uint64_t len, unsigned times)
{
	uint64_t max = (1ULL << (1u << MIN(b->o->refcount_order, 4u))) - 1;
	uint64_t in = b->packed % b->cluster, k = b->packed / b->cluster;
	bool fits = in + len <= b->cluster;

	if (!in || b->counts[k] + times > max || (!fits && k + 1 != b->next)) {
		b->packed = b->next * b->cluster;
		fits = false;
		k = b->next - 1;
	}
	if (!fits) {
		sim_pages_fill(b->pages, (k + 1) * b->cluster, b->cluster, 0);
		refer(b, b->next++, 0);
	}
	return b->packed;
}

/* Maps guest cluster @g to @buf, its content, compressed. False: that would not be shorter. */
static bool map_packed(struct build *b, uint64_t g, const uint8_t *buf)
{
	unsigned times = b->o->is_shared ? 2 : 1, off_bits = 62 - (b->o->cluster_bits - 8);
	struct libdeflate_compressor *c = libdeflate_alloc_compressor(1);
	uint8_t *out = malloc(b->cluster);
	uint64_t entry, host, len;

	assert(c && out);
	len = libdeflate_deflate_compress(c, buf, b->cluster, out, b->cluster - 1);
	libdeflate_free_compressor(c);
	if (len) {
		entry = entry_of(b, g);
		host = place_packed(b, len, times);
		sim_pages_write(b->pages, host, out, len);
		for (uint64_t k = host / b->cluster; k <= (host + len - 1) / b->cluster; k++)
			refer(b, k, times);
		put64(b, entry, QCOW2_COMPRESSED | host |
				((host + len - 1) / 512 - host / 512) << off_bits);
		b->packed = host + len;
	}
	free(out);
	return len;
}

/* Which subclusters of guest cluster @g are data, and which are zeros; the same every time. */
static uint64_t draw_bitmap(uint64_t g)
{
	struct prng p = { mix64(g + 9) };
	uint64_t data = 0, zero = 0;

	for (unsigned i = 0; i < QCOW2_SUBCLUSTERS; i++) {
		uint64_t what = prng_below(&p, 8);

		data |= (uint64_t)(what < 4) << i;
		zero |= (uint64_t)(what >= 6) << i;
	}
	return prng_below(&p, 4) ? data | zero << 32 : 0xffffffff;
}

/* Writes what @bitmap of the cluster at @host says of the guest's @len bytes at @off. */
static void put_subclusters(struct build *b, uint64_t host, uint64_t bitmap, uint64_t off,
			    uint64_t len)
{
	uint64_t unit = b->cluster / QCOW2_SUBCLUSTERS;
	uint8_t *initial = b->m->initial + (off - b->im->window_off) / SIM_SECTOR;
	uint8_t *buf = malloc(unit);

	assert(buf);
	for (uint64_t at = 0, i = 0; at < len; at += unit, i++) {
		bool is_data = bitmap >> i & 1, is_zero = bitmap >> (32 + i) & 1;
		uint64_t n = MIN(unit, len - at);

		if (is_data || b->o->has_stale_within) {
			stamp_fill(!is_data ? STAMP_STALE :
				   b->o->is_backing ? STAMP_BACKING : STAMP_OWN, off + at, buf, n);
			sim_pages_write(b->pages, host + at, buf, n);
		}
		memset(initial + at / SIM_SECTOR, is_zero ? MODEL_ZEROED : !is_data ? MODEL_ZEROS :
		       b->o->is_backing ? MODEL_BACKING : MODEL_OWN, n / SIM_SECTOR);
	}
	free(buf);
}

static void map_all(struct build *b)
{
	uint64_t first = b->im->window_off / b->cluster;
	uint8_t *buf = calloc(1, b->cluster);

	assert(buf);
	for (uint64_t g = 0; g < b->blind; g++)
		map(b, g, 0xffffffff);
	for (uint64_t g = first; b->o->own_every && g < b->guest_clusters; g++) {
		uint64_t off = g * b->cluster, n = MIN(b->cluster, b->im->guest_size - off);
		bool is_packed = b->o->packed_every &&
				 (g - first) / b->o->own_every % b->o->packed_every == 0;

		if ((g - first) % b->o->own_every)
			continue;
		if (b->o->is_extended && !is_packed) {
			put_subclusters(b, map(b, g, draw_bitmap(g)), draw_bitmap(g), off, n);
			continue;
		}
		stamp_fill(b->o->is_backing ? STAMP_BACKING : STAMP_OWN, off, buf, n);
		memset(buf + n, 0, b->cluster - n);
		if (!is_packed || !map_packed(b, g, buf))
			sim_pages_write(b->pages, map(b, g, 0xffffffff), buf, n);
		memset(b->m->initial + (off - b->im->window_off) / SIM_SECTOR,
		       b->o->is_backing ? MODEL_BACKING : MODEL_OWN, n / SIM_SECTOR);
	}
	free(buf);
}

/* Content of guest sectors that are elsewhere, or nowhere. */
static void put_stale(struct build *b)
{
	uint8_t *buf = malloc(b->cluster);

	assert(buf);
	for (unsigned i = 0; i < b->o->stale; i++) {
		stamp_fill(STAMP_STALE, b->im->window_off + i * b->cluster, buf, b->cluster);
		sim_pages_write(b->pages, b->next++ * b->cluster, buf, b->cluster);
	}
	free(buf);
}

static void put_refcount(struct build *b, uint64_t k, uint64_t count)
{
	unsigned order = b->o->refcount_order, bytes = order < 3 ? 1 : 1u << (order - 3);
	uint64_t at = (b->blocks + k / b->per_block) * b->cluster, i = k % b->per_block;
	uint8_t byte, wide[8];

	if (order >= 3) {
		be64_store(wide, count);
		sim_pages_write(b->pages, at + i * bytes, wide + 8 - bytes, bytes);
		return;
	}
	at += i << order >> 3;
	sim_pages_read(b->pages, at, &byte, 1);
	byte |= (uint8_t)(count << (i << order & 7));
	sim_pages_write(b->pages, at, &byte, 1);
}

static void put_refcounts(struct build *b)
{
	do {
		b->nblocks++;
	} while (b->nblocks * b->per_block < b->next + b->nblocks);
	b->blocks = take(b, b->nblocks);
	assert(b->nblocks <= b->reftable_clusters * b->per_table);
	for (uint64_t i = 0; i < b->nblocks; i++)
		put64(b, b->reftable * b->cluster + i * 8, (b->blocks + i) * b->cluster);
	for (uint64_t k = 0; k < b->next; k++) {
		bool is_lost = b->o->is_damaged && k >= b->snapshot_l1 &&
			       k < b->snapshot_l1 + b->l1_clusters;

		if (!is_lost && b->counts[k])
			put_refcount(b, k, b->counts[k]);
	}
}

static void put_snapshot(struct build *b)
{
	struct {
		struct qcow2_snapshot_disk head;
		struct qcow2_snapshot_extra_disk extra;
		char id[1], name[1], padding[6];
	} s = {
		.head = { .l1_table_offset = be64_make(b->snapshot_l1 * b->cluster),
			  .l1_size = be32_make((uint32_t)b->l1_entries),
			  .id_size = be16_make(1), .name_size = be16_make(1),
			  .extra_size = be32_make(sizeof(s.extra)) },
		.extra = { .disk_size = be64_make(b->im->guest_size),
			   .icount = be64_make(UINT64_MAX) },
		.id = { '1' }, .name = { 's' },
	};

	sim_pages_write(b->pages, b->snapshots * b->cluster, &s, sizeof(s));
}

/* A bitmap's table and bits: none (@fill 0), all, or some; and its entry in the directory. */
static void put_bitmap(struct build *b, enum sim_bitmap i, unsigned bits, unsigned fill)
{
	static const uint32_t flags[SIM_BITMAPS] = { 2, 0, 3, 2 };
	uint64_t n = div_round_up(align_down(b->im->guest_size, SIM_SECTOR), 8ULL << bits);
	uint64_t entries = div_round_up(n, b->cluster);
	uint64_t table = take(b, div_round_up(entries * 8, b->cluster)) * b->cluster;
	uint8_t e[SIM_BITMAP_ENTRY_BYTES] = { 0 }, *some = malloc(b->cluster);

	assert(some);
	memset(some, 0x21, b->cluster);
	for (uint64_t k = 0; k < entries; k++) {
		uint64_t host = fill == 2 ? take(b, 1) * b->cluster : fill;

		put64(b, table + 8 * k, host);
		if (fill == 2)
			sim_pages_write(b->pages, host, some, b->cluster);
	}
	be64_store(e, table);
	be32_store(e + 8, (uint32_t)entries);
	be32_store(e + 12, flags[i]);
	e[16] = 1;
	e[17] = (uint8_t)bits;
	be16_store(e + 18, 1);
	e[24] = (uint8_t)('a' + i);
	sim_pages_write(b->pages, b->im->bitmaps_off + i * SIM_BITMAP_ENTRY_BYTES, e, sizeof(e));
	free(some);
}

static void put_bitmaps(struct build *b)
{
	uint64_t bytes = SIM_BITMAPS * SIM_BITMAP_ENTRY_BYTES;
	unsigned bits = b->o->bitmap_bits;

	if (!bits)
		return;
	b->im->bitmaps_off = take(b, div_round_up(bytes, b->cluster)) * b->cluster;
	put_bitmap(b, SIM_BITMAP_FINE, bits, b->o->bitmap_fill);
	put_bitmap(b, SIM_BITMAP_DISABLED, bits, 2);
	put_bitmap(b, SIM_BITMAP_IN_USE, bits, 2);
	put_bitmap(b, SIM_BITMAP_COARSE, bits + 3, 0);
}

/* Returns where the next one goes. */
static uint64_t put_ext(struct build *b, uint64_t at, uint32_t type, const void *data, size_t len)
{
	struct qcow2_ext_disk e = { be32_make(type), be32_make((uint32_t)len) };

	sim_pages_write(b->pages, at, &e, sizeof(e));
	sim_pages_write(b->pages, at + sizeof(e), data, len);
	return at + sizeof(e) + align_up(len, 8);
}

static void put_header(struct build *b)
{
	const struct sim_image_opts *o = b->o;
	uint64_t head = o->version == 2 ? QCOW2_HEADER_V2_BYTES : QCOW2_HEADER_V3_BYTES, at = head;
	struct qcow2_header_disk d = {
		.magic = be32_make(QCOW2_MAGIC), .version = be32_make(o->version),
		.cluster_bits = be32_make(o->cluster_bits), .size = be64_make(b->im->guest_size),
		.l1_size = be32_make((uint32_t)b->l1_entries),
		.l1_table_offset = be64_make(b->l1 * b->cluster),
		.refcount_table_offset = be64_make(b->reftable * b->cluster),
		.refcount_table_clusters = be32_make((uint32_t)b->reftable_clusters),
		.nb_snapshots = be32_make(o->is_shared),
		.snapshots_offset = be64_make(b->snapshots * b->cluster),
		.refcount_order = be32_make(o->refcount_order),
		.incompatible_features = be64_make(
			(o->is_extended ? QCOW2_INCOMPAT_EXTENDED_L2 : 0) |
			(o->has_data_file ? QCOW2_INCOMPAT_DATA_FILE : 0)),
		.compatible_features = be64_make(o->is_lazy ? QCOW2_COMPAT_LAZY_REFCOUNTS : 0),
		.autoclear_features = be64_make((o->is_odd ? SIM_AUTOCLEAR_UNKNOWN : 0) |
						(o->is_raw_data ? QCOW2_AUTOCLEAR_DATA_FILE_RAW :
								  0) |
						(o->bitmap_bits ? QCOW2_AUTOCLEAR_BITMAPS : 0)),
		.header_length = be32_make((uint32_t)head),
	};

	struct qcow2_ext_bitmaps_disk bitmaps = {
		.nb_bitmaps = be32_make(SIM_BITMAPS),
		.directory_size = be64_make(SIM_BITMAPS * SIM_BITMAP_ENTRY_BYTES),
		.directory_offset = be64_make(b->im->bitmaps_off),
	};

	if (o->backing_format)
		at = put_ext(b, at, QCOW2_EXT_BACKING_FORMAT, o->backing_format,
			     strlen(o->backing_format));
	if (o->bitmap_bits)
		at = put_ext(b, at, QCOW2_EXT_BITMAPS, &bitmaps, sizeof(bitmaps));
	if (o->is_odd)
		at = put_ext(b, at, SIM_EXT_UNKNOWN, "nobody knows", 12);
	at = put_ext(b, at, QCOW2_EXT_END, "", 0);
	if (o->backing_name) {
		d.backing_file_offset = be64_make(at);
		d.backing_file_size = be32_make((uint32_t)strlen(o->backing_name));
		sim_pages_write(b->pages, at, o->backing_name, strlen(o->backing_name));
	}
	sim_pages_write(b->pages, 0, &d, head);
}

void sim_image_make(const struct sim_image_opts *o, struct sim_pages *pages, struct model *m,
		    struct sim_image *ret)
{
	struct build b = { .o = o, .pages = pages, .m = m, .im = ret };

	assert(is_aligned(o->window, SIM_SECTOR));
	plan(&b);
	take(&b, 1);
	b.reftable_clusters = MAX(div_round_up((uint64_t)o->full_blocks * 8, b.cluster), 1u);
	b.reftable = take(&b, b.reftable_clusters);
	b.l1 = take(&b, b.l1_clusters);
	if (o->is_shared) {
		b.snapshot_l1 = take(&b, b.l1_clusters);
		b.snapshots = take(&b, 1);
	}
	put_data_file(&b);
	put_bitmaps(&b);
	map_all(&b);
	put_stale(&b);
	put_refcounts(&b);
	if (o->is_shared)
		put_snapshot(&b);
	put_header(&b);
	ret->file_size = b.next * b.cluster;
	free(b.counts);
	ret->damaged_off = b.snapshot_l1 * b.cluster;
	ret->damaged_len = b.l1_clusters * b.cluster;
}
