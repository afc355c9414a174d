/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/header.c - see header.h. Everything in the buffer is hostile until checked. */
#include "fmt/qcow2/header.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/log.h"

/* The parse in progress: the buffer, and where header extensions may lie in it. */
struct parse {
	const uint8_t *buf;
	size_t len;
	struct qcow2_header h;
	uint64_t backing_off;
	uint32_t backing_len;
	uint64_t ext_end;
	size_t need;
	const uint8_t *features;        /* the feature name table, or NULL */
	size_t features_len;
	bool for_check;
	struct err *err;
};

/* Is [@off, @off + @len) in the buffer? Else sets p->need. */
static bool have(struct parse *p, uint64_t off, uint64_t len)
{
	if (range_within(off, len, p->len))
		return true;
	p->need = (size_t)MIN(off + len, qcow2_cluster_size(&p->h));
	return false;
}

static char *dup_text(const void *text, size_t len)
{
	char *copy = malloc(len + 1);

	if (!copy)
		return NULL;
	memcpy(copy, text, len);
	copy[len] = '\0';
	return copy;
}

static int parse_v3(struct parse *p)
{
	const struct qcow2_header_disk *d = (const void *)p->buf;
	struct qcow2_header *h = &p->h;
	uint32_t order;

	h->header_length = be32_get(d->header_length);
	if (h->header_length < QCOW2_HEADER_V3_BYTES)
		return err_set(p->err, EINVAL, "qcow2 header too short");
	if (h->header_length > qcow2_cluster_size(h))
		return err_set(p->err, EINVAL, "qcow2 header exceeds cluster size");
	h->incompatible = be64_get(d->incompatible_features);
	h->compatible = be64_get(d->compatible_features);
	h->autoclear = be64_get(d->autoclear_features);
	order = be32_get(d->refcount_order);
	if (order > 6)
		return err_set(p->err, EINVAL,
			       "Reference count entry width too large; may not exceed 64 bits");
	h->refcount_order = order;
	return 0;
}

static int parse_fixed(struct parse *p)
{
	const struct qcow2_header_disk *d = (const void *)p->buf;
	struct qcow2_header *h = &p->h;
	uint32_t bits, version;

	if (p->len < QCOW2_HEADER_V3_BYTES || be32_get(d->magic) != QCOW2_MAGIC)
		return err_set(p->err, EINVAL, "Image is not in qcow2 format");
	version = be32_get(d->version);
	h->version = version & ~QCOW2_VERSION_UNFINISHED;
	h->is_unfinished = version & QCOW2_VERSION_UNFINISHED;
	if (h->version < 2 || h->version > 3)
		return err_set(p->err, ENOTSUP, "Unsupported qcow2 version %u", version);
	bits = be32_get(d->cluster_bits);
	if (bits < QCOW2_CLUSTER_BITS_MIN || bits > QCOW2_CLUSTER_BITS_MAX)
		return err_set(p->err, EINVAL, "Unsupported cluster size: 2^%u", bits);
	h->cluster_bits = bits;
	h->header_length = QCOW2_HEADER_V2_BYTES;
	h->refcount_order = 4;
	h->size = be64_get(d->size);
	h->encryption = be32_get(d->crypt_method);
	h->l1_entries = be32_get(d->l1_size);
	h->l1_off = be64_get(d->l1_table_offset);
	h->reftable_off = be64_get(d->refcount_table_offset);
	h->reftable_clusters = be32_get(d->refcount_table_clusters);
	h->nb_snapshots = be32_get(d->nb_snapshots);
	h->snapshots_off = be64_get(d->snapshots_offset);
	p->backing_off = be64_get(d->backing_file_offset);
	p->backing_len = be32_get(d->backing_file_size);
	if (p->backing_off > qcow2_cluster_size(h))
		return err_set(p->err, EINVAL, "Invalid backing file offset");
	p->ext_end = p->backing_off ? p->backing_off : qcow2_cluster_size(h);
	return h->version == 3 ? parse_v3(p) : 0;
}

/* An empty name is none. */
static int keep_text(struct parse *p, char **field, const uint8_t *data, uint32_t len,
		     const char *what)
{
	if (len >= PATH_MAX)
		return err_set(p->err, EINVAL, "%s of %u bytes is too long", what, len);
	free(*field);
	*field = NULL;
	if (!len)
		return 0;
	*field = dup_text(data, len);
	return *field ? 0 : err_set_errno(p->err, ENOMEM, "%s", what);
}

/* An empty name is none. */
static int keep_name(struct parse *p, char **field, const uint8_t *data, uint32_t len,
		     const char *what)
{
	return len && data[0] ? keep_text(p, field, data, len, what) : 0;
}

static int parse_crypto(struct parse *p, const uint8_t *data, uint32_t len)
{
	const struct qcow2_ext_crypto_disk *d = (const void *)data;

	if (p->h.encryption != QCOW2_ENCRYPTION_LUKS)
		return err_set(p->err, EINVAL,
			       "CRYPTO header extension only expected with LUKS encryption method");
	if (len != sizeof(*d))
		return err_set(p->err, EINVAL,
			       "CRYPTO header extension size %u, but expected size %zu", len,
			       sizeof(*d));
	p->h.crypto_off = be64_get(d->offset);
	p->h.crypto_len = be64_get(d->length);
	if (p->h.crypto_off % qcow2_cluster_size(&p->h))
		return err_set(p->err, EINVAL, "Encryption header offset '%llu' is not a multiple "
			       "of cluster size '%llu'", (unsigned long long)p->h.crypto_off,
			       (unsigned long long)qcow2_cluster_size(&p->h));
	return 0;
}

/* Where the autoclear bit is gone, somebody who knows no bitmaps has written: they are void. */
static int parse_bitmaps(struct parse *p, const uint8_t *data, uint32_t len)
{
	const struct qcow2_ext_bitmaps_disk *d = (const void *)data;
	struct qcow2_header *h = &p->h;
	uint32_t nb;
	uint64_t bytes, off;

	if (len != sizeof(*d))
		return err_set(p->err, EINVAL, "bitmaps_ext: Invalid extension length");
	h->has_void_bitmaps = !(h->autoclear & QCOW2_AUTOCLEAR_BITMAPS);
	if (h->has_void_bitmaps)
		return 0;
	nb = be32_get(d->nb_bitmaps);
	bytes = be64_get(d->directory_size);
	off = be64_get(d->directory_offset);
	if (be32_get(d->reserved))
		return err_set(p->err, EINVAL, "bitmaps_ext: Reserved field is not zero");
	if (nb > QCOW2_BITMAPS_MAX)
		return err_set(p->err, EINVAL, "bitmaps_ext: Image has %u bitmaps, exceeding the "
			       "QEMU supported maximum of %d", nb, QCOW2_BITMAPS_MAX);
	if (!nb)
		return err_set(p->err, EINVAL,
			       "found bitmaps extension with zero bitmaps");
	if (off % qcow2_cluster_size(h))
		return err_set(p->err, EINVAL, "bitmaps_ext: invalid bitmap directory offset");
	if (!bytes)
		return err_set(p->err, EINVAL, "Requested bitmap directory size is zero");
	if (bytes > QCOW2_BITMAP_DIRECTORY_BYTES_MAX)
		return err_set(p->err, EINVAL, "bitmaps_ext: bitmap directory size (%llu) exceeds "
			       "the maximum supported size (%d)", (unsigned long long)bytes,
			       QCOW2_BITMAP_DIRECTORY_BYTES_MAX);
	h->nb_bitmaps = nb;
	h->bitmaps_bytes = bytes;
	h->bitmaps_off = off;
	return 0;
}

static int parse_extension(struct parse *p, uint32_t type, const uint8_t *data, uint32_t len)
{
	switch (type) {
	case QCOW2_EXT_BACKING_FORMAT:
		if (len > QCOW2_BACKING_FORMAT_MAX)
			return err_set(p->err, EINVAL, "ERROR: ext_backing_format: len=%u too "
				       "large (>=%d)", len, QCOW2_BACKING_FORMAT_MAX + 1);
		return keep_name(p, &p->h.backing_format, data, len, "Backing file format name");
	case QCOW2_EXT_DATA_FILE:
		return keep_text(p, &p->h.data_file_name, data, len, "Data file name");
	case QCOW2_EXT_FEATURE_NAMES:
		p->features = data;
		p->features_len = len;
		return 0;
	case QCOW2_EXT_CRYPTO:
		return parse_crypto(p, data, len);
	case QCOW2_EXT_BITMAPS:
		return parse_bitmaps(p, data, len);
	case QCOW2_EXT_IN_USE:
		p->h.is_in_use = true;
		return 0;
	default:
		return 0;       /* unknown extensions can be safely ignored */
	}
}

static int parse_extensions(struct parse *p)
{
	uint64_t at = p->h.header_length;

	while (at + sizeof(struct qcow2_ext_disk) <= p->ext_end) {
		if (!have(p, at, sizeof(struct qcow2_ext_disk)))
			return -EAGAIN;

		const struct qcow2_ext_disk *d = (const void *)(p->buf + at);
		uint32_t type = be32_get(d->type), len = be32_get(d->len);
		int rc;

		at += sizeof(*d);
		if (!range_within(at, len, p->ext_end))
			return err_set(p->err, EINVAL, "Header extension too large");
		if (type == QCOW2_EXT_END)
			return 0;
		if (!have(p, at, len))
			return -EAGAIN;
		rc = parse_extension(p, type, p->buf + at, len);
		if (rc)
			return rc;
		at += align_up(len, 8);
	}
	return 0;
}

/* The image's own name for incompatible feature @bit. */
static bool feature_name(const struct parse *p, unsigned bit, char *name, size_t n)
{
	const struct qcow2_feature_disk *f = (const void *)p->features;
	size_t count = p->features_len / sizeof(*f);

	for (size_t i = 0; p->features && i < count; i++) {
		if (f[i].type != 0 || f[i].bit != bit || !f[i].name[0])
			continue;
		snprintf(name, n, "%.46s", f[i].name);
		/* It goes to a terminal. */
		text_clean(name);
		return true;
	}
	return false;
}

static int check_features(struct parse *p)
{
	uint64_t unknown = p->h.incompatible & ~(uint64_t)QCOW2_INCOMPAT_KNOWN;
	char list[512] = "", name[64];

	if (!unknown)
		return 0;
	for (unsigned bit = 0; bit < 64; bit++) {
		size_t used = strlen(list);

		if (!(unknown >> bit & 1) || !feature_name(p, bit, name, sizeof(name)))
			continue;
		snprintf(list + used, sizeof(list) - used, "%s%s", used ? ", " : "", name);
		unknown &= ~(1ULL << bit);
	}
	if (unknown) {
		size_t used = strlen(list);

		snprintf(list + used, sizeof(list) - used, "%sUnknown incompatible feature: %llx",
			 used ? ", " : "", (unsigned long long)unknown);
	}
	err_set(p->err, ENOTSUP, "Unsupported qcow2 feature(s): %s", list);
	err_hint(p->err, "the image was made by a newer program; open it with that one");
	return -ENOTSUP;
}

static int check_compression(struct parse *p)
{
	const struct qcow2_header_disk *d = (const void *)p->buf;
	bool is_present = p->h.header_length > offsetof(struct qcow2_header_disk, compression_type);
	bool is_flagged;
	unsigned type;

	if (is_present && !have(p, 0, sizeof(*d)))
		return -EAGAIN;
	type = is_present ? d->compression_type : QCOW2_COMPRESSION_DEFLATE;
	if (type > QCOW2_COMPRESSION_ZSTD)
		return err_set(p->err, ENOTSUP, "qcow2: unknown compression type: %u", type);
	is_flagged = p->h.incompatible & QCOW2_INCOMPAT_COMPRESSION;
	if (is_flagged != (type != QCOW2_COMPRESSION_DEFLATE))
		return err_set(p->err, EINVAL,
			       "qcow2: Compression type incompatible feature bit %s",
			       type ? "must be set" : "must not be set");
	p->h.compression = type;
	return 0;
}

static int check_encryption(struct parse *p)
{
	if (p->h.encryption > QCOW2_ENCRYPTION_LUKS)
		return err_set(p->err, EINVAL, "Unsupported encryption method %u",
			       p->h.encryption);
	return 0;
}

int qcow2_check_encryption(const struct qcow2_header *h, struct err *err)
{
	if (h->encryption == QCOW2_ENCRYPTION_NONE)
		return 0;
	err_set(err, ENOTSUP, "The image is encrypted (%s), which byre does not support",
		h->encryption == QCOW2_ENCRYPTION_AES ? "AES" : "LUKS");
	err_hint(err, "decrypt it first: qemu-img convert with --image-opts and a secret");
	return -ENOTSUP;
}

int qcow2_check_reach(uint64_t off, uint64_t len)
{
	return range_within(off, len, INT64_MAX - (1ULL << 30) + 1) ? 0 : -EIO;
}

int qcow2_table_check(const struct qcow2_header *h, const char *what, uint64_t off, uint64_t bytes,
		      uint64_t max, struct err *err)
{
	if (bytes > max)
		return err_set(err, EFBIG, "%s too large", what);
	if (!range_within(off, bytes, INT64_MAX) || !is_aligned(off, qcow2_cluster_size(h)))
		return err_set(err, EINVAL, "%s offset invalid", what);
	return 0;
}

static int check_tables(struct parse *p)
{
	const struct qcow2_header *h = &p->h;
	uint64_t reftable_bytes = (uint64_t)h->reftable_clusters << h->cluster_bits;
	uint64_t l1_needed;
	int rc;

	if (qcow2_has_extended_l2(h) && h->cluster_bits < 14)
		return err_set(p->err, EINVAL, "Unsupported subcluster size: %llu",
			       (unsigned long long)qcow2_cluster_size(h) / QCOW2_SUBCLUSTERS);
	if (!h->reftable_clusters && !p->for_check)
		return err_set(p->err, EINVAL, "Image does not contain a reference count table");
	rc = qcow2_table_check(h, "Reference count table", h->reftable_off, reftable_bytes,
			       QCOW2_REFTABLE_BYTES_MAX, p->err);
	if (rc)
		return rc;
	if (h->nb_snapshots > QCOW2_SNAPSHOTS_MAX && !p->for_check)
		return err_set(p->err, EINVAL, "Snapshot table too large");
	rc = p->for_check ? 0 :
		qcow2_table_check(h, "Snapshot table", h->snapshots_off, 0, 0, p->err);
	if (rc)
		return rc;
	rc = qcow2_table_check(h, "Active L1 table", h->l1_off, (uint64_t)h->l1_entries * 8,
			       QCOW2_L1_BYTES_MAX, p->err);
	if (rc)
		return rc;
	if (h->size > INT64_MAX)
		return err_set(p->err, EFBIG, "Image is too big");
	l1_needed = div_round_up(h->size, qcow2_l2_coverage(h));
	if (l1_needed > INT32_MAX)
		return err_set(p->err, EFBIG, "Image is too big");
	if (l1_needed > h->l1_entries)
		return err_set(p->err, EINVAL, "L1 table is too small");
	return 0;
}

static int parse_backing_name(struct parse *p)
{
	if (!p->backing_off)
		return 0;
	if (p->backing_len > QCOW2_BACKING_NAME_MAX ||
	    p->backing_len > qcow2_cluster_size(&p->h) - p->backing_off)
		return err_set(p->err, EINVAL, "Backing file name too long");
	if (!have(p, p->backing_off, p->backing_len))
		return -EAGAIN;
	return keep_name(p, &p->h.backing_name, p->buf + p->backing_off, p->backing_len,
			 "Backing file name");
}

static int parse(const void *buf, size_t len, bool for_check, struct qcow2_header *ret,
		 size_t *ret_need, struct err *err)
{
	static int (*const steps[])(struct parse *p) = {
		parse_fixed, parse_extensions, check_compression, check_features,
		check_encryption, check_tables, parse_backing_name,
	};
	struct parse p = { .buf = buf, .len = len, .for_check = for_check, .err = err };

	for (unsigned i = 0; i < ARRAY_SIZE(steps); i++) {
		int rc = steps[i](&p);

		if (!rc)
			continue;
		qcow2_header_fini(&p.h);
		if (rc == -EAGAIN)
			*ret_need = p.need;
		return rc;
	}
	*ret = p.h;
	return 0;
}

int qcow2_header_parse(const void *buf, size_t len, struct qcow2_header *ret, size_t *ret_need,
		       struct err *err)
{
	return parse(buf, len, false, ret, ret_need, err);
}

int qcow2_header_parse_for_check(const void *buf, size_t len, struct qcow2_header *ret,
				 size_t *ret_need, struct err *err)
{
	return parse(buf, len, true, ret, ret_need, err);
}

void qcow2_header_fini(struct qcow2_header *h)
{
	free(h->backing_name);
	free(h->backing_format);
	free(h->data_file_name);
	h->backing_name = NULL;
	h->backing_format = NULL;
	h->data_file_name = NULL;
}
