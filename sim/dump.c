/* SPDX-License-Identifier: MIT */
#include "sim/dump.h"

#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "fmt/qcow2/format.h"

enum { OPS_LISTED = 400 };

/* A table as the medium has it. */
struct tables {
	const struct trace *t;
	uint64_t cluster;
	uint64_t l1_off, l1_entries, reftable_off, reftable_entries;
};

static uint64_t get(const struct trace *t, uint64_t off, unsigned bytes)
{
	uint8_t buf[8] = { 0 };

	sim_pages_read(&t->medium, off, buf + 8 - bytes, bytes);
	return be64_load(buf);
}

static void tables_find(struct tables *ts, const struct trace *t)
{
	ts->t = t;
	ts->cluster = 1ULL << t->o.image.cluster_bits;
	ts->l1_entries = get(t, 36, 4);
	ts->l1_off = get(t, 40, 8);
	ts->reftable_off = get(t, 48, 8);
	ts->reftable_entries = get(t, 56, 4) * ts->cluster / 8;
}

/* Does entry @i of the @n at @table name the cluster at @off? */
static bool find_entry(const struct tables *ts, uint64_t table, uint64_t n, uint64_t off,
		       uint64_t *ret)
{
	for (uint64_t i = 0; i < n; i++) {
		if ((get(ts->t, table + i * 8, 8) & QCOW2_OFFSET_MASK) != off)
			continue;
		*ret = i;
		return true;
	}
	return false;
}

/* Which cluster of the guest has its data at @off? */
static bool find_guest(const struct tables *ts, uint64_t off, uint64_t *ret)
{
	uint64_t per_table = ts->cluster / 8, l1 = ts->t->im.window_off / ts->cluster / per_table;

	for (; l1 < ts->l1_entries; l1++) {
		uint64_t table = get(ts->t, ts->l1_off + l1 * 8, 8) & QCOW2_OFFSET_MASK, i;

		if (!table || !find_entry(ts, table, per_table, off, &i))
			continue;
		*ret = (l1 * per_table + i) * ts->cluster;
		return true;
	}
	return false;
}

static void print_place(FILE *to, const struct tables *ts, uint64_t off)
{
	uint64_t at = align_down(off, ts->cluster), i;

	if (!at)
		fprintf(to, "header");
	else if (off - ts->l1_off < ts->l1_entries * 8)
		fprintf(to, "L1 entry %llu", (unsigned long long)(off - ts->l1_off) / 8);
	else if (off - ts->reftable_off < ts->reftable_entries * 8)
		fprintf(to, "refcount table");
	else if (find_entry(ts, ts->l1_off, ts->l1_entries, at, &i))
		fprintf(to, "L2 table %llu, entry %llu", (unsigned long long)i,
			(unsigned long long)(off - at) / 8);
	else if (find_entry(ts, ts->reftable_off, ts->reftable_entries, at, &i))
		fprintf(to, "refcount block %llu, bits from cluster %llu", (unsigned long long)i,
			(unsigned long long)(i * (ts->cluster * 8 >>
						  ts->t->o.image.refcount_order) +
					     ((off - at) * 8 >> ts->t->o.image.refcount_order)));
	else if (find_guest(ts, at, &i))
		fprintf(to, "data of guest cluster %#llx", (unsigned long long)i);
	else
		fprintf(to, "cluster %llu, not named at the end",
			(unsigned long long)(at / ts->cluster));
}

static void print_content(FILE *to, const struct sim_op *op)
{
	uint64_t word;

	if (op->kind != SIM_WRITE || op->wide_len < 8)
		return;
	if (!op->is_data) {
		for (uint64_t at = 0, n = 0; at + 8 <= op->wide_len && n < 4; at += 8) {
			if (!be64_load(op->bytes + at))
				continue;
			fprintf(to, " +%llu:%llx", (unsigned long long)at,
				(unsigned long long)be64_load(op->bytes + at));
			n++;
		}
		return;
	}
	memcpy(&word, op->bytes + op->wide_len - align_down(MIN(op->wide_len, 8u), 8), 8);
	fprintf(to, " (stamped, ends with write %u of guest sector %#llx)",
		(unsigned)(word >> 36 & 0xfff),
		(unsigned long long)(word >> 6 & ((1ULL << 30) - 1)) * SIM_SECTOR);
}

static void print_op(FILE *to, const struct tables *ts, uint32_t i)
{
	static const char *const names[] = { "write", "zero", "discard", "sync", "truncate",
					     "grow" };
	const struct sim_op *op = &ts->t->log.ops[i];

	fprintf(to, "op %u %s", i, names[op->kind]);
	if (op->is_fua)
		fprintf(to, " fua");
	if (op->kind == SIM_SYNC)
		return;
	fprintf(to, " %#llx+%#llx ", (unsigned long long)op->off, (unsigned long long)op->len);
	print_place(to, ts, op->off);
	print_content(to, op);
}

static void print_guest(FILE *to, const struct model *m)
{
	static const char *const names[] = { "write", "zero", "discard" };

	fprintf(to, "the guest's operations: begun, done, flushed at event\n");
	for (uint32_t i = 0; i < m->nops; i++) {
		const struct model_op *o = &m->ops[i];

		fprintf(to, "  %u %s %#llx+%#llx: %u, %d, %d%s\n", i, names[o->kind],
			(unsigned long long)o->off, (unsigned long long)o->len, o->begin,
			(int)o->done, (int)o->flushed, o->res ? ", failed" : "");
	}
}

void dump_trace(FILE *to, const struct trace *t, uint32_t k)
{
	static const char *const kinds[] = { "submitted", "effect   ", "done     " };
	struct tables ts;

	tables_find(&ts, t);
	print_guest(to, &t->model);
	for (uint32_t i = k > OPS_LISTED ? k - OPS_LISTED : 0; i < t->log.nevents; i++) {
		const struct sim_event *e = &t->log.events[i];

		if (i == k)
			fprintf(to, "-------- the power is cut here --------\n");
		if (i > k + 8)
			break;
		fprintf(to, "%5u %s ", i, kinds[e->kind]);
		if (e->kind == SIM_SUBMIT)
			print_op(to, &ts, e->op);
		else
			fprintf(to, "op %u", e->op);
		if (e->kind == SIM_DONE && t->log.ops[e->op].res)
			fprintf(to, " failed: %d", t->log.ops[e->op].res);
		fprintf(to, "\n");
	}
}
