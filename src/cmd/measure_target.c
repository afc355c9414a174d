/* SPDX-License-Identifier: MIT */
#include "cmd/measure_target.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"
#include "cmd/tool.h"
#include "ctl/option_list.h"

enum kind { TEXT, NUMBER, SIZE, SWITCH };

struct known {
	const char *key;
	enum kind kind;
};

static const struct known raw_options[] = {
	{ "size", SIZE }, { "nocow", SWITCH }, { "preallocation", TEXT },
	{ "extent_size_hint", SIZE },
};

static const struct known qcow2_options[] = {
	{ "backing_file", TEXT },
	{ "backing_fmt", TEXT },
	{ "cluster_size", SIZE },
	{ "compat", TEXT },
	{ "compression_type", TEXT },
	{ "data_file", TEXT },
	{ "data_file_raw", SWITCH },
	{ "encrypt.cipher-alg", TEXT },
	{ "encrypt.cipher-mode", TEXT },
	{ "encrypt.format", TEXT },
	{ "encrypt.hash-alg", TEXT },
	{ "encrypt.iter-time", NUMBER },
	{ "encrypt.ivgen-alg", TEXT },
	{ "encrypt.ivgen-hash-alg", TEXT },
	{ "encrypt.key-secret", TEXT },
	{ "encryption", SWITCH },
	{ "extended_l2", SWITCH },
	{ "lazy_refcounts", SWITCH },
	{ "preallocation", TEXT },
	{ "refcount_bits", NUMBER },
	{ "size", SIZE },
	{ "nocow", SWITCH },
	{ "extent_size_hint", SIZE },
};

static int check_value(const struct option_item *o, enum kind kind, struct err *err)
{
	uint64_t number;
	bool is_on;

	switch (kind) {
	case TEXT:
		return 0;
	case NUMBER:
		return option_number(o, "", &number, err);
	case SIZE:
		return option_size(o, "", &number, err);
	case SWITCH:
		break;
	}
	return option_bool(o, "", &is_on, err);
}

static int check_options(const char *format, const struct known *known, unsigned nknown,
			 const struct option_list *l, struct err *err)
{
	for (unsigned i = 0; i < l->n; i++) {
		const struct option_item *o = &l->items[i];
		const struct known *k = known;
		int rc;

		while (k < known + nknown && strcmp(k->key, o->key))
			k++;
		rc = k < known + nknown ? check_value(o, k->kind, err)
					: err_set(err, EINVAL, "Invalid parameter '%s'", o->key);
		if (rc) {
			tool_fail(err);
			return err_set(err, EINVAL, "Invalid options for file format '%s'",
				       format);
		}
	}
	return 0;
}

static const char *text_of(struct option_list *l, const char *key, const char *otherwise)
{
	const struct option_item *o = option_list_take(l, "", key);

	return o ? o->value : otherwise;
}

static int read_preallocation(struct option_list *l, struct measure_target *t, struct err *err)
{
	static const char *const modes[] = { "off", "metadata", "falloc", "full" };
	const char *mode = text_of(l, "preallocation", "off");

	for (unsigned i = 0; i < ARRAY_SIZE(modes); i++) {
		if (!strcmp(mode, modes[i])) {
			t->is_full = i >= 2;
			return 0;
		}
	}
	return err_set(err, EINVAL, "invalid parameter value: %s", mode);
}

static int read_encryption(struct option_list *l, struct err *err)
{
	if (strcmp(text_of(l, "encrypt.format", ""), "luks"))
		return 0;
	return err_set(err, EINVAL, "Encrypted images are not supported");
}

/* The values in the order in which qemu-img looks at them; their kinds are checked. */
static int read_qcow2(struct option_list *l, struct measure_target *t, struct err *err)
{
	const char *compat = text_of(l, "compat", "1.1");
	uint64_t bits = 16;
	int rc;

	option_size(option_list_take(l, "", "cluster_size"), "", &t->layout.cluster, NULL);
	option_bool(option_list_take(l, "", "extended_l2"), "", &t->layout.extended_l2, NULL);
	option_number(option_list_take(l, "", "refcount_bits"), "", &bits, NULL);
	if (!is_pow2(t->layout.cluster) || t->layout.cluster < 512 || t->layout.cluster > 2 << 20)
		return err_set(err, EINVAL,
			       "Cluster size must be a power of two between 512 and 2048k");
	if (t->layout.extended_l2 && t->layout.cluster < 16384)
		return err_set(err, EINVAL, "Extended L2 entries are only supported with cluster "
			       "sizes of at least 16384 bytes");
	t->is_old = !strcmp(compat, "0.10");
	if (!t->is_old && strcmp(compat, "1.1"))
		return err_set(err, EINVAL, "Invalid compatibility level: '%s'", compat);
	if (!bits || bits > 64 || !is_pow2(bits))
		return err_set(err, EINVAL, "Refcount width must be a power of two and may not "
			       "exceed 64 bits");
	if (t->is_old && bits != 16)
		return err_set(err, EINVAL, "Different refcount widths than 16 bits require "
			       "compatibility level 1.1 or above (use compat=1.1 or greater)");
	t->layout.refcount_order = log2_floor(bits);
	rc = read_encryption(l, err);
	if (!rc)
		rc = read_preallocation(l, t, err);
	t->has_backing = option_list_take(l, "", "backing_file");
	return rc;
}

static int parse(struct measure_target *t, const char *format, struct option_list *l,
		 struct err *err)
{
	int rc;

	if (t->format == MEASURE_RAW)
		return check_options(format, raw_options, ARRAY_SIZE(raw_options), l, err);
	rc = check_options(format, qcow2_options, ARRAY_SIZE(qcow2_options), l, err);
	return rc ? rc : read_qcow2(l, t, err);
}

static int unknown_format(const char *format, struct err *err)
{
	static const char *const others[] = { "parallels", "qcow", "qed", "vdi", "vhdx", "vmdk",
					      "vpc" };

	for (unsigned i = 0; i < ARRAY_SIZE(others); i++)
		if (!strcmp(format, others[i]))
			return err_set(err, EINVAL, "Block driver '%s' does not support size "
				       "measurement", format);
	return err_set(err, EINVAL, "Unknown file format '%s'", format);
}

int measure_target_parse(const char *format, const char *options, struct measure_target *ret)
{
	struct measure_target t = { .layout.cluster = 65536 };
	struct option_list l = { 0 };
	struct err err = { 0 };
	int rc = 0;

	if (!strcmp(format, "qcow2"))
		t.format = MEASURE_QCOW2;
	else if (!strcmp(format, "raw"))
		t.format = MEASURE_RAW;
	else
		rc = unknown_format(format, &err);
	if (!rc && options)
		rc = option_list_parse(options, NULL, &l, &err);
	if (!rc)
		rc = parse(&t, format, &l, &err);
	option_list_fini(&l);
	if (rc)
		tool_fail(&err);
	else
		*ret = t;
	return rc;
}
