/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/open.c - opening an image, and the node that it becomes. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/err.h"
#include "base/log.h"
#include "fmt/qcow2/header_edit.h"
#include "fmt/qcow2/image.h"
#include "fmt/qcow2/load.h"
#include "fmt/qcow2/qcow2.h"
#include "fmt/qcow2/writer.h"

enum {
	HEADER_READ_FIRST = 64 << 10,
	GATE_LIMIT = 64,
	INFLATE_BYTES = 16 << 20,       /* bounds the buffers of compressed reads under way */
	INFLATE_LIMIT = 16,
};

int qcow2_corrupt(struct qcow2 *q, const char *fmt, ...)
{
	char text[256];
	va_list ap;

	if (atomic_exchange(&q->is_corrupt_logged, true))
		return -EUCLEAN;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	log_error("'%s' is damaged: %s; reads of what it concerns fail. "
		  "Look at it with 'byre check'", q->node.name, text);
	return -EUCLEAN;
}

static int chan_open_wait(struct chan *ch, struct err *err)
{
	struct qcow2_chan *qc = container_of(ch, struct qcow2_chan, ch);
	const struct qcow2 *q = qcow2_of(ch->node);
	unsigned limit = INFLATE_BYTES >> (q->cluster_bits + 1);

	fiber_gate_init(&qc->gate, GATE_LIMIT);
	fiber_gate_init(&qc->inflate_gate, MAX(2U, MIN(limit, (unsigned)INFLATE_LIMIT)));
	inflate_cache_init(qc);
	return 0;
}

static void chan_close_wait(struct chan *ch)
{
	inflate_cache_fini(container_of(ch, struct qcow2_chan, ch));
}

static int settle_wait(struct node *n, struct err *err)
{
	struct qcow2 *q = qcow2_of(n);
	int rc = 0;

	if (q->is_whole && q->writer->broken & BREAK_Q11_EARLY)
		rc = header_finish_wait(q->writer->file);
	if (!rc && q->writer)
		rc = writer_settle_wait(q->writer, err);
	if (rc || !q->is_whole)
		return rc;
	rc = header_finish_wait(q->writer->file);
	return rc ? err_set_errno(err, -rc, "'%s': header", n->name) : 0;
}

void qcow2_finish(struct node *n)
{
	struct qcow2 *q = qcow2_of(n);

	assert(q->writer);
	q->is_whole = q->header.is_unfinished;
}

int qcow2_reuse_wait(struct node *n)
{
	struct writer *w = qcow2_of(n)->writer;

	assert(w);
	return alloc_reuse_wait(&w->alloc);
}

static void node_free(struct node *n)
{
	struct qcow2 *q = qcow2_of(n);

	writer_free(q->writer);
	for (unsigned i = 0; i < L1_PAGES; i++)
		free(q->l1[i].bytes);
	qcow2_header_fini(&q->header);
	free(q);
}

/* A cluster lies at a multiple of its size. */
static uint32_t share_align_wait(struct node *n, const struct node *from)
{
	const struct qcow2 *q = qcow2_of(n);
	struct node *data = n->child[q->data_child];
	uint32_t align = data ? node_share_align_wait(data, from) : 0;

	return align <= 1U << q->cluster_bits ? align : 0;
}

const struct node_ops qcow2_ops = {
	.name = "qcow2",
	.chan_size = sizeof(struct qcow2_chan),
	.chan_open_wait = chan_open_wait,
	.chan_close_wait = chan_close_wait,
	.submit = qcow2_submit,
	.settle_wait = settle_wait,
	.free = node_free,
	.share_align_wait = share_align_wait,
};

static int header_read_wait(struct chan *file, bool for_check, struct qcow2_header *ret,
			    struct err *err)
{
	size_t len = HEADER_READ_FIRST, need = 0;

	for (;;) {
		void *buf = aligned_alloc(4096, len);
		int rc;

		if (!buf)
			return err_set_errno(err, ENOMEM, "header");
		rc = chan_read_wait(file, 0, buf, len);
		if (rc)
			err_set_errno(err, -rc, "cannot read the header");
		else
			rc = (for_check ? qcow2_header_parse_for_check : qcow2_header_parse)(
				buf, len, ret, &need, err);
		free(buf);
		if (rc != -EAGAIN)
			return rc;
		if (need <= len)
			return err_set(err, EINVAL, "Header extension too large");
		len = align_up(need, 4096);
	}
}

/* What the data path needs of the header, ready to use. @size is the disk's. */
static int layout_init(struct qcow2 *q, uint64_t size, struct err *err)
{
	const struct qcow2_header *h = &q->header;
	unsigned cluster = (unsigned)qcow2_cluster_size(h);

	if (cache_setup(q->cache, MIN(cluster, (unsigned)CACHE_SLICE_BYTES_MAX)))
		return err_set_errno(err, ENOMEM, "mapping cache");
	if (q->cache->layers >= CACHE_LAYERS_MAX)
		return err_set(err, EMFILE, "too many layers in a backing chain");
	q->layer = q->cache->layers++;
	q->cache->images[q->layer] = q;
	q->cluster_bits = h->cluster_bits;
	q->entry_words = qcow2_has_extended_l2(h) ? 2 : 1;
	q->unit_bits = h->cluster_bits -
		       (qcow2_has_extended_l2(h) ? log2_floor(QCOW2_SUBCLUSTERS) : 0);
	q->slice_bytes = MIN(cluster, q->cache->slice_bytes);
	q->slice_shift = log2_floor(q->slice_bytes / (8 * q->entry_words)) + h->cluster_bits;
	/* What L1 covers always fits; a snapshot may claim to be larger than its L1. */
	if (size >> q->slice_shift >= CACHE_SLICES_MAX)
		return err_set(err, EFBIG, "a disk of %llu bytes is too big for its clusters",
			       (unsigned long long)size);
	q->has_data_file = qcow2_has_data_file(h);
	q->has_raw_data = q->has_data_file && (h->autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW);
	q->has_zero_flag = h->version >= 3;
	q->data_child = q->has_data_file ? CHILD_DATA : CHILD_FILE;
	return 0;
}

static int open_wait(struct qcow2 *q, const struct qcow2_opts *opts, struct chan *file,
		     struct err *err)
{
	struct snapshot s;
	int rc = header_read_wait(file, opts->for_check, &q->header, err);

	if (rc)
		return rc;
	if (opts->writable && !opts->for_check &&
	    (q->header.incompatible & QCOW2_INCOMPAT_CORRUPT)) {
		err_set(err, EROFS, "qcow2: Image is corrupt; cannot be opened read/write");
		err_hint(err, "repair it with 'byre check -r all', or open it read-only");
		return -EROFS;
	}
	if (q->header.is_unfinished && !opts->is_unfinished) {
		err_set(err, ENOTSUP, "Unsupported qcow2 version %u",
			q->header.version | QCOW2_VERSION_UNFINISHED);
		err_hint(err, "byre convert was to make this image and was ended early: what is "
			 "there is not all; make it again");
		return -ENOTSUP;
	}
	rc = opts->metadata_only ? 0 : qcow2_check_encryption(&q->header, err);
	if (rc)
		return rc;
	s = (struct snapshot){ q->header.l1_off, q->header.l1_entries, q->header.size };
	if (opts->snapshot) {
		rc = snapshot_find_wait(file, &q->header, opts->snapshot, &s, err);
		if (rc)
			return rc;
	}
	if (!opts->for_check && qcow2_check_reach(s.l1_off, (uint64_t)s.l1_entries * 8))
		return err_set_errno(err, EIO, "Could not read L1 table");
	rc = layout_init(q, s.size, err);
	if (rc)
		return rc;
	q->l1_off = s.l1_off;
	q->l1_entries = s.l1_entries;
	/* QEMU counts whole sectors. */
	atomic_store(&q->node.size, align_down(s.size, 512));
	q->node.read_only = !opts->writable || opts->snapshot;
	q->node.zero_is_fast = q->has_zero_flag;
	q->node.can_discard = true;
	return 0;
}

int qcow2_open_wait(struct node *file, const struct qcow2_opts *opts, struct node **ret,
		    struct err *err)
{
	struct qcow2 *q = calloc(1, sizeof(*q));
	struct chan *ch;
	int rc;

	if (!q)
		return err_set_errno(err, ENOMEM, "'%s'", file->name);
	q->cache = opts->cache;
	if (node_init(&q->node, &qcow2_ops, file->name, file->home)) {
		free(q);
		return err_set_errno(err, ENOMEM, "'%s'", file->name);
	}
	rc = chan_get_wait(file, &ch, err);
	if (!rc) {
		rc = open_wait(q, opts, ch, err);
		if (!rc) {
			q->node.child[CHILD_FILE] = file;
			rc = node_open_home_wait(&q->node, err);
		}
		/* A check changes the image itself, or not at all (repair.h). */
		if (!rc && !q->node.read_only && !opts->for_check)
			rc = writer_open_wait(q, opts, &q->writer, err);
		chan_put_wait(ch);
	}
	if (rc) {
		q->node.child[CHILD_FILE] = NULL;       /* still the caller's */
		node_put_wait(&q->node);
		return rc;
	}
	*ret = &q->node;
	return 0;
}

const char *qcow2_backing_name(const struct node *n)
{
	return qcow2_of(n)->header.backing_name;
}

const char *qcow2_backing_format(const struct node *n)
{
	return qcow2_of(n)->header.backing_format;
}

const char *qcow2_data_file_name(const struct node *n)
{
	return qcow2_of(n)->header.data_file_name;
}

bool qcow2_needs_data_file(const struct node *n)
{
	return qcow2_of(n)->has_data_file;
}
