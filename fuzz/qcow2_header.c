/* SPDX-License-Identifier: MIT */
/* fuzz/qcow2_header.c - the first bytes of an image: header, extensions, feature names, the format
 * probe, and a LUKS header. An input is these bytes as they are.
 *
 * Also held: what parses, parses for a check, and means the same; what needs more bytes says how
 * many, never more than a cluster; asking with fewer at first changes nothing. */
#include <errno.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"
#include "fmt/qcow2/header.h"
#include "fmt/qcow2/luks.h"
#include "fmt/raw/probe.h"
#include "fuzz/fuzz.h"

typedef int parse_fn(const void *buf, size_t len, struct qcow2_header *ret, size_t *ret_need,
		     struct err *err);

static void check_text(int rc, const struct err *err)
{
	FUZZ_CHECK(!rc || rc == -EAGAIN || (err->text[0] && err->code == -rc), "%d: '%s'", rc,
		   err->text);
	FUZZ_CHECK(!strpbrk(err->text, "\n"), "several lines: %s", err->text);
}

/* As open.c does: asks again with as many bytes as are needed, zeros behind the file's end. */
static int parse(parse_fn *fn, const uint8_t *data, size_t size, size_t len,
		 struct qcow2_header *ret)
{
	for (;;) {
		struct err err = { 0 };
		uint8_t *buf = calloc(1, len);
		size_t need = 0;
		int rc;

		FUZZ_CHECK(buf, "no memory");
		memcpy(buf, data, MIN(size, len));
		rc = fn(buf, len, ret, &need, &err);
		free(buf);
		check_text(rc, &err);
		if (rc != -EAGAIN)
			return rc;
		FUZZ_CHECK(need <= 1U << QCOW2_CLUSTER_BITS_MAX, "needs %zu", need);
		FUZZ_CHECK(need > len, "needs %zu of %zu", need, len);
		len = need;
	}
}

static int same_text(const char *a, const char *b)
{
	return a && b ? !strcmp(a, b) : a == b;
}

static void check_same(const struct qcow2_header *a, const struct qcow2_header *b)
{
	struct qcow2_header x = *a, y = *b;

	FUZZ_CHECK(same_text(a->backing_name, b->backing_name), "backing name");
	FUZZ_CHECK(same_text(a->backing_format, b->backing_format), "backing format");
	FUZZ_CHECK(same_text(a->data_file_name, b->data_file_name), "data file");
	x.backing_name = x.backing_format = x.data_file_name = NULL;
	y.backing_name = y.backing_format = y.data_file_name = NULL;
	FUZZ_CHECK(x.size == y.size && x.l1_off == y.l1_off && x.l1_entries == y.l1_entries &&
		   x.reftable_off == y.reftable_off && x.incompatible == y.incompatible &&
		   x.cluster_bits == y.cluster_bits && x.header_length == y.header_length &&
		   x.nb_bitmaps == y.nb_bitmaps && x.crypto_off == y.crypto_off, "fields");
}

static void check_limits(const struct qcow2_header *h)
{
	FUZZ_CHECK(h->version == 2 || h->version == 3, "version %u", h->version);
	FUZZ_CHECK(h->cluster_bits >= QCOW2_CLUSTER_BITS_MIN &&
		   h->cluster_bits <= QCOW2_CLUSTER_BITS_MAX, "%u", h->cluster_bits);
	FUZZ_CHECK(h->refcount_order <= 6, "%u", h->refcount_order);
	FUZZ_CHECK(h->size <= INT64_MAX, "%llu", (unsigned long long)h->size);
	FUZZ_CHECK((uint64_t)h->l1_entries * 8 <= QCOW2_L1_BYTES_MAX, "%u", h->l1_entries);
	FUZZ_CHECK(!(h->incompatible & ~(uint64_t)QCOW2_INCOMPAT_KNOWN), "features");
	FUZZ_CHECK(!h->backing_name || strlen(h->backing_name) <= QCOW2_BACKING_NAME_MAX, "name");
	FUZZ_CHECK(h->nb_bitmaps <= QCOW2_BITMAPS_MAX &&
		   h->bitmaps_bytes <= QCOW2_BITMAP_DIRECTORY_BYTES_MAX, "bitmaps");
}

static void run_luks(const uint8_t *data, size_t size)
{
	struct qcow2_luks_info info;
	struct luks_disk d;
	struct err err = { 0 };

	memset(&d, 0, sizeof(d));
	memcpy(&d, data, MIN(size, sizeof(d)));
	if (luks_parse(&d, &info, &err))
		return;
	FUZZ_CHECK(memchr(info.cipher, 0, sizeof(info.cipher)) &&
		   memchr(info.mode, 0, sizeof(info.mode)) &&
		   memchr(info.ivgen, 0, sizeof(info.ivgen)) &&
		   memchr(info.ivgen_hash, 0, sizeof(info.ivgen_hash)) &&
		   memchr(info.hash, 0, sizeof(info.hash)) &&
		   memchr(info.uuid, 0, sizeof(info.uuid)), "a text without end");
}

static void run(const uint8_t *data, size_t size)
{
	struct qcow2_header h, small, damaged;
	int rc;

	FUZZ_CHECK(probe_format(data, size), "no format");
	run_luks(data, size);
	rc = parse(qcow2_header_parse, data, size, 64 << 10, &h);
	if (!rc) {
		check_limits(&h);
		FUZZ_CHECK(!parse(qcow2_header_parse, data, size, 512, &small), "of 512 bytes");
		check_same(&h, &small);
		qcow2_header_fini(&small);
		FUZZ_CHECK(!parse(qcow2_header_parse_for_check, data, size, 64 << 10, &damaged),
			   "for a check");
		check_same(&h, &damaged);
		qcow2_header_fini(&damaged);
		qcow2_header_fini(&h);
	} else if (!parse(qcow2_header_parse_for_check, data, size, 64 << 10, &damaged)) {
		qcow2_header_fini(&damaged);
	}
}

/* ---- mutations ---- */

static void change_number(uint8_t *at, size_t bytes, struct prng *p)
{
	uint8_t b[8] = { 0 };

	memcpy(b + 8 - bytes, at, bytes);
	be64_store(b, fuzz_number(p, be64_load(b), (unsigned)bytes));
	memcpy(at, b + 8 - bytes, bytes);
}

/* A new extension, its length rarely wrong, in front of what is there. */
static size_t add_extension(uint8_t *data, size_t size, size_t max, struct prng *p)
{
	static const uint32_t types[] = {
		QCOW2_EXT_BACKING_FORMAT, QCOW2_EXT_FEATURE_NAMES, QCOW2_EXT_BITMAPS,
		QCOW2_EXT_CRYPTO, QCOW2_EXT_DATA_FILE, 0x12345678,
	};
	static const uint8_t lengths[] = { 0, 1, 5, 8, 15, 16, 24, 48, 96 };
	uint32_t len = lengths[prng_below(p, sizeof(lengths))];
	size_t at = be32_load(data + 4) == 2 ? QCOW2_HEADER_V2_BYTES : be32_load(data + 100);
	size_t n = 8 + align_up(len, 8);

	if (at > size || size + n > max)
		return size;
	memmove(data + at + n, data + at, size - at);
	be32_store(data + at, types[prng_below(p, ARRAY_SIZE(types))]);
	be32_store(data + at + 4, prng_below(p, 6) ? len : (uint32_t)fuzz_number(p, len, 4));
	for (size_t i = 8; i < n; i++)
		data[at + i] = prng_below(p, 3) ? (uint8_t)('a' + prng_below(p, 26)) : 0;
	return size + n;
}

static size_t mutate(uint8_t *data, size_t size, size_t max, struct prng *p)
{
	/* Offsets of the header's fields; the length of each is the distance to the next. */
	static const uint8_t fields[] = { 0, 4, 8, 16, 20, 24, 32, 36, 40, 48, 56, 60, 64, 72, 80,
					  88, 96, 100, 104, 105 };

	if (size < QCOW2_HEADER_V3_BYTES + 8)
		return fuzz_mutate_bytes(data, size, max, p);
	switch (prng_below(p, 6)) {
	case 0:
		return fuzz_mutate_bytes(data, size, max, p);
	case 1:
		return add_extension(data, size, max, p);
	case 2:                                 /* in the extensions, or a LUKS header */
		change_number(data + 4 * prng_below(p, MIN(size, (size_t)700) / 4), 4, p);
		return size;
	default: {
		unsigned i = (unsigned)prng_below(p, sizeof(fields) - 1);

		change_number(data + fields[i], fields[i + 1] - fields[i], p);
		return size;
	}
	}
}

const struct fuzz_target fuzz_target = { "qcow2_header", 8 << 10, run, mutate };
