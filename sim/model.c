/* SPDX-License-Identifier: MIT */
#include "sim/model.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"

/* A stamp is 16 bits of STAMP_MAGIC, 12 of the write's number, 30 of the sector, 6 of the word. */
#define STAMP_MAGIC 0x57a3ULL
enum { SECTOR = 512, SECTOR_WORDS = SECTOR / 8 };

void model_init(struct model *m, uint64_t off, uint64_t len)
{
	*m = (struct model){ .off = off, .len = len };
	m->initial = calloc(len / SECTOR, 1);
	m->newest = calloc(len / SECTOR, sizeof(*m->newest));
	assert(m->initial && m->newest);
}

void model_fini(struct model *m)
{
	free(m->initial);
	free(m->newest);
	free(m->versions);
	free(m->ops);
}

/* ---- stamps ---- */

static uint64_t stamp(unsigned number, uint64_t off)
{
	return STAMP_MAGIC << 48 | (uint64_t)number << 36 |
	       (off / SECTOR & ((1ULL << 30) - 1)) << 6 | (off / 8 & (SECTOR_WORDS - 1));
}

void stamp_fill(unsigned number, uint64_t off, void *buf, uint64_t len)
{
	uint8_t *to = buf;

	for (uint64_t end = off + len; off < end;) {
		uint64_t word = stamp(number, off), in = off % SECTOR, n;

		if (!in && end - off >= SECTOR) {       /* the fast way */
			n = SECTOR;
			for (uint64_t i = 0; i < SECTOR_WORDS; i++)
				memcpy(to + 8 * i, &(uint64_t){ word + i }, 8);
		} else {
			n = MIN(8 - in % 8, end - off);
			memcpy(to, (uint8_t *)&word + in % 8, n);
		}
		to += n;
		off += n;
	}
}

bool stamp_is_there(const void *buf, uint64_t len)
{
	const uint8_t *from = buf;
	uint64_t word;

	for (uint64_t at = 0; at + 8 <= len; at += at ? SECTOR : MIN((uint64_t)SECTOR, len)) {
		memcpy(&word, from + at, 8);
		if (word >> 48 == STAMP_MAGIC)
			return true;
	}
	return false;
}

static bool is_stamp(unsigned number, uint64_t off, const uint8_t *buf, uint64_t len)
{
	uint8_t want[SECTOR];
	uint64_t first = stamp(number, off);

	if (len >= 8 && off % 8 == 0 && memcmp(&first, buf, 8))
		return false;           /* the fast way */
	stamp_fill(number, off, want, len);
	return !memcmp(want, buf, len);
}

static bool is_zero(const uint8_t *buf, uint64_t len)
{
	return !len || (!buf[0] && !memcmp(buf, buf + 1, len - 1));
}

/* ---- operations ---- */

static void *room_for(void *list, uint32_t n, uint32_t *room, size_t size)
{
	if (n < *room)
		return list;
	*room = MAX(2 * *room, 256u);
	list = realloc(list, *room * size);
	assert(list);
	return list;
}

uint32_t model_begin(struct model *m, enum model_kind kind, uint64_t off, uint64_t len,
		     bool is_race, uint32_t now)
{
	assert(range_within(off - m->off, len, m->len) && m->nops < STAMP_OPS_MAX);
	m->ops = room_for(m->ops, m->nops, &m->ops_room, sizeof(*m->ops));
	m->ops[m->nops] = (struct model_op){ .kind = kind, .off = off, .len = len, .begin = now,
					     .done = MODEL_NEVER, .flushed = MODEL_NEVER,
					     .restored = MODEL_NEVER };
	for (uint64_t s = align_down(off, SECTOR); s < off + len; s += SECTOR) {
		uint32_t *newest = &m->newest[(s - m->off) / SECTOR];

		m->versions = room_for(m->versions, m->nversions, &m->versions_room,
				       sizeof(*m->versions));
		m->versions[m->nversions] = (struct model_version){
			.op = m->nops, .older = *newest,
			.state = is_race ? VERSION_RACE :
				 kind == MODEL_DISCARD ? VERSION_EITHER : VERSION_NEW };
		*newest = ++m->nversions;
	}
	return m->nops++;
}

void model_end(struct model *m, uint32_t op, int res, bool is_durable, uint32_t now)
{
	struct model_op *o = &m->ops[op];

	o->done = now;
	o->done_serial = ++m->serial;
	o->res = res;
	if (!res && is_durable)
		o->flushed = now;
	if (!res)
		return;
	for (uint64_t s = align_down(o->off, SECTOR); s < o->off + o->len; s += SECTOR) {
		uint32_t v = m->newest[(s - m->off) / SECTOR];

		while (m->versions[v - 1].op != op)
			v = m->versions[v - 1].older;
		if (m->versions[v - 1].state == VERSION_NEW)
			m->versions[v - 1].state = VERSION_EITHER;
	}
}

bool model_is_open(const struct model *m, uint32_t op)
{
	return m->ops[op].res || m->ops[op].kind == MODEL_DISCARD;
}

uint32_t model_mark(const struct model *m)
{
	return m->serial;
}

void model_flushed(struct model *m, uint32_t begun, uint32_t now)
{
	for (uint32_t i = 0; i < m->nops; i++) {
		struct model_op *o = &m->ops[i];

		if (o->done != MODEL_NEVER && o->done_serial <= begun && o->flushed == MODEL_NEVER)
			o->flushed = now;
	}
}

void model_restored(struct model *m, uint32_t begun, uint32_t now)
{
	for (uint32_t i = 0; i < m->nops; i++) {
		struct model_op *o = &m->ops[i];

		if (o->done != MODEL_NEVER && o->done_serial <= begun)
			o->restored = MIN(o->restored, now);
	}
}

/* ---- what is there ---- */

/* Is [@off, @off + @len), within a sector, what @ver's operation makes of it? */
static bool is_made_by(const struct model *m, const struct model_version *ver, uint64_t off,
		       const uint8_t *buf, uint64_t len)
{
	return m->ops[ver->op].kind == MODEL_WRITE ? is_stamp(ver->op, off, buf, len) :
						     is_zero(buf, len);
}

/* Is [@off, @off + @len), within a sector, what version @v (+ 1) left? */
static bool is_version(const struct model *m, uint32_t v, uint64_t off, const uint8_t *buf,
		       uint64_t len)
{
	while (v && len) {
		const struct model_version *ver = &m->versions[v - 1];
		const struct model_op *o = &m->ops[ver->op];
		uint64_t from = MAX(off, o->off), to = MIN(off + len, o->off + o->len);
		bool is_new;

		v = ver->older;
		if (ver->state == VERSION_OLD || from >= to)
			continue;
		is_new = is_made_by(m, ver, from, buf + (from - off), to - from);
		if (!is_new && ver->state == VERSION_NEW)
			return false;
		if (!is_new)
			continue;       /* then all of it must be older */
		/* What the operation did not cover is as before it. */
		if (!is_version(m, v, off, buf, from - off))
			return false;
		buf += to - off;
		len -= to - off;
		off = to;
	}
	if (!len)
		return true;
	switch ((enum model_initial)m->initial[(off - m->off) / SECTOR]) {
	case MODEL_OWN:
		return is_stamp(STAMP_OWN, off, buf, len);
	case MODEL_BACKING:
		return is_stamp(STAMP_BACKING, off, buf, len);
	case MODEL_ZEROS:
	case MODEL_ZEROED:
		break;
	}
	return is_zero(buf, len);
}

/* Says what is in the sector at @off, where version @v was expected. */
static bool mismatch(struct model *m, uint64_t off, const uint8_t *sector, uint32_t v)
{
	uint64_t word;
	int n = snprintf(m->why, sizeof(m->why), "guest sector %#llx: expected ",
			 (unsigned long long)off);

	if (v)
		n += snprintf(m->why + n, sizeof(m->why) - n, "%s %u%s",
			      m->ops[m->versions[v - 1].op].kind == MODEL_WRITE ? "write" :
			      m->ops[m->versions[v - 1].op].kind == MODEL_ZERO ? "zero" : "discard",
			      m->versions[v - 1].op,
			      m->versions[v - 1].state == VERSION_OLD ? " (without effect)" : "");
	else
		n += snprintf(m->why + n, sizeof(m->why) - n, "what was there first (%u)",
			      m->initial[(off - m->off) / SECTOR]);
	memcpy(&word, sector, 8);
	for (unsigned i = 0; i < SECTOR && word >> 48 != STAMP_MAGIC; i += 8)
		memcpy(&word, sector + i, 8);
	if (word >> 48 == STAMP_MAGIC)
		snprintf(m->why + n, sizeof(m->why) - n, ", found write %u of guest sector %#llx",
			 (unsigned)(word >> 36 & 0xfff),
			 (unsigned long long)(word >> 6 & ((1ULL << 30) - 1)) * SECTOR);
	else
		snprintf(m->why + n, sizeof(m->why) - n, ", found %s",
			 is_zero(sector, SECTOR) ? "zeros" : "garbage");
	return false;
}

/* EITHER no longer, where @sector shows which it was. */
static void decide(struct model *m, uint64_t off, const uint8_t *sector)
{
	struct model_version *v = &m->versions[m->newest[(off - m->off) / SECTOR] - 1];
	bool is_new;

	v->state = VERSION_NEW;
	is_new = is_version(m, m->newest[(off - m->off) / SECTOR], off, sector, SECTOR);
	v->state = is_new ? VERSION_NEW : VERSION_OLD;
}

/* Is [@off, @off + @len), within a sector, right for a read that began at @begun? */
static bool is_readable(struct model *m, uint64_t off, const uint8_t *buf, uint64_t len,
			uint32_t begun)
{
	uint32_t newest = m->newest[(off - m->off) / SECTOR];
	uint8_t sector[SECTOR] = { 0 };

	for (uint32_t v = newest;; v = m->versions[v - 1].older) {
		const struct model_op *o = v ? &m->ops[m->versions[v - 1].op] : NULL;
		bool is_settled = !o || (o->done != MODEL_NEVER && o->done_serial <= begun);

		if (is_version(m, v, off, buf, len)) {
			if (v && v == newest && is_settled && len == SECTOR &&
			    m->versions[v - 1].state == VERSION_EITHER)
				decide(m, off, buf);
			return true;
		}
		/* What may have had no effect says nothing against those before it. */
		if (!v || (is_settled && m->versions[v - 1].state == VERSION_NEW))
			break;
	}
	memcpy(sector, buf, len);
	return mismatch(m, off, sector, newest);
}

bool model_check_read(struct model *m, uint64_t off, const void *buf, uint64_t len, uint32_t begun)
{
	const uint8_t *at = buf;

	for (uint64_t end = off + len; off < end;) {
		uint64_t n = MIN(align_down(off, SECTOR) + SECTOR, end) - off;

		if (!is_readable(m, off, at, n, begun))
			return false;
		at += n;
		off += n;
	}
	return true;
}

void model_note_raw(struct model *m, uint64_t off, const void *sector)
{
	uint32_t v = m->newest[(off - m->off) / SECTOR];
	struct model_version *ver = v ? &m->versions[v - 1] : NULL;
	const struct model_op *o = v ? &m->ops[ver->op] : NULL;
	uint64_t from, to;

	if (!v || ver->state != VERSION_OLD || !o->res)
		return;
	from = MAX(off, o->off);
	to = MIN(off + SECTOR, o->off + o->len);
	if (is_made_by(m, ver, from, (const uint8_t *)sector + (from - off), to - from))
		ver->is_left = true;
}

/* Does [@off, @off + @len), within a sector, hold version @v (+ 1) or an older one that a cut at @k
 * may have left? Where a version covers a part, the rest is judged by itself: an operation in
 * between may be lost there. */
static bool may_be_left(const struct model *m, uint32_t v, uint64_t off, const uint8_t *buf,
			uint64_t len, uint32_t k, bool is_raw)
{
	for (; v && len; v = m->versions[v - 1].older) {
		const struct model_version *ver = &m->versions[v - 1];
		const struct model_op *o = &m->ops[ver->op];
		uint64_t from = MAX(off, o->off), to = MIN(off + len, o->off + o->len);
		uint32_t older = ver->older;
		/* What failed and is hidden may be seen again, where a cut undoes what hid it. */
		bool is_gone = ver->state == VERSION_OLD && (!o->res || o->flushed <= k) &&
			       !(is_raw && ver->is_left && o->restored > k);

		if (is_gone || from >= to)
			continue;
		if (is_made_by(m, ver, from, buf + (from - off), to - from) &&
		    may_be_left(m, older, off, buf, from - off, k, is_raw) &&
		    may_be_left(m, older, to, buf + (to - off), off + len - to, k, is_raw))
			return true;
		if (o->flushed <= k && ver->state == VERSION_NEW)
			return false;
	}
	return is_version(m, 0, off, buf, len);
}

static bool check_crash(struct model *m, uint64_t off, const void *sector, uint32_t k, bool is_raw)
{
	uint32_t newest = m->newest[(off - m->off) / SECTOR], v;

	while (newest && m->ops[m->versions[newest - 1].op].begin > k)
		newest = m->versions[newest - 1].older;
	if (may_be_left(m, newest, off, sector, SECTOR, k, is_raw))
		return true;
	/* What to say: the newest that had to be there. */
	for (v = newest; v && m->ops[m->versions[v - 1].op].flushed > k;)
		v = m->versions[v - 1].older;
	return mismatch(m, off, sector, v);
}

bool model_check_crash(struct model *m, uint64_t off, const void *sector, uint32_t k)
{
	return check_crash(m, off, sector, k, false);
}

bool model_check_raw(struct model *m, uint64_t off, const void *sector, uint32_t k)
{
	return check_crash(m, off, sector, k, true);
}

bool model_is_initial(const struct model *m, uint64_t off, const void *sector)
{
	return is_version(m, 0, off, sector, SECTOR);
}

bool model_was_changed(const struct model *m, uint64_t off, uint64_t len)
{
	for (uint32_t i = 0; i < m->nops; i++)
		if (ranges_overlap(off, len, m->ops[i].off, m->ops[i].len))
			return true;
	return false;
}
