/* SPDX-License-Identifier: MIT */
/* sim/setup.c - what a trace's seed means, and the images that it begins with. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"
#include "base/prng.h"
#include "fmt/qcow2/qcow2.h"
#include "sim/trace.h"

static const char *const kind_names[TRACE_KINDS] = {
	"fresh", "raw backing file", "qcow2 backing file", "recycled clusters", "growth",
	"discard", "zeroes", "snapshot", "compressed clusters",
	"data file", "bitmaps", "lazy refcounts",
};
static const char *const packs_names[] = { "", ", some compressed", ", all compressed" };
static const unsigned sizes[TRACE_SIZES] = { 9, 12, 16, 21, 14, 16, 21 };

/* Enough for several L2 tables of the smallest clusters, and some clusters of the largest. */
static uint64_t draw_window(struct prng *p, unsigned size)
{
	static const uint64_t max[TRACE_SIZES] = { 256 * KiB, 1 * MiB, 2 * MiB, 12 * MiB,
						   512 * KiB, 2 * MiB, 12 * MiB };
	uint64_t n = max[size] / 4 + align_down(prng_below(p, max[size] - max[size] / 4),
						1ULL << sizes[size]);

	/* Often the disk ends within a cluster. */
	return align_down(n, SIM_SECTOR) - (prng_below(p, 2) ? 0 : SIM_SECTOR * prng_below(p, 16));
}

/* Blocks of refcounts are added in clusters of every size. Their table moves in the smallest alone,
 * for it must be full of blocks, and these of clusters that something maps, or they count as
 * leaked: 4,096 clusters of 512 bytes, but 262,144 of 4 KiB, which each judge would look at, and 67
 * million of 64 KiB. It moves in the same steps whatever the size: new blocks and the new table
 * in one write, a sync, one sector of the header, a sync. */
static void draw_growth(struct prng *p, struct sim_image_opts *im)
{
	uint64_t per_table = (1ULL << im->cluster_bits) / 8;

	im->version = 3;
	im->refcount_order = 6;
	im->spare = (unsigned)prng_below(p, 24);
	im->full_blocks = 1;
	if (im->cluster_bits != 9)
		return;
	/* Small clusters: the table is full as well; or the next entries would lie in two of its
	 * sectors. */
	switch (prng_below(p, 3)) {
	case 0:
		im->full_blocks = (unsigned)per_table;
		break;
	case 1:
		im->cluster_bits = 10;
		im->full_blocks = (unsigned)(SIM_SECTOR / 8 - 1 - prng_below(p, 3));
		break;
	default:
		break;
	}
}

static void draw_data_file(struct prng *p, struct trace_opts *o)
{
	struct sim_image_opts *im = &o->image;

	im->version = 3;
	im->has_data_file = true;
	im->is_raw_data = prng_below(p, 2);
	im->has_stale_within = im->is_extended && !im->is_raw_data;
	im->stale = 0;
	if (im->is_raw_data || prng_below(p, 3))
		return;
	o->backing_size = SIM_SECTOR * (1 + prng_below(p, im->window / SIM_SECTOR));
	im->backing_name = "base";
	im->backing_format = "raw";
}

/* Kinds that are features of an image: some come with others. */
static void draw_feature(struct prng *p, struct trace_opts *o)
{
	struct sim_image_opts *im = &o->image;

	switch (o->kind) {
	case TRACE_PACKED:
		im->own_every = 1 + (unsigned)prng_below(p, 2);
		im->packed_every = 1 + (unsigned)prng_below(p, 2);
		im->is_shared = prng_below(p, 3) == 0;
		im->refcount_order = MAX(im->refcount_order, im->is_shared);
		break;
	case TRACE_DATA_FILE:
		draw_data_file(p, o);
		break;
	case TRACE_BITMAPS:
		im->version = 3;
		im->bitmap_bits = 9 + (unsigned)prng_below(p, 8);
		im->bitmap_fill = (unsigned)prng_below(p, 3);
		im->own_every = (unsigned)prng_below(p, 3);
		im->has_data_file = prng_below(p, 4) == 0;
		im->is_shared = im->own_every && !im->has_data_file && prng_below(p, 4) == 0;
		im->is_lazy = prng_below(p, 4) == 0;
		im->refcount_order = MAX(im->refcount_order, im->is_shared);
		break;
	case TRACE_LAZY:
		im->version = 3;
		im->is_lazy = true;
		im->own_every = (unsigned)prng_below(p, 3);
		im->packed_every = prng_below(p, 3) ? 0 : 1 + (unsigned)prng_below(p, 2);
		im->has_data_file = !im->packed_every && prng_below(p, 4) == 0;
		im->is_shared = im->own_every && !im->has_data_file && prng_below(p, 3) == 0;
		im->refcount_order = MAX(im->refcount_order, im->is_shared);
		break;
	default:
		break;
	}
}

static void draw_image(struct prng *p, struct trace_opts *o)
{
	struct sim_image_opts *im = &o->image;

	im->version = prng_below(p, 4) || im->is_extended ? 3 : 2;
	im->refcount_order = im->version == 2 ? 4 : (unsigned)prng_below(p, 7);
	im->has_stale_within = im->is_extended;
	im->is_odd = im->version == 3 && !prng_below(p, 4);
	if (prng_below(p, 3) == 0)
		im->own_every = 1 + (unsigned)prng_below(p, 4);
	if (prng_below(p, 4) == 0)
		im->stale = 1 + (unsigned)prng_below(p, 12);
	switch (o->kind) {
	case TRACE_RAW_BACKING:
	case TRACE_QCOW2_BACKING:
		o->backing_size = im->window;
		if (prng_below(p, 3) == 0)
			o->backing_size = SIM_SECTOR * (1 + prng_below(p, im->window / SIM_SECTOR));
		im->backing_name = "base";
		im->backing_format = o->kind == TRACE_RAW_BACKING ? "raw" : "qcow2";
		o->backing_bits = prng_below(p, 2) ? im->cluster_bits : 9 + 3 *
							       (unsigned)prng_below(p, 3);
		break;
	case TRACE_RECYCLED:
		im->stale = 8 + (unsigned)prng_below(p, im->cluster_bits > 16 ? 4 : 40);
		break;
	case TRACE_GROWTH:
		im->own_every = 0;
		im->stale = 0;
		draw_growth(p, im);
		break;
	case TRACE_DISCARD:
	case TRACE_ZEROES:
		im->own_every = 1 + (unsigned)prng_below(p, 2);
		break;
	case TRACE_SHARED:
		im->is_shared = true;
		im->own_every = 1 + (unsigned)prng_below(p, 2);
		im->refcount_order = MAX(im->refcount_order, 1u);
		break;
	default:
		draw_feature(p, o);
		break;
	}
}

void trace_opts_init(struct trace_opts *o, uint64_t seed)
{
	unsigned cell = (unsigned)(seed % TRACE_CELLS);
	struct prng p = { mix64(seed + 1) };

	*o = (struct trace_opts){ .seed = seed };
	o->nloops = 1 + cell % WORLD_LOOPS_MAX;
	cell /= WORLD_LOOPS_MAX;
	o->image.cluster_bits = sizes[cell % TRACE_SIZES];
	o->image.is_extended = cell % TRACE_SIZES >= TRACE_EXTENDED;
	o->kind = (enum trace_kind)(cell / TRACE_SIZES);
	o->image.window = draw_window(&p, cell % TRACE_SIZES);
	draw_image(&p, o);
	o->is_device = prng_below(&p, 3) == 0;
	o->writethrough = prng_below(&p, 5) == 0;
	o->gives_back = prng_below(&p, 2);
	o->nfibers = prng_below(&p, 3) ? 1 + (unsigned)prng_below(&p, 6) : 1;
	o->nfibers = MAX(o->nfibers, o->nloops);
	o->nops = 20 + (unsigned)prng_below(&p, 60);
	if (o->image.cluster_bits > 16)
		o->nops = 8 + (unsigned)prng_below(&p, 14);
	if (prng_below(&p, 3) == 0)
		o->reopen_after = 1 + (unsigned)prng_below(&p, o->nops);
	o->is_in_order = prng_below(&p, 3) == 0;
}

void trace_describe(const struct trace_opts *o, char *ret, size_t size)
{
	const struct sim_image_opts *im = &o->image;

	snprintf(ret, size, "seed %llu: %s%s, version %u, clusters of %llu%s, refcounts of %u "
		 "bits, %u loop%s, %u fibers, %s%s%s%s%s%s%s",
		 (unsigned long long)o->seed, kind_names[o->kind],
		 im->is_shared && o->kind != TRACE_SHARED ? ", a snapshot" :
		 im->is_raw_data ? ", raw" :
		 im->has_data_file && o->kind != TRACE_DATA_FILE ? ", a data file" : "",
		 im->version, 1ULL << im->cluster_bits, im->is_extended ? " (subclusters)" : "",
		 1u << im->refcount_order, o->nloops,
		 o->nloops > 1 ? "s" : "", o->nfibers, o->is_device ? "device" : "file",
		 o->writethrough ? ", writethrough" : "", o->gives_back ? ", discard" : "",
		 o->is_in_order ? ", in order" : "",
		 im->stale ? ", stale clusters" : "",
		 packs_names[o->packs], o->fault.nth ? ", faults" : "");
}

/* ---- opening ---- */

static int open_backing_wait(const struct trace *t, struct loop *l, struct world *w,
			     struct qcow2_cache *cache, struct node **ret, struct err *err)
{
	struct sim_disk_opts so = { .name = "base", .world = w, .home = l, .read_only = true,
				    .size = t->backing_file_size, .seed = t->o.seed,
				    .pages = (struct sim_pages *)(uintptr_t)&t->backing };
	struct qcow2_opts qo = { .cache = cache };
	struct node *file;
	int rc = sim_disk_open_wait(&so, &file);

	if (rc || t->o.kind != TRACE_QCOW2_BACKING) {
		*ret = file;
		return rc;
	}
	rc = qcow2_open_wait(file, &qo, ret, err);
	if (rc)
		node_put_wait(file);
	return rc;
}

/* Attaches @child, if it could be opened (@rc). Sim's disks fail at nothing else. */
static void attach_wait(struct node *n, enum node_child which, struct node *child, int rc,
			struct err *err)
{
	if (!rc)
		rc = node_attach_wait(n, which, child, err);
	assert(rc == 0);
}

static void attach_data_wait(const struct trace *t, const struct sim_disk_opts *so, struct node *n,
			     struct err *err)
{
	struct sim_disk_opts second = *so;
	struct node *data;
	int rc;

	second.name = "data";
	second.number = 1;
	second.size = align_up(t->im.guest_size, SIM_SECTOR);
	second.seed++;
	rc = sim_disk_open_wait(&second, &data);
	attach_wait(n, CHILD_DATA, data, rc, err);
}

int trace_open_wait(const struct trace *t, const struct sim_disk_opts *so,
		    const struct qcow2_opts *opts, struct qcow2_cache **ret_cache,
		    struct node **ret, struct err *err)
{
	struct qcow2_opts qo = *opts;
	struct node *file, *below;
	int rc = sim_disk_open_wait(so, &file);

	assert(rc == 0);
	qo.cache = qcow2_cache_new(0, so->home);
	assert(qo.cache);
	rc = qcow2_open_wait(file, &qo, ret, err);
	if (rc) {
		node_put_wait(file);
		qcow2_cache_free(qo.cache);
		return rc;
	}
	if (t->o.image.has_data_file)
		attach_data_wait(t, so, *ret, err);
	if (t->o.backing_size) {
		rc = open_backing_wait(t, so->home, so->world, qo.cache, &below, err);
		attach_wait(*ret, CHILD_BACKING, below, rc, err);
	}
	*ret_cache = qo.cache;
	return 0;
}
