/* SPDX-License-Identifier: MIT */
/* cmd/info_print.c - see info_print.h. "Format specific information" is the same tree in both
 * outputs, so one function walks it for both (specific()). */
#include "cmd/info_print.h"

#include <inttypes.h>
#include <string.h>
#include <time.h>

#include "base/bits.h"
#include "base/size.h"
#include "cmd/json_out.h"

enum { INDENT = 4, KEY_MAX = 32, DEPTH_MAX = 8 };

/* ---- a tree in either form ---- */

struct tree {
	FILE *out;
	struct json_out *json;          /* NULL: text */
	unsigned depth;
	bool is_list[DEPTH_MAX];        /* what is open, by depth; text only */
	unsigned index[DEPTH_MAX];      /* of the next item */
};

/* Text: "    key:" with dashes made blanks, or "    [2]:" in a list. */
static void text_key(struct tree *t, const char *key)
{
	fprintf(t->out, "%*s", (int)(t->depth * INDENT), "");
	if (t->is_list[t->depth])
		fprintf(t->out, "[%u]:", t->index[t->depth]++);
	else
		for (; *key; key++)
			fputc(*key == '-' ? ' ' : *key, t->out);
	if (!t->is_list[t->depth])
		fputc(':', t->out);
}

static void tree_open(struct tree *t, const char *key, bool is_list)
{
	if (t->json && is_list) {
		json_array(t->json, key);
	} else if (t->json) {
		json_object(t->json, key);
	} else {
		text_key(t, key);
		fputc('\n', t->out);
		t->depth++;
		t->is_list[t->depth] = is_list;
		t->index[t->depth] = 0;
	}
}

static void tree_close(struct tree *t, bool is_list)
{
	if (!t->json)
		t->depth--;
	else if (is_list)
		json_end_array(t->json);
	else
		json_end_object(t->json);
}

static void tree_string(struct tree *t, const char *key, const char *value)
{
	if (t->json) {
		json_string(t->json, key, value);
		return;
	}
	text_key(t, key);
	fprintf(t->out, " %s\n", value);
}

static void tree_number(struct tree *t, const char *key, uint64_t value)
{
	if (t->json) {
		json_number(t->json, key, (int64_t)value);
		return;
	}
	text_key(t, key);
	fprintf(t->out, " %" PRIu64 "\n", value);
}

static void tree_bool(struct tree *t, const char *key, bool value)
{
	if (t->json)
		json_bool(t->json, key, value);
	else
		tree_string(t, key, value ? "true" : "false");
}

/* ---- format specific ---- */

static void bitmaps(struct tree *t, const struct qcow2_info *q)
{
	if (!q->nbitmaps)
		return;
	tree_open(t, "bitmaps", true);
	for (size_t i = 0; i < q->nbitmaps; i++) {
		const struct qcow2_bitmap_info *b = &q->bitmaps[i];

		tree_open(t, NULL, false);
		tree_open(t, "flags", true);
		if (b->is_in_use)
			tree_string(t, NULL, "in-use");
		if (b->is_auto)
			tree_string(t, NULL, "auto");
		tree_close(t, true);
		tree_string(t, "name", b->name);
		tree_number(t, "granularity", b->granularity);
		tree_close(t, false);
	}
	tree_close(t, true);
}

static void luks_slots(struct tree *t, const struct qcow2_luks_info *l)
{
	tree_open(t, "slots", true);
	for (unsigned i = 0; i < LUKS_SLOTS; i++) {
		tree_open(t, NULL, false);
		tree_bool(t, "active", l->slots[i].is_active);
		if (l->slots[i].is_active)
			tree_number(t, "iters", l->slots[i].iterations);
		tree_number(t, "key-offset", l->slots[i].key_off);
		if (l->slots[i].is_active)
			tree_number(t, "stripes", l->slots[i].stripes);
		tree_close(t, false);
	}
	tree_close(t, true);
}

static void encryption(struct tree *t, const struct qcow2_luks_info *l)
{
	tree_open(t, "encrypt", false);
	if (!l) {
		tree_string(t, "format", "aes");
		tree_close(t, false);
		return;
	}
	tree_string(t, "ivgen-alg", l->ivgen);
	tree_bool(t, "detached-header", false);
	tree_string(t, "hash-alg", l->hash);
	tree_string(t, "cipher-alg", l->cipher);
	tree_string(t, "uuid", l->uuid);
	if (l->ivgen_hash[0])
		tree_string(t, "ivgen-hash-alg", l->ivgen_hash);
	tree_string(t, "format", "luks");
	tree_string(t, "cipher-mode", l->mode);
	luks_slots(t, l);
	tree_number(t, "payload-offset", l->payload_off);
	tree_number(t, "master-key-iters", l->iterations);
	tree_close(t, false);
}

static void specific(struct tree *t, const struct image_facts *f)
{
	const struct qcow2_info *q = f->qcow2;
	bool is_v3 = q->version >= 3;

	tree_string(t, "compat", is_v3 ? "1.1" : "0.10");
	tree_string(t, "compression-type", q->is_zstd ? "zstd" : "zlib");
	if (is_v3)
		tree_bool(t, "lazy-refcounts", q->is_lazy);
	bitmaps(t, q);
	tree_number(t, "refcount-bits", q->refcount_bits);
	if (is_v3 && f->data_file)
		tree_string(t, "data-file", f->data_file);
	if (q->is_encrypted)
		encryption(t, q->luks);
	if (is_v3 && q->has_data_file)
		tree_bool(t, "data-file-raw", q->is_data_file_raw);
	if (is_v3)
		tree_bool(t, "corrupt", q->is_corrupt);
	if (is_v3)
		tree_bool(t, "extended-l2", q->has_extended_l2);
}

/* ---- text ---- */

static void print_size(FILE *out, const char *what, uint64_t bytes, const char *exact)
{
	char text[16];

	fprintf(out, "%s: %s%s", what, size_format(bytes, text, sizeof(text)), exact);
}

static void print_sizes(FILE *out, const char *indent, const char *what, uint64_t size,
			const struct file_facts *file)
{
	char exact[48];

	fputs(indent, out);
	snprintf(exact, sizeof(exact), " (%" PRIu64 " bytes)\n", size);
	print_size(out, what, size, exact);
	fputs(indent, out);
	if (file->has_allocated)
		print_size(out, "disk size", file->allocated, "\n");
	else
		fputs("disk size: unavailable\n", out);
}

static void print_snapshot(FILE *out, const struct qcow2_snapshot_info *s)
{
	char size[16], date[32], clock[48], icount[24] = "--";
	uint64_t clock_s = s->vm_clock_ns / NS_PER_SEC;
	time_t t = (time_t)s->date_s;
	struct tm tm;

	localtime_r(&t, &tm);
	strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &tm);
	snprintf(clock, sizeof(clock), "%04" PRIu64 ":%02u:%02u.%03u", clock_s / 3600,
		 (unsigned)(clock_s / 60 % 60), (unsigned)(clock_s % 60),
		 (unsigned)(s->vm_clock_ns % NS_PER_SEC / NS_PER_MS));
	if (s->has_icount)
		snprintf(icount, sizeof(icount), "%" PRId64, (int64_t)s->icount);
	fprintf(out, "%-7s %-16s %8s %19s %15s %10s\n", s->id, s->name,
		size_format(s->vm_state_bytes, size, sizeof(size)), date, clock, icount);
}

static void print_snapshots(FILE *out, const struct qcow2_info *q)
{
	if (!q->nsnapshots || q->has_data_file)         /* as QEMU has it */
		return;
	fprintf(out, "Snapshot list:\n%-7s %-16s %8s %19s %15s %10s\n", "ID", "TAG", "VM_SIZE",
		"DATE", "VM_CLOCK", "ICOUNT");
	for (size_t i = 0; i < q->nsnapshots; i++)
		print_snapshot(out, &q->snapshots[i]);
}

static void print_backing(FILE *out, const struct image_facts *f)
{
	if (!f->backing)
		return;
	fprintf(out, "backing file: %s", f->backing);
	if (!f->backing_path)
		fputs(" (cannot determine actual path)", out);
	else if (strcmp(f->backing, f->backing_path))
		fprintf(out, " (actual path: %s)", f->backing_path);
	fputc('\n', out);
	if (f->backing_format)
		fprintf(out, "backing file format: %s\n", f->backing_format);
}

static void print_file_hint(FILE *out, const char *indent, const struct file_facts *file)
{
	if (file->extent_hint)
		fprintf(out, "%sFormat specific information:\n%s    extent size hint: %" PRIu64
			"\n", indent, indent, file->extent_hint);
}

static void print_file(FILE *out, const struct file_facts *file)
{
	static const char indent[] = "    ";

	fprintf(out, "Child node '/file':\n");
	fprintf(out, "%sfilename: %s\n", indent, file->name);
	fprintf(out, "%sprotocol type: %s\n", indent, file->protocol);
	print_sizes(out, indent, "file length", file->size, file);
	print_file_hint(out, indent, file);
}

void info_print_text(FILE *out, const struct image_facts *f)
{
	const struct qcow2_info *q = f->qcow2;
	struct tree t = { .out = out, .depth = 1 };

	fprintf(out, "image: %s\nfile format: %s\n", f->name, f->format);
	print_sizes(out, "", "virtual size", f->size, &f->file);
	if (q && q->is_encrypted)
		fprintf(out, "encrypted: yes\n");
	if (q)
		fprintf(out, "cluster_size: %" PRIu64 "\n", q->cluster_size);
	if (q && q->is_dirty)
		fprintf(out, "cleanly shut down: no\n");
	print_backing(out, f);
	if (q) {
		print_snapshots(out, q);
		fprintf(out, "Format specific information:\n");
		specific(&t, f);
	}
	if (!strcmp(f->format, "raw") || q)
		print_file(out, &f->file);
	else
		print_file_hint(out, "", &f->file);
}

/* ---- JSON ---- */

static void json_file_specific(struct json_out *j, const struct file_facts *file)
{
	json_object(j, "format-specific");
	json_string(j, "type", "file");
	json_object(j, "data");
	if (file->extent_hint)
		json_number(j, "extent-size-hint", (int64_t)file->extent_hint);
	json_end_object(j);
	json_end_object(j);
}

static void json_file(struct json_out *j, const char *key, const struct file_facts *file)
{
	json_object(j, key);
	json_array(j, "children");
	json_end_array(j);
	json_number(j, "virtual-size", (int64_t)file->size);
	json_string(j, "filename", file->name);
	json_string(j, "format", file->protocol);
	if (file->has_allocated)
		json_number(j, "actual-size", (int64_t)file->allocated);
	if (strcmp(file->protocol, "nbd")) {
		json_file_specific(j, file);
		json_bool(j, "dirty-flag", false);
	}
	json_end_object(j);
}

static void json_snapshots(struct json_out *j, const struct qcow2_info *q)
{
	if (!q->nsnapshots || q->has_data_file)         /* as QEMU has it */
		return;
	json_array(j, "snapshots");
	for (size_t i = 0; i < q->nsnapshots; i++) {
		const struct qcow2_snapshot_info *s = &q->snapshots[i];

		json_object(j, NULL);
		if (s->has_icount)
			json_number(j, "icount", (int64_t)s->icount);
		json_number(j, "vm-clock-nsec", (int64_t)(s->vm_clock_ns % NS_PER_SEC));
		json_string(j, "name", s->name);
		json_number(j, "date-sec", s->date_s);
		json_number(j, "date-nsec", s->date_ns);
		json_number(j, "vm-clock-sec", (int64_t)(s->vm_clock_ns / NS_PER_SEC));
		json_string(j, "id", s->id);
		json_number(j, "vm-state-size", (int64_t)s->vm_state_bytes);
		json_end_object(j);
	}
	json_end_array(j);
}

static void json_qcow2_specific(struct json_out *j, const struct image_facts *f)
{
	struct tree t = { .out = j->out, .json = j };

	json_object(j, "format-specific");
	json_string(j, "type", "qcow2");
	json_object(j, "data");
	specific(&t, f);
	json_end_object(j);
	json_end_object(j);
}

static void json_image(struct json_out *j, const struct image_facts *f)
{
	const struct qcow2_info *q = f->qcow2;

	if (!q && strcmp(f->format, "raw")) {
		json_file(j, NULL, &f->file);
		return;
	}
	json_object(j, NULL);
	json_array(j, "children");
	json_object(j, NULL);
	json_string(j, "name", "file");
	json_file(j, "info", &f->file);
	json_end_object(j);
	json_end_array(j);
	if (f->backing && f->backing_format)
		json_string(j, "backing-filename-format", f->backing_format);
	if (q)
		json_snapshots(j, q);
	json_number(j, "virtual-size", (int64_t)f->size);
	json_string(j, "filename", f->name);
	if (q)
		json_number(j, "cluster-size", (int64_t)q->cluster_size);
	json_string(j, "format", f->format);
	if (f->file.has_allocated)
		json_number(j, "actual-size", (int64_t)f->file.allocated);
	if (q)
		json_qcow2_specific(j, f);
	if (f->backing_path)
		json_string(j, "full-backing-filename", f->backing_path);
	if (q && q->is_encrypted)
		json_bool(j, "encrypted", true);
	if (f->backing)
		json_string(j, "backing-filename", f->backing);
	if (q || strcmp(f->file.protocol, "nbd"))
		json_bool(j, "dirty-flag", q && q->is_dirty);
	json_end_object(j);
}

void info_print_json(FILE *out, const struct image_facts *f, unsigned n, bool is_list)
{
	struct json_out j = { .out = out };

	if (is_list)
		json_array(&j, NULL);
	for (unsigned i = 0; i < n; i++)
		json_image(&j, &f[i]);
	if (is_list)
		json_end_array(&j);
}
