/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/writer.h"

#include <errno.h>
#include <stdlib.h>

#include "base/err.h"
#include "base/log.h"
#include "fmt/qcow2/qcow2.h"
#include "fmt/qcow2/repair.h"

static struct codec codec_of(const struct qcow2_header *h, const struct qcow2_opts *opts)
{
	return (struct codec){ .compression = h->compression, .level = opts->compression_level,
			       .has_small_window = opts->deflate_small_window };
}

/* What this version can read, but not write. */
static int check_features(const struct qcow2_header *h, const struct qcow2_opts *opts,
			  struct err *err)
{
	const struct codec codec = codec_of(h, opts);
	const char *what = NULL;

	if (opts->compress && qcow2_has_data_file(h))
		return err_set(err, ENOTSUP, "Compression is not possible with an external data "
			       "file");
	if (codec_check(&codec, err))
		return -EINVAL;

	if (qcow2_has_data_file(h) && h->nb_snapshots)
		what = "snapshots beside an external data file";
	if (!what)
		return 0;
	err_set(err, ENOTSUP, "The image has %s, which byre does not write in this version", what);
	err_hint(err, "open it read-only, or copy it with qemu-img convert");
	return -ENOTSUP;
}

int writer_open_wait(struct qcow2 *q, const struct qcow2_opts *opts, struct writer **ret,
		     struct err *err)
{
	struct chan *file = q->node.home_chan->child[CHILD_FILE];
	struct writer *w;
	int rc = check_features(&q->header, opts, err);

	if (!rc && (q->header.incompatible & QCOW2_INCOMPAT_DIRTY))
		rc = qcow2_repair_dirty_wait(file, &q->header, q->node.name, err);
	if (rc)
		return rc;
	w = calloc(1, sizeof(*w));
	if (!w)
		return err_set_errno(err, ENOMEM, "writer");
	w->q = q;
	w->home = q->node.home;
	w->file = file;
	w->cluster = qcow2_cluster_size(&q->header);
	w->writethrough = opts->writethrough;
	w->is_lazy = q->header.version >= 3 && (q->header.compatible & QCOW2_COMPAT_LAZY_REFCOUNTS);
	w->discard = opts->discard;
	w->broken = opts->broken;
	commit_init(&w->commit);
	meta_init(&w->meta, w->file, &w->commit, q->slice_bytes);
	pendings_init(&w->pendings, w);
	writes_init(&w->writes);
	pack_init(&w->pack, w);
	w->pack.codec = codec_of(&q->header, opts);
	w->pack.is_for_all = opts->compress;
	rc = refs_open_wait(&w->refs, w, err);
	if (!rc)
		rc = alloc_open_wait(&w->alloc, w, err);
	if (!rc)
		rc = track_open_wait(&w->track, w, err);
	if (!rc && q->header.is_in_use && reclaim_start(&w->reclaim, w))
		rc = err_set_errno(err, ENOMEM, "walk after a crash");
	if (rc) {
		writer_free(w);
		return rc;
	}
	*ret = w;
	return 0;
}

/* A commit, if there is anything for it to do. The file itself is synced once more when it
 * settles. */
static int commit_rest_wait(struct writer *w)
{
	const struct commit *c = &w->commit;

	if (w->dead)
		return w->dead;
	if (c->is_running || c->is_noted || c->is_file_written || w->meta.ndirty || w->pendings.n)
		return commit_wait(&w->commit);
	return 0;
}

/* Clusters that were never taken: nobody asks for more. Then they need no commit of their own. */
static int give_back_wait(struct writer *w)
{
	int rc = w->dead, rc2;

	if (!rc)
		rc = pendings_close_all_wait(&w->pendings, true);
	if (rc)
		return rc;
	quarantine_let_go(&w->alloc.quarantine);
	refs_free_old(&w->refs);
	rc = pack_close_wait(&w->pack);
	rc2 = alloc_close_wait(&w->alloc);
	return rc ? rc : rc2;
}

/* Everything but the marks. */
static int settle_wait(struct writer *w)
{
	int rc, rc2;

	w->commit.is_last = true;
	rc = give_back_wait(w);
	rc2 = commit_rest_wait(w);
	rc = rc ? rc : rc2;
	if (rc)
		return rc;
	/* What could only come behind that: one more commit, if there is any. */
	track_name_wait(&w->track);
	alloc_settle_wait(&w->alloc);
	rc = commit_rest_wait(w);
	return rc ? rc : reclaim_again_wait(&w->reclaim);
}

/* What bench/ compares with what the kernel saw. */
static void tell(const struct writer *w)
{
	const struct commit_stats *st = &w->commit.stats;

	log_debug("'%s': %llu commits; %llu syncs, %llu left out; %llu bytes of metadata in %llu "
		  "writes; %llu bytes around data", w->q->node.name,
		  (unsigned long long)st->commits, (unsigned long long)st->syncs,
		  (unsigned long long)st->skipped, (unsigned long long)st->meta_bytes,
		  (unsigned long long)st->meta_writes,
		  (unsigned long long)w->pendings.fills.bytes);
	if (w->pack.npacked || w->pack.nplain)
		log_debug("'%s': %llu compressed clusters, %llu as they are; %llu bytes in %llu "
			  "writes, %llu of them small", w->q->node.name,
			  (unsigned long long)w->pack.npacked, (unsigned long long)w->pack.nplain,
			  (unsigned long long)w->pack.nbytes, (unsigned long long)w->pack.nwrites,
			  (unsigned long long)w->pack.nsmall);
}

/* R6: does the mark stay, so that a walk finds what has leaked? */
static bool is_owed(const struct writer *w)
{
	return (w->reclaim.is_owed || w->has_leaked) && !(w->broken & BREAK_R6_ANYWAY);
}

int writer_settle_wait(struct writer *w, struct err *err)
{
	bool was_used;
	int rc = 0;

	reclaim_finish_wait(&w->reclaim);
	if (w->q->header.is_in_use && !is_owed(w))
		rc = mark_set_wait(w);          /* so that it is taken away */
	track_store_wait(&w->track);
	was_used = w->mark.is_set || w->commit.is_noted || w->meta.ndirty || w->track.is_marked;
	if (was_used) {
		rc = rc ? rc : settle_wait(w);
		if (!rc)
			rc = track_end_wait(&w->track);
		if (!rc && !is_owed(w))
			rc = mark_clear_wait(w);
		tell(w);
	}
	pendings_stop_wait(&w->pendings);
	pack_end_wait(&w->pack);
	/* What leaves quarantine may start a commit, and that may send more there. */
	do {
		alloc_settle_wait(&w->alloc);
		commit_stop_wait(&w->commit);
	} while (w->alloc.quarantine.is_releasing);
	writer_latch_wait(w);
	if (was_used && !rc && !w->dead && !w->meta.ndirty && !w->alloc.quarantine.clusters)
		alloc_cut_file_wait(&w->alloc);
	if (rc)
		return err_set_errno(err, -rc, "'%s': what was written since the last flush may be "
				     "lost, and clusters leaked", w->q->node.name);
	return 0;
}

void writer_free(struct writer *w)
{
	if (!w)
		return;
	pendings_fini(&w->pendings);
	pack_fini(&w->pack);
	track_fini(&w->track);
	reclaim_fini(&w->reclaim);
	alloc_fini(&w->alloc);
	refs_fini(&w->refs);
	meta_fini(&w->meta);
	free(w);
}
