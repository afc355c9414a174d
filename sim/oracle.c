/* SPDX-License-Identifier: MIT */
#include "sim/oracle.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"
#include "fmt/qcow2/bitmap.h"
#include "fmt/qcow2/check.h"
#include "fmt/qcow2/format.h"
#include "fmt/qcow2/qcow2.h"
#include "fmt/qcow2/writer.h"
#include "sim/bitmaps.h"

enum { PIECE = 64 << 10, HEADER_READ = 512, WALK_SECONDS_MAX = 10000 };

struct job {
	struct oracle *o;
	struct trace *t;
	struct sim_pages *pages;
	uint64_t size;
	uint32_t k;
	uint64_t seed;
	bool is_clean;                  /* nothing may be leaked, all that was done is there */
	bool is_written_on;             /* by us */
	bool was_marked[SIM_BITMAPS];   /* the bitmaps, then */
	struct node *node;
	struct qcow2_cache *cache;
};

void oracle_init(struct oracle *o, uint64_t seed)
{
	*o = (struct oracle){ .buf = malloc(PIECE) };
	assert(o->buf);
	world_init(&o->w, 1, seed);
}

void oracle_fini(struct oracle *o)
{
	world_fini(&o->w);
	free(o->buf);
}

__attribute__((format(printf, 2, 3)))
static void say(struct oracle *o, const char *fmt, ...)
{
	size_t n = strlen(o->why);
	va_list ap;

	if (n > sizeof(o->why) / 2)
		return;
	va_start(ap, fmt);
	vsnprintf(o->why + n, sizeof(o->why) - n, fmt, ap);
	va_end(ap);
}

/* ---- the header ---- */

static bool header_is(const struct job *j, uint64_t off, const void *want, uint64_t len)
{
	uint8_t found[HEADER_READ];

	sim_pages_read(j->pages, off, found, len);
	return !memcmp(found, want, len);
}

/* The list of extensions of @pages, each with its head; bytes without the end. */
static uint64_t extensions(const struct trace *t, const struct sim_pages *pages, uint8_t *ret)
{
	bool is_v2 = t->o.image.version == 2;
	uint64_t at = is_v2 ? QCOW2_HEADER_V2_BYTES : QCOW2_HEADER_V3_BYTES, n = 0;

	sim_pages_read(pages, 0, ret, HEADER_READ);
	memmove(ret, ret + at, HEADER_READ - at);
	while (n + 8 <= HEADER_READ - at && be32_load(ret + n) != QCOW2_EXT_END)
		n += 8 + align_up((uint64_t)be32_load(ret + n + 4), 8);
	return MIN(n, HEADER_READ - at);
}

static bool is_dirty(const struct job *j)
{
	uint8_t features[8];

	if (j->t->o.image.version < 3)
		return false;
	sim_pages_read(j->pages, 72, features, sizeof(features));
	return be64_load(features) & QCOW2_INCOMPAT_DIRTY;
}

static void judge_header(struct job *j)
{
	const struct sim_image_opts *io = &j->t->o.image;
	uint8_t was[HEADER_READ], is[HEADER_READ], field[8];
	uint64_t nwas = extensions(j->t, &j->t->start, was), nis = extensions(j->t, j->pages, is);

	if (nis < nwas || memcmp(was, is, nwas))
		say(j->o, "the header's extensions have changed; ");
	else if (j->is_clean && nis != nwas)
		say(j->o, "after a clean close the header has another extension; ");
	if (io->backing_name) {
		sim_pages_read(j->pages, 8, field, sizeof(field));
		if (be64_load(field) > (1ULL << io->cluster_bits) - 4 ||
		    !header_is(j, be64_load(field), io->backing_name, strlen(io->backing_name)))
			say(j->o, "the backing file's name is lost; ");
	}
	sim_pages_read(j->pages, 88, field, sizeof(field));
	if (io->is_odd && j->k > j->t->first_change &&
	    (be64_load(field) & SIM_AUTOCLEAR_UNKNOWN))
		say(j->o, "changed with an unknown autoclear bit set; ");
}

/* ---- bitmaps ---- */

static bool is_marked(const struct job *j, enum sim_bitmap i)
{
	return sim_bitmap_head(&j->t->im, j->pages, i).flags & BITMAP_IN_USE;
}

/* Has bitmap @i a bit for each granule that was changed, and for no other? After a cut the content
 * says what was. */
static void judge_bits(struct job *j, enum sim_bitmap i)
{
	const struct sim_image *im = &j->t->im;
	uint64_t step = 1ULL << sim_bitmap_head(im, j->pages, i).granularity_bits;

	for (uint64_t off = im->window_off; off < im->guest_size; off += step) {
		bool is = sim_bitmap_bit(im, j->pages, i, off);
		bool must = sim_bitmap_bit(im, &j->t->start, i, off) ||
			    (!j->is_written_on && model_was_changed(&j->t->model, off, step));

		if (is == must || (is && j->is_written_on))
			continue;
		say(j->o, "bitmap %u %s a bit for %#llx; ", (unsigned)i, is ? "has" : "lacks",
		    (unsigned long long)off);
		return;
	}
}

static void judge_bitmaps(struct job *j)
{
	for (unsigned n = 0; n < SIM_BITMAPS; n++) {
		enum sim_bitmap i = (enum sim_bitmap)n;

		if (!sim_bitmap_is_tracked(i)) {
			if (!sim_bitmap_is_same(&j->t->im, &j->t->start, j->pages, i))
				say(j->o, "bitmap %u, which nobody tracks, has changed; ", n);
		} else if (!j->is_clean || j->was_marked[n]) {
			if (j->is_clean && !is_marked(j, i))
				say(j->o, "bitmap %u has lost its mark; ", n);
		} else if (is_marked(j, i)) {
			say(j->o, "bitmap %u is marked after a clean close; ", n);
		} else {
			judge_bits(j, i);
		}
	}
}

/* The sector at @off is @sector: do the bitmaps that count know, if it is not what it was? */
static bool is_known(struct job *j, uint64_t off, const uint8_t *sector)
{
	if (model_is_initial(&j->t->model, off, sector))
		return true;
	for (unsigned n = 0; n < SIM_BITMAPS; n++) {
		enum sim_bitmap i = (enum sim_bitmap)n;

		if (!sim_bitmap_is_tracked(i) || is_marked(j, i) ||
		    sim_bitmap_bit(&j->t->im, j->pages, i, off))
			continue;
		say(j->o, "%#llx has changed, bitmap %u does not know, and is not marked; ",
		    (unsigned long long)off, n);
		return false;
	}
	return true;
}

/* ---- content ---- */

static bool piece_is_touched(const struct model *m, uint64_t off, uint64_t len)
{
	for (uint64_t s = 0; s < len; s += SIM_SECTOR)
		if (model_is_touched(m, off + s))
			return true;
	return false;
}

static void judge_content_wait(struct job *j)
{
	struct model *m = &j->t->model;
	uint64_t n;

	for (uint64_t at = 0; at < m->len; at += n) {
		uint64_t off = m->off + at;

		n = MIN((uint64_t)PIECE, m->len - at);
		/* The rest now and then. */
		if (!j->is_clean && !piece_is_touched(m, off, n) && (at / PIECE + j->k) % 16)
			continue;
		int rc = chan_read_wait(j->node->home_chan, off, j->o->buf, n);

		if (rc) {
			say(j->o, "reading at %#llx: %s; ", (unsigned long long)off, strerror(-rc));
			return;
		}
		for (uint64_t s = 0; s < n; s += SIM_SECTOR) {
			if (!model_check_crash(m, off + s, j->o->buf + s, j->k))
				say(j->o, "%s; ", m->why);
			else if (!j->t->im.bitmaps_off || !model_is_touched(m, off + s) ||
				 is_known(j, off + s, j->o->buf + s))
				continue;
			return;
		}
	}
}

/* A raw data file shows the same without the image. */
static void judge_raw(struct job *j)
{
	struct model *m = &j->t->model;
	uint8_t sector[SIM_SECTOR];

	for (uint64_t off = m->off; off < m->off + m->len; off += SIM_SECTOR) {
		if (!j->is_clean && !model_is_touched(m, off))
			continue;
		sim_pages_read(j->pages, SIM_SECOND + off, sector, sizeof(sector));
		if (model_check_raw(m, off, sector, j->k))
			continue;
		say(j->o, "the raw data file: %s; ", m->why);
		return;
	}
}

/* A snapshot never changes. */
static void judge_snapshot_wait(struct job *j)
{
	const struct model *m = &j->t->model;
	uint8_t want[SIM_SECTOR];
	uint64_t n;

	for (uint64_t at = 0; at < m->len; at += n) {
		n = MIN((uint64_t)PIECE, m->len - at);
		int rc = chan_read_wait(j->node->home_chan, m->off + at, j->o->buf, n);

		for (uint64_t s = 0; !rc && s < n; s += SIM_SECTOR) {
			memset(want, 0, sizeof(want));
			if (m->initial[(at + s) / SIM_SECTOR] == MODEL_OWN)
				stamp_fill(STAMP_OWN, m->off + at + s, want, sizeof(want));
			if (!memcmp(want, j->o->buf + s, sizeof(want)))
				continue;
			say(j->o, "the snapshot has changed at %#llx; ",
			    (unsigned long long)(m->off + at + s));
			return;
		}
		if (rc) {
			say(j->o, "reading the snapshot: %s; ", strerror(-rc));
			return;
		}
	}
}

/* ---- the check ---- */

static void hear(void *arg, bool is_named, char *text)
{
	struct job *j = arg;

	if (!strncmp(text, "Leaked", 6) && !j->is_clean)
		return;
	say(j->o, "%s; ", text);
}

/* The first event behind cut @n of its session of what @at saw, or @at: at that event or before. */
static const struct trace_probe *probe_of_cut(const struct trace *t, const struct trace_probe *at,
					      uint64_t n)
{
	while (at > t->probes && at[-1].session == at->session && at[-1].cuts >= n)
		at--;
	return at;
}

/* The most that may be leaked. Page by page, the disk has what the pages were at the cut of the
 * last commit that has ended, or at that of the one under way, if it has taken it. A cluster has a
 * refcount there that is no entry's
 *	if it had at one of the cuts: it was in the reserve, in quarantine, or on its way from the
 *	one or to the other;
 *	or if an entry named it at one of them only. Then it was held at the first one, or came into
 *	the reserve since; or it has been freed since.
 * So it was held at the first cut, or came into the reserve or was freed between both. Of what else
 * happens, only a refcount table that moves does not wait for a commit: its old place is nobody's
 * as soon as the header names the new one. */
static uint64_t leaks_max(const struct job *j)
{
	const struct trace *t = j->t;
	const struct trace_probe none = { 0 }, *now, *first, *second;
	uint32_t i = MIN(j->k, t->log.nevents);
	uint64_t n;

	if (j->is_clean || !i)
		return 0;
	if (t->o.fault.struck)          /* what fails may leak (R6) */
		return UINT64_MAX;
	now = &t->probes[i - 1];
	/* A session begins with what the one before has left in order. */
	first = now->commits ? probe_of_cut(t, now, now->commits) : &none;
	n = first->held + now->left - first->left + (now->is_moving ? now->table : 0);
	if (now->cuts == now->commits)
		return n;
	second = probe_of_cut(t, now, now->cuts);
	return n + second->filled - first->filled + second->freed - first->freed;
}

static void judge_check_wait(struct job *j)
{
	const struct qcow2_check_say s = { .fn = hear, .arg = j };
	struct qcow2_check found;
	int rc = qcow2_check_wait(j->node, &s, &found, NULL);

	if (rc)
		say(j->o, "the check ends with %s; ", strerror(-rc));
	if (rc)
		return;
	j->o->leaks = found.leaks;
	j->o->leaks_max = leaks_max(j);
	j->o->leaked += found.leaks != 0;
	j->o->most_leaks = MAX(j->o->most_leaks, found.leaks);
	if (found.corruptions || found.check_errors)
		say(j->o, "%llu corruptions, %llu check errors; ",
		    (unsigned long long)found.corruptions, (unsigned long long)found.check_errors);
	/* Q10, the other way round; a later session may leave what an earlier one used. */
	if (j->is_clean && j->pages == &j->t->medium && j->t->sessions == 1 &&
	    !j->t->o.is_device && j->size > MAX(found.image_end, j->t->start_size))
		say(j->o, "the file has %llu bytes, and ends at %llu; ",
		    (unsigned long long)j->size, (unsigned long long)found.image_end);
	if (found.leaks && found.leaks + j->o->fewer > j->o->leaks_max)
		say(j->o, "%llu clusters are leaked, %llu at most should be; ",
		    (unsigned long long)found.leaks, (unsigned long long)j->o->leaks_max);
}

/* ---- opening ---- */

/* Opens what @j says. False: said why not. */
static bool open_wait(struct job *j, struct qcow2_opts qo)
{
	struct sim_disk_opts so = { .name = "image", .home = j->o->w.loops[0],
				    .is_device = j->t->o.is_device, .size = j->size,
				    .pages = j->pages, .read_only = !qo.writable };
	struct err err = { 0 };
	int rc = trace_open_wait(j->t, &so, &qo, &j->cache, &j->node, &err);

	if (rc)
		say(j->o, "it cannot be opened: %s; ", err.text);
	return !rc;
}

static void close_wait(struct job *j)
{
	struct err err = { 0 };
	struct node *file = j->node->child[CHILD_FILE];

	if (node_settle_wait(j->node, &err))
		say(j->o, "closing: %s; ", err.text);
	j->size = atomic_load(&file->size);
	node_put_wait(j->node);
	qcow2_cache_free(j->cache);
}

static int judge(void *arg)
{
	struct job *j = arg;

	judge_header(j);
	j->o->is_dirty = is_dirty(j);
	if (j->is_clean && j->o->is_dirty)
		say(j->o, "it is dirty after a clean close; ");
	if (j->t->o.image.is_raw_data)
		judge_raw(j);
	if (j->t->im.bitmaps_off)
		judge_bitmaps(j);
	if (!open_wait(j, (struct qcow2_opts){ 0 }))
		return 0;
	if (!j->o->is_dirty)
		judge_check_wait(j);
	judge_content_wait(j);
	close_wait(j);
	if (!j->t->o.image.is_shared ||
	    !open_wait(j, (struct qcow2_opts){ .snapshot = "1" }))
		return 0;
	judge_snapshot_wait(j);
	close_wait(j);
	return 0;
}

/* Gives the walk that reclaims leaks its time. */
static void walk_wait(struct job *j)
{
	const struct reclaim *r = &qcow2_of(j->node)->writer->reclaim;
	unsigned n = 0;

	while (r->is_running && n++ < WALK_SECONDS_MAX)
		fiber_sleep_wait(NS_PER_SEC);
	if (r->is_running)
		say(j->o, "the walk does not end; ");
}

/* After judge(): @j->is_clean is not set, the image may leak. */
static int write_and_judge(void *arg)
{
	struct job *j = arg;
	struct model *m = &j->t->model;
	struct prng p = { j->seed };
	int rc = 0;

	for (unsigned i = 0; j->t->im.bitmaps_off && i < SIM_BITMAPS; i++)
		j->was_marked[i] = is_marked(j, (enum sim_bitmap)i);
	j->is_written_on = true;
	if (!open_wait(j, (struct qcow2_opts){ .writable = true, .discard = prng_below(&p, 2) }))
		return 0;
	/* What is there already, so that the judge finds what he expects. */
	for (unsigned i = 0; i < 4 && !rc; i++) {
		uint64_t off = m->off + align_down(prng_below(&p, m->len), SIM_SECTOR);
		uint64_t len = MIN(SIM_SECTOR * (1 + prng_below(&p, 32)), m->off + m->len - off);

		rc = chan_read_wait(j->node->home_chan, off, j->o->buf, len);
		if (!rc)
			rc = chan_write_wait(j->node->home_chan, off, j->o->buf, len);
		if (!rc && i == 1)
			rc = chan_flush_wait(j->node->home_chan);
	}
	if (rc)
		say(j->o, "writing on: %s; ", strerror(-rc));
	walk_wait(j);
	close_wait(j);
	j->is_clean = true;
	return judge(j);
}

static bool run(struct job *j, int (*fn)(void *arg))
{
	j->o->why[0] = 0;
	j->o->images++;
	if (world_call(&j->o->w, 0, fn, j))
		say(j->o, "somebody waits for ever; ");
	return !j->o->why[0];
}

bool oracle_judge(struct oracle *o, struct trace *t, struct sim_pages *pages, uint64_t size,
		  uint32_t k)
{
	struct job j = { .o = o, .t = t, .pages = pages, .size = size, .k = k };

	return run(&j, judge);
}

bool oracle_judge_closed(struct oracle *o, struct trace *t)
{
	struct job j = { .o = o, .t = t, .pages = &t->medium, .size = t->size,
			 .k = t->log.nevents, .is_clean = true };

	return run(&j, judge);
}

bool oracle_reopen(struct oracle *o, struct trace *t, struct sim_pages *pages, uint64_t size,
		   uint32_t k, uint64_t seed)
{
	struct job j = { .o = o, .t = t, .pages = pages, .size = size, .k = k, .seed = seed };

	o->reopened++;
	return run(&j, write_and_judge);
}
