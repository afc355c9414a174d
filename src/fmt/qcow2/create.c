/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/create.c - new images: what the options mean, the header, and mappings made ahead.
 *
 * What is written is written once, from low-numbered guest clusters to high ones, an L2 table at a
 * time; refcounts and L1 follow, and the header comes last: what is not yet an image does not
 * look like one. Where things come to lie is create_refs.h's business. */
#include "fmt/qcow2/create.h"

#include <errno.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"
#include "blk/blk.h"
#include "fmt/qcow2/create_refs.h"
#include "fmt/qcow2/format.h"

enum {
	SECTOR = 512,
	CLUSTER_DEFAULT = 65536,
	REFCOUNT_BITS_DEFAULT = 16,
	EXTENDED_L2_CLUSTER_MIN = 16384,
	FEATURE_NAMES_CLUSTER_MIN = 8192,       /* smaller clusters have no room for them */
	ZEROS = 1 << 20,                /* bytes of one write of zeros */
	ZERO_PIECE = 1 << 30,           /* bytes of one REQ_ZERO */
};

/* An image in the making. */
struct maker {
	const struct qcow2_create_opts *o;
	struct chan *file;
	struct chan *data;              /* the data file; NULL: none */
	struct err *err;
	uint64_t size;
	uint64_t cluster;
	unsigned cluster_bits;
	unsigned order;                 /* of refcounts */
	unsigned entry_bytes;           /* of an L2 entry */
	uint64_t l2_entries;            /* in a table */
	struct create_refs refs;
	be64_t *l1;                     /* owned */
	uint64_t l1_entries;
	uint64_t l1_first;              /* its first cluster; 0: it has none */
	uint8_t *l2;                    /* owned: the table that is being filled... */
	uint64_t l2_index;              /* ...which L1 entry names it... */
	uint64_t l2_first;              /* ...and where it is; 0: none */
	uint64_t end;                   /* bytes of the file, as far as written */
};

/* ---- what the options say together ---- */

static int needs_version_3(const char *what, struct err *err)
{
	return err_set(err, EINVAL, "%s above (use version=v3 or greater)", what);
}

static int check_refcount_bits(const struct qcow2_create_opts *o, bool is_old, struct err *err)
{
	unsigned bits = o->refcount_bits;

	if (!bits)
		return 0;
	if (bits > 64 || !is_pow2(bits))
		return err_set(err, EINVAL, "Refcount width must be a power of two and may not "
			       "exceed 64 bits");
	if (is_old && bits != REFCOUNT_BITS_DEFAULT)
		return needs_version_3("Different refcount widths than 16 bits require"
				       " compatibility level 1.1 or", err);
	return 0;
}

static int check_data_file(const struct qcow2_create_opts *o, bool is_old, struct err *err)
{
	if (o->data_file_raw && !o->data_file_name)
		return err_set(err, EINVAL, "data-file-raw requires data-file");
	if (o->data_file_raw && o->backing_name)
		return err_set(err, EINVAL, "Backing file and data-file-raw cannot be used at the "
			       "same time");
	if (o->data_file_name && is_old)
		return needs_version_3("External data files are only supported with"
				       " compatibility level 1.1 and", err);
	return 0;
}

static int check_cluster(const struct qcow2_create_opts *o, struct err *err)
{
	uint64_t cluster = o->cluster_size ? o->cluster_size : CLUSTER_DEFAULT;

	if (!is_pow2(cluster) || cluster < 1ULL << QCOW2_CLUSTER_BITS_MIN ||
	    cluster > 1ULL << QCOW2_CLUSTER_BITS_MAX)
		return err_set(err, EINVAL,
			       "Cluster size must be a power of two between 512 and 2048k");
	if (o->extended_l2 && cluster < EXTENDED_L2_CLUSTER_MIN)
		return err_set(err, EINVAL, "Extended L2 entries are only supported with cluster "
			       "sizes of at least %d bytes", EXTENDED_L2_CLUSTER_MIN);
	return 0;
}

int qcow2_create_check(const struct qcow2_create_opts *o, struct err *err)
{
	bool is_old = o->version == 2;
	int rc;

	if (o->extended_l2 && is_old)
		return needs_version_3("Extended L2 entries are only supported with"
				       " compatibility level 1.1 and", err);
	rc = check_cluster(o, err);
	if (rc)
		return rc;
	if (o->backing_name && o->preallocation != QCOW2_PREALLOC_OFF && !o->extended_l2)
		return err_set(err, EINVAL, "Backing file and preallocation can only be used at "
			       "the same time if extended_l2 is on");
	if (o->lazy_refcounts && is_old)
		return needs_version_3("Lazy refcounts only supported with"
				       " compatibility level 1.1 and", err);
	rc = check_refcount_bits(o, is_old, err);
	if (!rc)
		rc = check_data_file(o, is_old, err);
	if (rc)
		return rc;
	if (o->backing_format && !o->backing_name)
		return err_set(err, EINVAL, "Backing format cannot be used without backing file");
	if (o->compression != QCOW2_COMPRESSION_DEFLATE && is_old)
		return needs_version_3("Non-zlib compression type is only supported with"
				       " compatibility level 1.1 and", err);
	return 0;
}

/* ---- writing ---- */

static int write_wait(struct maker *m, uint64_t off, const void *buf, uint64_t len)
{
	int rc = chan_write_wait(m->file, off, buf, len);

	m->end = MAX(m->end, off + len);
	return rc;
}

static int zero_wait(struct chan *ch, uint64_t off, uint64_t len)
{
	int rc = 0;

	while (len && !rc) {
		struct req req = { .kind = REQ_ZERO, .off = off,
				   .len = MIN(len, (uint64_t)ZERO_PIECE) };

		off += req.len;
		len -= req.len;
		rc = chan_submit_wait(ch, &req);
	}
	return rc;
}

static int write_zeros_wait(struct chan *ch, uint64_t off, uint64_t len,
			    const atomic_bool *is_stopped)
{
	char *zeros = aligned_alloc(4096, ZEROS);
	int rc = zeros ? 0 : -ENOMEM;

	if (zeros)
		memset(zeros, 0, ZEROS);
	for (uint64_t n; len && !rc; off += n, len -= n) {
		n = MIN(len, (uint64_t)ZEROS);
		rc = chan_write_wait(ch, off, zeros, n);
		if (!rc && is_stopped && atomic_load(is_stopped))
			rc = -ECANCELED;
	}
	free(zeros);
	return rc;
}

/* Gives [@off, @off + @len) of @ch its place on the disk, as far as that is wanted; the file is
 * then at least that long. Its last sector is always there: a file has no other way to grow
 * without data. */
static int preallocate_wait(const struct maker *m, struct chan *ch, uint64_t off, uint64_t len)
{
	uint64_t end = off + len;

	if (!len)
		return 0;
	switch (m->o->preallocation) {
	case QCOW2_PREALLOC_FALLOC:
		return zero_wait(ch, off, len);
	case QCOW2_PREALLOC_FULL:
		return write_zeros_wait(ch, off, len, m->o->is_stopped);
	default:
		break;
	}
	if (atomic_load(&ch->node->size) >= end)
		return 0;
	return zero_wait(ch, MAX(end - MIN(end, (uint64_t)SECTOR), off),
			 MIN(len, (uint64_t)SECTOR));
}

/* ---- mappings made ahead ---- */

static int l2_write_wait(struct maker *m)
{
	return m->l2_first ? write_wait(m, m->l2_first << m->cluster_bits, m->l2, m->cluster) : 0;
}

/* The table that maps guest cluster @guest is m->l2 afterwards. Clusters come in their order. */
static int l2_need_wait(struct maker *m, uint64_t guest)
{
	uint64_t index = guest / m->l2_entries;
	int rc;

	if (m->l2_first && m->l2_index == index)
		return 0;
	rc = l2_write_wait(m);
	if (!rc)
		rc = create_refs_take_wait(&m->refs, 1, &m->l2_first);
	if (rc)
		return rc;
	memset(m->l2, 0, m->cluster);
	m->l2_index = index;
	be64_store(&m->l1[index], m->l2_first << m->cluster_bits | QCOW2_COPIED);
	return 0;
}

/* Maps @n clusters from @guest on, all in m->l2, to those from @host on. */
static void l2_fill(struct maker *m, uint64_t guest, uint64_t host, uint64_t n)
{
	uint8_t *entry = m->l2 + guest % m->l2_entries * m->entry_bytes;

	for (uint64_t i = 0; i < n; i++, entry += m->entry_bytes)
		be64_store(entry, (host + i) << m->cluster_bits | QCOW2_COPIED);
}

/* Maps up to *@n clusters from @guest on to adjacent ones, from *@ret_host on; *@n is then how many
 * there are. QEMU takes them so: what one table maps at a time, as long as it goes on adjacent. */
static int map_run_wait(struct maker *m, uint64_t guest, uint64_t *n, uint64_t *ret_host)
{
	uint64_t done = 0, first = 0;

	while (done < *n) {
		uint64_t at = guest + done, got, host;
		int rc = l2_need_wait(m, at);

		got = MIN(*n - done, m->l2_entries - at % m->l2_entries);
		host = first + done;
		if (rc)
			return rc;
		if (m->data) {
			host = at;
		} else if (!done) {
			rc = create_refs_take_wait(&m->refs, got, &host);
		} else {
			rc = create_refs_take_at_wait(&m->refs, host, got, &got);
			if (!rc && !got)
				break;
		}
		if (rc)
			return rc;
		if (!done)
			first = host;
		l2_fill(m, at, host, got);
		done += got;
	}
	*n = done;
	*ret_host = first;
	return 0;
}

/* How much of its last cluster the disk needs: all of it, or with extended L2 whole subclusters. */
static uint64_t last_cluster_bytes(const struct maker *m)
{
	uint64_t unit = m->o->extended_l2 ? m->cluster / QCOW2_SUBCLUSTERS : m->cluster;
	uint64_t rest = m->size % m->cluster;

	return rest ? align_up(rest, unit) : m->cluster;
}

/* Maps all of the disk, cluster by cluster as writes from its start to its end would. The file ends
 * behind the last one, or farther. */
static int map_in_order_wait(struct maker *m)
{
	uint64_t left = div_round_up(m->size, m->cluster), guest = 0, end = 0;
	uint64_t most = ((uint64_t)INT_MAX >> m->cluster_bits);
	int rc = 0;

	while (left && !rc) {
		uint64_t n = MIN(left, most), host = 0;

		rc = map_run_wait(m, guest, &n, &host);
		guest += n;
		left -= n;
		end = ((host + n - 1) << m->cluster_bits) + last_cluster_bytes(m);
	}
	if (!rc)
		rc = l2_write_wait(m);
	if (rc)
		return rc;
	if (m->data)
		return preallocate_wait(m, m->data, 0, end);
	return end > m->end ? preallocate_wait(m, m->file, m->end, end - m->end) : 0;
}

/* Takes all clusters of the disk in one piece, then maps them. */
static int map_in_one_wait(struct maker *m)
{
	uint64_t n = div_round_up(m->size, m->cluster), first, got = 0, next;
	uint64_t start = create_refs_end(&m->refs) << m->cluster_bits;
	int rc = create_refs_move_wait(&m->refs, n + div_round_up(n, m->l2_entries) + 1, &first);

	if (rc)
		return err_set_errno(m->err, -rc, "Failed to resize refcount structures");
	rc = create_refs_take_at_wait(&m->refs, first, n, &got);
	assert(rc || got == n);
	if (!rc)
		rc = preallocate_wait(m, m->file, start,
				      ((first + n) << m->cluster_bits) - start);
	for (uint64_t guest = 0; guest < n && !rc; guest = next) {
		next = MIN(n, (guest / m->l2_entries + 1) * m->l2_entries);
		rc = l2_need_wait(m, guest);
		if (!rc)
			l2_fill(m, guest, first + guest, next - guest);
	}
	return rc ? rc : l2_write_wait(m);
}

static int map_wait(struct maker *m)
{
	enum qcow2_preallocation p = m->o->preallocation;

	/* What is raw to others is so from the start. */
	if (p == QCOW2_PREALLOC_METADATA || (m->data && (p || m->o->data_file_raw)))
		return map_in_order_wait(m);
	if (p != QCOW2_PREALLOC_OFF)
		return map_in_one_wait(m);
	return m->data ? preallocate_wait(m, m->data, 0, m->size) : 0;
}

/* ---- the header ---- */

static const struct {
	uint8_t type, bit;
	const char *name;
} feature_names[] = {
	{ 0, 0, "dirty bit" },
	{ 0, 1, "corrupt bit" },
	{ 0, 2, "external data file" },
	{ 0, 3, "compression type" },
	{ 0, 4, "extended L2 entries" },
	{ 1, 0, "lazy refcounts" },
	{ 2, 0, "bitmaps" },
	{ 2, 1, "raw external data" },
};

/* The first cluster while it is filled. */
struct head {
	uint8_t *bytes;
	uint64_t room;
	uint64_t at;
};

static int add(struct head *h, const void *data, size_t len)
{
	if (len > h->room - h->at)
		return -ENOSPC;
	memcpy(h->bytes + h->at, data, len);
	h->at += len;
	return 0;
}

static int add_extension(struct head *h, uint32_t type, const void *data, size_t len)
{
	static const uint8_t padding[8];
	struct qcow2_ext_disk ext;
	int rc;

	be32_store(&ext.type, type);
	be32_store(&ext.len, (uint32_t)len);
	rc = add(h, &ext, sizeof(ext));
	if (!rc && len)
		rc = add(h, data, len);
	return rc ? rc : add(h, padding, align_up(len, 8) - len);
}

static int add_feature_names(struct head *h)
{
	struct qcow2_feature_disk names[ARRAY_SIZE(feature_names)] = { 0 };

	for (unsigned i = 0; i < ARRAY_SIZE(feature_names); i++) {
		names[i].type = feature_names[i].type;
		names[i].bit = feature_names[i].bit;
		memcpy(names[i].name, feature_names[i].name, strlen(feature_names[i].name));
	}
	return add_extension(h, QCOW2_EXT_FEATURE_NAMES, names, sizeof(names));
}

static int add_extensions(struct head *h, const struct maker *m)
{
	const struct qcow2_create_opts *o = m->o;
	int rc = 0;

	if (o->backing_format)
		rc = add_extension(h, QCOW2_EXT_BACKING_FORMAT, o->backing_format,
				   strlen(o->backing_format));
	if (!rc && o->data_file_name)
		rc = add_extension(h, QCOW2_EXT_DATA_FILE, o->data_file_name,
				   strlen(o->data_file_name));
	if (!rc && o->version != 2 && m->cluster >= FEATURE_NAMES_CLUSTER_MIN)
		rc = add_feature_names(h);
	return rc ? rc : add_extension(h, QCOW2_EXT_END, NULL, 0);
}

static void fill_features(const struct maker *m, struct qcow2_header_disk *d)
{
	const struct qcow2_create_opts *o = m->o;
	uint64_t incompatible = 0;

	if (o->version == 2)
		return;
	if (m->data)
		incompatible |= QCOW2_INCOMPAT_DATA_FILE;
	if (o->compression != QCOW2_COMPRESSION_DEFLATE)
		incompatible |= QCOW2_INCOMPAT_COMPRESSION;
	if (o->extended_l2)
		incompatible |= QCOW2_INCOMPAT_EXTENDED_L2;
	be64_store(&d->incompatible_features, incompatible);
	be64_store(&d->compatible_features, o->lazy_refcounts ? QCOW2_COMPAT_LAZY_REFCOUNTS : 0);
	be64_store(&d->autoclear_features,
		   o->data_file_raw ? QCOW2_AUTOCLEAR_DATA_FILE_RAW : 0);
	be32_store(&d->refcount_order, m->order);
	be32_store(&d->header_length, sizeof(*d));
	d->compression_type = (uint8_t)o->compression;
}

static void fill_fields(const struct maker *m, struct qcow2_header_disk *d)
{
	uint64_t table_bytes = m->refs.table_entries * sizeof(be64_t);

	be32_store(&d->magic, QCOW2_MAGIC);
	be32_store(&d->version, (m->o->version == 2 ? 2 : 3) |
				(m->o->is_unfinished ? QCOW2_VERSION_UNFINISHED : 0));
	be32_store(&d->cluster_bits, m->cluster_bits);
	be64_store(&d->size, m->size);
	be32_store(&d->l1_size, (uint32_t)m->l1_entries);
	be64_store(&d->l1_table_offset, m->l1_first << m->cluster_bits);
	be64_store(&d->refcount_table_offset, m->refs.table_first << m->cluster_bits);
	be32_store(&d->refcount_table_clusters, (uint32_t)(table_bytes >> m->cluster_bits));
	fill_features(m, d);
}

static int fill_head(const struct maker *m, struct head *h)
{
	const char *backing = m->o->backing_name;
	struct qcow2_header_disk d = { 0 };
	int rc;

	h->at = m->o->version == 2 ? QCOW2_HEADER_V2_BYTES : sizeof(d);
	rc = add_extensions(h, m);
	if (!rc && backing && strlen(backing) > QCOW2_BACKING_NAME_MAX)
		rc = -EINVAL;
	if (!rc && backing) {
		be64_store(&d.backing_file_offset, h->at);
		be32_store(&d.backing_file_size, (uint32_t)strlen(backing));
		rc = add(h, backing, strlen(backing));
	}
	fill_fields(m, &d);
	memcpy(h->bytes, &d, m->o->version == 2 ? QCOW2_HEADER_V2_BYTES : sizeof(d));
	if (rc && backing)
		return err_set_errno(m->err, -rc, "Could not assign backing file '%s' with format "
				     "'%s'", backing, m->o->backing_format);
	return rc;
}

/* ---- all of it ---- */

static int maker_init(struct maker *m)
{
	const struct qcow2_create_opts *o = m->o;
	uint64_t coverage;

	m->size = align_up(o->size, SECTOR);
	m->cluster = o->cluster_size ? o->cluster_size : CLUSTER_DEFAULT;
	m->cluster_bits = log2_floor(m->cluster);
	m->order = log2_floor(o->refcount_bits ? o->refcount_bits : REFCOUNT_BITS_DEFAULT);
	m->entry_bytes = o->extended_l2 ? 16 : 8;
	m->l2_entries = m->cluster / m->entry_bytes;
	coverage = m->l2_entries << m->cluster_bits;
	m->l1_entries = div_round_up(m->size, coverage);
	if (m->l1_entries > QCOW2_L1_BYTES_MAX / sizeof(be64_t))
		return -EFBIG;
	m->l1 = calloc(MAX(m->l1_entries, 1ULL), sizeof(*m->l1));
	m->l2 = malloc(m->cluster);
	if (!m->l1 || !m->l2)
		return -ENOMEM;
	return create_refs_init(&m->refs, m->file, m->cluster_bits, m->order);
}

static void maker_fini(struct maker *m)
{
	create_refs_fini(&m->refs);
	free(m->l1);
	free(m->l2);
}

/* Takes what L1 needs. The file is then as long as all that QEMU has written by now. */
static int take_l1_wait(struct maker *m)
{
	uint64_t bytes = m->l1_entries * sizeof(be64_t);
	int rc = 0;

	if (bytes)
		rc = create_refs_take_wait(&m->refs, div_round_up(bytes, m->cluster),
					   &m->l1_first);
	m->end = create_refs_end(&m->refs) << m->cluster_bits;
	return rc;
}

static int make_wait(struct maker *m)
{
	struct head h = { .room = m->cluster };
	int rc = take_l1_wait(m);

	if (!rc)
		rc = map_wait(m);
	if (!rc)
		rc = create_refs_write_wait(&m->refs);
	if (!rc && m->l1_entries)
		rc = write_wait(m, m->l1_first << m->cluster_bits, m->l1,
				m->l1_entries * sizeof(be64_t));
	h.bytes = calloc(1, m->cluster);
	if (!rc && !h.bytes)
		rc = -ENOMEM;
	if (!rc)
		rc = fill_head(m, &h);
	if (!rc)
		rc = write_wait(m, 0, h.bytes, m->cluster);
	free(h.bytes);
	return rc;
}

/* An error that nobody has put into words. */
static int explain(const struct maker *m, int rc)
{
	if (rc == -EFBIG)
		return err_set(m->err, EFBIG, "The image size is too large for file format "
			       "'qcow2' (try using a larger cluster size)");
	if (rc && (!m->err || !m->err->code))
		return err_set_errno(m->err, -rc, "Could not create the image");
	return rc;
}

int qcow2_create_wait(struct node *file, struct node *data, const struct qcow2_create_opts *o,
		      struct err *err)
{
	struct maker m = { .o = o, .err = err };
	int rc = qcow2_create_check(o, err);

	if (rc)
		return rc;
	rc = chan_get_wait(file, &m.file, err);
	if (!rc && data)
		rc = chan_get_wait(data, &m.data, err);
	if (!rc) {
		rc = maker_init(&m);
		if (!rc)
			rc = make_wait(&m);
		rc = explain(&m, rc);
		maker_fini(&m);
	}
	if (m.data)
		chan_put_wait(m.data);
	if (m.file)
		chan_put_wait(m.file);
	return rc;
}
