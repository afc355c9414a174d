/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>

#include "base/err.h"
#include "base/prng.h"
#include "fmt/qcow2/header.h"
#include "fmt/qcow2/luks.h"

enum { CLUSTER = 65536 };

static uint8_t buf[CLUSTER];

static struct qcow2_header_disk *disk(void)
{
	return (void *)buf;
}

/* A plain version 3 header of a 1 GiB disk. */
static void good(void)
{
	struct qcow2_header_disk *d = disk();

	memset(buf, 0, sizeof(buf));
	d->magic = be32_make(QCOW2_MAGIC);
	d->version = be32_make(3);
	d->cluster_bits = be32_make(16);
	d->size = be64_make(1 << 30);
	d->l1_size = be32_make(2);
	d->l1_table_offset = be64_make(3 * CLUSTER);
	d->refcount_table_offset = be64_make(CLUSTER);
	d->refcount_table_clusters = be32_make(1);
	d->refcount_order = be32_make(4);
	d->header_length = be32_make(112);
}

static uint8_t *put_ext(uint8_t *at, uint32_t type, const void *data, uint32_t len)
{
	be32_store(at, type);
	be32_store(at + 4, len);
	memcpy(at + 8, data, len);
	return at + 8 + align_up(len, 8);
}

static int parse(struct qcow2_header *h, struct err *err)
{
	size_t need = 0;

	memset(h, 0, sizeof(*h));
	return qcow2_header_parse(buf, sizeof(buf), h, &need, err);
}

static void refused(int code, const char *part)
{
	struct err err = { 0 };
	struct qcow2_header h;

	assert_int_equal(parse(&h, &err), -code);
	if (!strstr(err.text, part))
		fail_msg("'%s' does not say '%s'", err.text, part);
	assert_null(h.backing_name);
}

static void version_3_with_extensions(void **state)
{
	struct qcow2_header h;
	uint8_t *at = buf + 112;

	good();
	at = put_ext(at, QCOW2_EXT_BACKING_FORMAT, "raw", 3);
	at = put_ext(at, 0x12345678, "something new", 13);
	at = put_ext(at, QCOW2_EXT_DATA_FILE, "d.raw", 5);
	at = put_ext(at, QCOW2_EXT_END, "", 0);
	memcpy(at, "base.img", 8);
	disk()->backing_file_offset = be64_make((uint64_t)(at - buf));
	disk()->backing_file_size = be32_make(8);
	disk()->incompatible_features = be64_make(QCOW2_INCOMPAT_DATA_FILE);
	assert_int_equal(parse(&h, NULL), 0);
	assert_string_equal(h.backing_name, "base.img");
	assert_string_equal(h.backing_format, "raw");
	assert_string_equal(h.data_file_name, "d.raw");
	assert_true(qcow2_has_data_file(&h));
	assert_true(qcow2_l2_coverage(&h) == 512ULL << 20);
	qcow2_header_fini(&h);
}

static void version_2(void **state)
{
	struct qcow2_header h;

	good();
	disk()->version = be32_make(2);
	memset(buf + 72, 0xff, 40);                     /* not part of a v2 header... */
	be64_store(buf + 72, 0);                        /* ... but the extensions begin here */
	assert_int_equal(parse(&h, NULL), 0);
	assert_int_equal(h.refcount_order, 4);
	assert_int_equal(h.header_length, 72);
	assert_true(h.incompatible == 0);
	qcow2_header_fini(&h);
}

static void unknown_features_by_the_images_own_names(void **state)
{
	struct qcow2_feature_disk f[2] = { { 0, 7, "time travel" }, { 1, 9, "wrong kind" } };

	good();
	put_ext(buf + 112, QCOW2_EXT_FEATURE_NAMES, f, sizeof(f));
	disk()->incompatible_features = be64_make(1 << 7);
	refused(ENOTSUP, "Unsupported qcow2 feature(s): time travel");
	disk()->incompatible_features = be64_make(1 << 7 | 1 << 9);
	refused(ENOTSUP, "time travel, Unknown incompatible feature: 200");
	memcpy(buf + 112 + 8 + 2, "a\x1b[2Jb", 7);
	disk()->incompatible_features = be64_make(1 << 7);
	refused(ENOTSUP, "a?[2Jb");                     /* no escapes to the terminal */
}

static void encryption_is_parsed_and_refused_by_name(void **state)
{
	struct qcow2_ext_crypto_disk luks = { be64_make(CLUSTER), be64_make(4096) };
	struct err err = { 0 };
	struct qcow2_header h;

	good(); disk()->crypt_method = be32_make(1);
	assert_int_equal(parse(&h, NULL), 0);
	assert_int_equal(qcow2_check_encryption(&h, &err), -ENOTSUP);
	assert_non_null(strstr(err.text, "AES"));
	qcow2_header_fini(&h);
	put_ext(buf + 112, QCOW2_EXT_CRYPTO, &luks, sizeof(luks));
	refused(EINVAL, "only expected with LUKS");
	disk()->crypt_method = be32_make(2);
	assert_int_equal(parse(&h, NULL), 0);
	assert_int_equal(h.crypto_off, CLUSTER);
	assert_int_equal(h.crypto_len, 4096);
	assert_int_equal(qcow2_check_encryption(&h, &err), -ENOTSUP);
	assert_non_null(strstr(err.text, "LUKS"));
	qcow2_header_fini(&h);
}

static void bitmaps_count_only_with_their_autoclear_bit(void **state)
{
	struct qcow2_ext_bitmaps_disk b = {
		be32_make(2), be32_make(0), be64_make(64), be64_make(CLUSTER),
	};
	struct qcow2_header h;

	good();
	put_ext(buf + 112, QCOW2_EXT_BITMAPS, &b, sizeof(b));
	assert_int_equal(parse(&h, NULL), 0);
	assert_int_equal(h.nb_bitmaps, 0);
	qcow2_header_fini(&h);
	disk()->autoclear_features = be64_make(QCOW2_AUTOCLEAR_BITMAPS);
	assert_int_equal(parse(&h, NULL), 0);
	assert_int_equal(h.nb_bitmaps, 2);
	assert_int_equal(h.bitmaps_bytes, 64);
	assert_int_equal(h.bitmaps_off, CLUSTER);
	qcow2_header_fini(&h);
	b.directory_offset = be64_make(CLUSTER + 8);
	put_ext(buf + 112, QCOW2_EXT_BITMAPS, &b, sizeof(b));
	refused(EINVAL, "directory offset");
}

static void a_luks_header_is_shown(void **state)
{
	struct luks_disk d = {
		.magic = "LUKS\xba\xbe", .version = be16_make(1), .cipher = "aes",
		.mode = "cbc-essiv:sha256", .hash = "sha1", .payload_sector = be32_make(4),
		.key_bytes = be32_make(16), .iterations = be32_make(9), .uuid = "u",
	};
	struct qcow2_luks_info l;
	struct err err = { 0 };

	d.slots[1].active = be32_make(0x00ac71f3);
	d.slots[1].key_sector = be32_make(8);
	assert_int_equal(luks_parse(&d, &l, &err), 0);
	assert_string_equal(l.cipher, "aes-128");
	assert_string_equal(l.mode, "cbc");
	assert_string_equal(l.ivgen, "essiv");
	assert_string_equal(l.ivgen_hash, "sha256");
	assert_int_equal(l.payload_off, 2048);
	assert_true(!l.slots[0].is_active && l.slots[1].is_active);
	assert_int_equal(l.slots[1].key_off, 4096);
	/* Full fields have no zero at the end. */
	memset(d.uuid, 'x', sizeof(d.uuid));
	memset(d.hash, 'y', sizeof(d.hash));
	memcpy(d.mode, "xts-plain64", 12);
	d.key_bytes = be32_make(64);
	assert_int_equal(luks_parse(&d, &l, &err), 0);
	assert_int_equal(strlen(l.uuid), 40);
	assert_int_equal(strlen(l.hash), 32);
	assert_string_equal(l.cipher, "aes-256");
	memset(d.mode, 'z', sizeof(d.mode));
	assert_int_equal(luks_parse(&d, &l, &err), -EINVAL);
	d.version = be16_make(2);
	assert_int_equal(luks_parse(&d, &l, &err), -ENOTSUP);
	d.magic[0] = 0;
	assert_int_equal(luks_parse(&d, &l, &err), -EINVAL);
}

static void what_is_refused(void **state)
{
	good(); be32_store(buf, 0x12345678);
	refused(EINVAL, "not in qcow2 format");
	good(); disk()->version = be32_make(4);
	refused(ENOTSUP, "version 4");
	good(); disk()->cluster_bits = be32_make(8);
	refused(EINVAL, "2^8");
	good(); disk()->cluster_bits = be32_make(22);
	refused(EINVAL, "2^22");
	good(); disk()->crypt_method = be32_make(3);
	refused(EINVAL, "Unsupported encryption method 3");
	good(); disk()->refcount_order = be32_make(7);
	refused(EINVAL, "Reference count entry width");
	good(); disk()->header_length = be32_make(96);
	refused(EINVAL, "too short");
	good(); disk()->header_length = be32_make(CLUSTER + 8);
	refused(EINVAL, "exceeds");
	good(); disk()->refcount_table_clusters = be32_make(0);
	refused(EINVAL, "reference count table");
	good(); disk()->refcount_table_clusters = be32_make(1000);
	refused(EFBIG, "Reference count table");
	good(); disk()->l1_table_offset = be64_make(512);
	refused(EINVAL, "Active L1 table offset");
	good(); disk()->l1_size = be32_make(0x7fffffff);
	refused(EFBIG, "Active L1 table");
	good(); disk()->l1_size = be32_make(1);
	refused(EINVAL, "L1 table is too small");
	good(); disk()->size = be64_make(1ULL << 63);
	refused(EFBIG, "too big");
	good(); disk()->nb_snapshots = be32_make(100000);
	refused(EINVAL, "Snapshot table");
	good(); disk()->snapshots_offset = be64_make(7);
	refused(EINVAL, "Snapshot table");
	good(); disk()->backing_file_offset = be64_make(CLUSTER + 1);
	refused(EINVAL, "backing file offset");
	good(); disk()->backing_file_offset = be64_make(1000);
	disk()->backing_file_size = be32_make(1024);
	refused(EINVAL, "too long");
	good(); disk()->incompatible_features = be64_make(QCOW2_INCOMPAT_COMPRESSION);
	refused(EINVAL, "ompression type");
	good(); disk()->compression_type = 1;
	refused(EINVAL, "ompression type");
	good(); disk()->compression_type = 9;
	disk()->incompatible_features = be64_make(QCOW2_INCOMPAT_COMPRESSION);
	refused(ENOTSUP, "compression type: 9");
	good(); disk()->incompatible_features = be64_make(QCOW2_INCOMPAT_EXTENDED_L2);
	disk()->cluster_bits = be32_make(13);
	refused(EINVAL, "Unsupported subcluster size");
	good(); put_ext(buf + 112, 77, "", 0); be32_store(buf + 116, 0xfffffff0);
	refused(EINVAL, "extension too large");
}

static void more_of_the_header_is_asked_for(void **state)
{
	struct qcow2_header h = { 0 };
	size_t need = 0;

	good();
	disk()->cluster_bits = be32_make(21);
	disk()->l1_table_offset = be64_make(3 << 21);
	disk()->refcount_table_offset = be64_make(1 << 21);
	put_ext(buf + 112, 77, "", 0);
	be32_store(buf + 116, 100000);
	assert_int_equal(qcow2_header_parse(buf, sizeof(buf), &h, &need, NULL), -EAGAIN);
	assert_true(need > sizeof(buf) && need <= 2 << 20);
}

/* Whatever the bytes, the parse ends, stays inside its buffer (ASan watches) and owns what it
 * says. */
static void q6_random_damage_is_an_answer(void **state)
{
	struct prng p = { 11 };
	uint8_t *exact = malloc(4096);

	for (int i = 0; i < 20000; i++) {
		struct qcow2_header h = { 0 };
		size_t need = 0;
		int rc;

		good();
		put_ext(put_ext(buf + 112, QCOW2_EXT_BACKING_FORMAT, "qcow2", 5),
			QCOW2_EXT_FEATURE_NAMES, buf, 96);
		for (uint64_t n = prng_below(&p, 6); n; n--)
			buf[prng_below(&p, prng_below(&p, 3) ? 120 : 300)] = (uint8_t)prng_next(&p);
		memcpy(exact, buf, 4096);
		rc = qcow2_header_parse(exact, 4096, &h, &need, NULL);
		assert_true(rc <= 0);
		if (rc == -EAGAIN)
			assert_true(need > 4096 && need <= 2 << 20);
		if (!rc)
			qcow2_header_fini(&h);
	}
	free(exact);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(version_3_with_extensions),
		cmocka_unit_test(version_2),
		cmocka_unit_test(unknown_features_by_the_images_own_names),
		cmocka_unit_test(encryption_is_parsed_and_refused_by_name),
		cmocka_unit_test(bitmaps_count_only_with_their_autoclear_bit),
		cmocka_unit_test(a_luks_header_is_shown),
		cmocka_unit_test(what_is_refused),
		cmocka_unit_test(more_of_the_header_is_asked_for),
		cmocka_unit_test(q6_random_damage_is_an_answer),
	};

	return cmocka_run_group_tests_name("qcow2_header", tests, NULL, NULL);
}
