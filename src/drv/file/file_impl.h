/* SPDX-License-Identifier: MIT */
/* drv/file/file_impl.h - what the files of this folder share. Nobody else includes it, but tests.
 *
 *	file.c         submit, reads and writes: the data path
 *	file_batch.c   small writes through the page cache, many at a time
 *	file_now.c     a few of those, by the loop itself
 *	file_sync.c    flushes, joined
 *	file_end.c     what if somebody else makes it shorter
 *	file_alloc.c   zero and discard by fallocate
 *	file_map.c     holes
 *	file_copy.c    from file to file, by sharing or by a copy of the file system's own
 *	file_bounce.c  what O_DIRECT cannot take as it is: copies, read-modify-write
 *	file_range.c   the range lock that makes read-modify-write safe
 *	file_open.c    opening; file_align.c what O_DIRECT asks for; file_lock.c image locks */
#ifndef DRV_FILE_FILE_IMPL_H
#define DRV_FILE_FILE_IMPL_H

#include <stdatomic.h>

#include "base/bits.h"
#include "base/list.h"
#include "blk/blk.h"
#include "drv/file/file.h"
#include "loop/work.h"

#define FILE_NOT_CUT UINT64_MAX

enum {
	FILE_IO_MAX = 1 << 30,          /* bytes of one operation: Linux takes 0x7ffff000 */
	CUT_IOVECS = 64,                /* iovecs that are sent at a time where iov must be cut */
	CUTS_KEPT = 4,                  /* a chan has so many from the start... */
	CUTS_MAX = 256,                 /* ...and never more than this; then requests queue */
	FILE_FIBERS_MAX = 16,           /* a chan */
	RANGE_LOCKS_MAX = 8,            /* a node, at a time */
	BOUNCE_MAX = 1 << 20,
	BOUNCE_RESERVE = 64 << 10,      /* also the largest block a file may have */
	FILE_NOW_SHARE = 16,            /* F17 */
};

struct file_chan;

/* A range that the home loop has locked, or waits for. Lives on its fiber's stack; home's. */
struct range_lock {
	struct list_node link;          /* file_node.ranges: in order of arrival */
	uint64_t off, end;
	struct fiber *fiber;
	unsigned missing;               /* chans that have not answered */
	unsigned slot;
	bool is_waiting;                /* for overlapping ones before it, or for a slot */
};

/* What a chan knows of a range lock. `task` and `lock` are the message: home's until it posts them,
 * then the chan's loop's until that posts them back. The rest is the chan's loop's at all times. */
struct chan_lock {
	struct task task;
	struct range_lock *lock;
	struct file_chan *fc;           /* const */
	uint64_t off, end;
	unsigned busy;                  /* overlapping requests the kernel still has */
	bool is_active;
	struct req *held, **held_tail;  /* overlapping requests that came later */
};

/* Small writes of a chan that a worker does in a row; see file_batch.c. */
struct file_batch {
	struct loop *loop;
	struct task task;               /* at the end of the turn, if is_due */
	struct task now_task;           /* soon, if now_is_due */
	struct work work;
	struct list_node gathered;      /* of struct io */
	struct list_node batched;       /* the worker's, if is_running */
	unsigned ngathered;
	bool is_due, now_is_due, is_running;
};

/* What a chan knows of when it may write by itself; see file_now.c. */
struct file_now {
	uint64_t looked_ns;
	uint64_t room;                  /* bytes that it may write until it looks again */
	uint64_t rest_until_ns;
	uint64_t writes;                /* done so; for tests */
};

struct iov_cut {
	struct iov_cut *next;
	struct iovec iov[CUT_IOVECS];
};

/* Is the file as long as it was? Once: `known` is what the node knew, `size` what there was after
 * that. */
struct file_look {
	struct work work;
	struct file_node *fn;
	int fd;
	uint64_t known, size;
	int res;                        /* -errno: it cannot be told */
};

/* Reads of a chan that wait for a look. */
struct file_end {
	struct file_look look;
	bool is_looking;
	struct req *now;                /* answered by the look that runs */
	struct req *next, **next_tail;  /* by the one after it */
};

struct file_node {
	struct node node;
	enum file_cache cache;          /* const after open, as are the next ones */
	int fd;
	uint32_t block;                 /* O_DIRECT: multiple for offset and length; else 1 */
	uint32_t mem_align;             /* O_DIRECT: multiple for addresses; else 1 */
	bool owns_fd;
	bool is_locked;                 /* holds image locks */
	bool refuses_writers;           /* by one of them */
	bool is_block_device;
	bool is_sim;
	bool is_direct;
	bool is_dsync;                  /* every write durable */
	struct file_pages *pages;       /* owned; NULL: they stay */
	int vmstat_fd;                  /* owned; -1: loops do not write by themselves */
	uint64_t now_align;             /* those writes: multiple for offset and length */
	uint32_t share_align;           /* blocks of the file system; 0: not known */
	/* What shares blocks: 0 or -errno, as the ioctl. Tests have one of their own. */
	int (*clone)(int from_fd, uint64_t from, int to_fd, uint64_t to, uint64_t len);
	bool leave_lock_out;            /* tests: shows that K1's test can fail */

	/* Written once, by any loop, with relaxed stores: a late reader only tries in vain. */
	atomic_bool no_punch, no_zero_range, no_discard, no_seek;
	atomic_bool sync_failed;        /* Q9: see file_sync.c */
	/* The least length that somebody else has cut it to, or FILE_NOT_CUT: see file_end.c. Any
	 * loop lowers it; a late reader learns by itself. */
	_Atomic uint64_t cut_to;

	/* Hints for file_now.c, relaxed: batches under way, of all chans; does a loop write? */
	atomic_uint batches;
	atomic_bool is_writing_now;

	/* Home's: see file_range.c. */
	struct list_node chans;         /* of file_chan.registered; direct nodes only */
	struct list_node ranges;
	unsigned slots_used;            /* bits below RANGE_LOCKS_MAX */
};

struct file_chan {
	struct chan chan;
	int fd;                         /* its own, or the node's */
	int fixed;                      /* loop_fd_register()'s slot */
	struct fiber_gate gate;

	struct iov_cut *cuts;           /* free ones */
	unsigned ncuts;                 /* in all */
	struct req *starved, **starved_tail;    /* wait for one */

	struct file_batch batch;
	struct file_now now;
	unsigned nwrites;               /* WRITEs under way */

	struct file_end end;

	struct io sync_io;
	struct file_look sync_look;     /* beside it */
	unsigned sync_missing;          /* of the two */
	int sync_res;
	bool is_syncing;
	struct req *sync_now;           /* answered by the fdatasync that runs */
	struct req *sync_next, **sync_next_tail;        /* by the one after it */

	/* Direct nodes only. */
	void *reserve;                  /* bounce buffer for when the loop's pool is empty */
	bool is_reserve_used;
	struct list_node reserve_waiters;
	struct list_node in_flight;     /* of file_req.link */
	unsigned active_locks;
	struct chan_lock locks[RANGE_LOCKS_MAX];
	struct list_node registered;    /* home's */
};

/* What lies in req->priv while the driver has the request. */
struct file_req {
	union {
		struct list_node link;  /* in_flight: WRITE, ZERO, DISCARD of direct nodes */
		uint64_t looked;        /* READ: `rel` at its last look; UINT64_MAX: none */
	};
	uint64_t rel;                   /* READ, WRITE: bytes done; ZERO: enum zero_step */
	struct iov_cut *cut;
};
_Static_assert(sizeof(struct file_req) <= sizeof(((struct req *)0)->priv), "req->priv");

static inline struct file_req *file_req(struct req *req)
{
	return (struct file_req *)(void *)req->priv;
}

static inline struct file_chan *file_chan(struct chan *ch)
{
	return container_of(ch, struct file_chan, chan);
}

static inline struct file_node *file_node(const struct chan *ch)
{
	return container_of(ch->node, struct file_node, node);
}

static inline uint64_t file_size(const struct file_node *fn)
{
	return atomic_load_explicit(&fn->node.size, memory_order_relaxed);
}

/* file.c */
void file_submit(struct chan *ch, struct req *req);
/* What was written ends at @end: the file is at least that long. */
void file_grown(struct file_node *fn, uint64_t end);
/* Points @io at the chan's file. */
void file_io_init(struct file_chan *fc, struct io *io, enum io_op op,
		  void (*done)(struct io *io, int res));
int file_chan_open_wait(struct chan *ch, struct err *err);
void file_chan_close_wait(struct chan *ch);
/* Answers @req, whose effect is in the file but for FUA. From an io's done(). */
void file_written(struct file_chan *fc, struct req *req, int res);

/* file_batch.c */
void file_batch_init(struct file_batch *b, struct loop *l);
/* Takes @io, a write of @len bytes through the page cache, instead of loop_submit(). False: it is
 * too large for that. */
bool file_batch_take(struct file_batch *b, struct io *io, uint64_t len);
/* Does the write @io where it is called: bytes or -errno. */
int file_batch_write(const struct io *io);

/* file_now.c */
/* Sets @fn's vmstat_fd and now_align, where @fd lies on a file system that it is right for. On a
 * worker. */
void file_now_open(struct file_node *fn, int fd);
/* Does what it may of @list, the writes of a chan that are under way; those go to @done, with the
 * result in io->res. How many. */
unsigned file_now_write(struct file_now *n, struct file_node *fn, struct list_node *list,
			uint64_t now, struct list_node *done);
/* How many bytes the loop may write by itself at @now. */
uint64_t file_now_may(struct file_now *n, const struct file_node *fn, uint64_t now);
/* A write took from @from to @to: is a rest needed? */
void file_now_took(struct file_now *n, uint64_t from, uint64_t to);
/* How many bytes may become dirty before the next look, going by the text of /proc/vmstat. */
uint64_t file_now_room(const char *vmstat);

/* The READ @req waited for a look, which said @res. */
void file_read_looked(struct file_chan *fc, struct req *req, int res);

/* file_end.c */
void file_end_init(struct file_end *e);
/* @req, a READ, ended below the node's size: it is told by file_read_looked(). */
void file_end_ask(struct file_chan *fc, struct req *req);
/* The file was cut: does @req fail for that? */
bool file_end_refuses(const struct file_node *fn, const struct req *req);
/* Fills @k from its fn and fd. On a worker. */
void file_look(struct file_look *k);
/* Does it on a worker, then calls done(&k->work). */
void file_look_start(struct file_chan *fc, struct file_look *k, void (*done)(struct work *work));
/* 0, or an error: the node is latched, or it cannot be told. */
int file_look_judge(const struct file_look *k);

static inline bool file_is_cut(const struct file_node *fn)
{
	return atomic_load_explicit(&fn->cut_to, memory_order_relaxed) != FILE_NOT_CUT;
}

/* file_sync.c: answers @req after an fdatasync that starts from now on. In any callback of the
 * loop. */
void file_sync_join(struct file_chan *fc, struct req *req);
void file_sync_failed(struct file_node *fn, int res);

/* file_alloc.c */
void file_zero_start(struct file_chan *fc, struct req *req);
void file_discard_start(struct file_chan *fc, struct req *req);
/* Is @res what the kernel says where it cannot do such a thing with this file? */
bool file_is_unsupported(int res);

/* file_map.c */
void file_map_start(struct file_chan *fc, struct req *req);

/* file_copy.c */
void file_copy_start(struct file_chan *fc, struct req *req);
/* Sets @fn's share_align, which is a regular file. On a worker. */
void file_share_open(struct file_node *fn, int fd);
uint32_t file_share_align_wait(struct node *n, const struct node *from);
int file_clone(int from_fd, uint64_t from, int to_fd, uint64_t to, uint64_t len);

/* file_bounce.c: @req is a READ or WRITE that O_DIRECT does not take. */
void file_bounce_start(struct file_chan *fc, struct req *req);
/* In a fiber of the chan's loop: writes the data of @src, or zeros where it is NULL, to [@off, @off
 * + @len), aligned or not. */
int file_write_any_wait(struct file_chan *fc, const struct req *src, uint64_t off, uint64_t len);

/* file_range.c */
/* True: @req overlaps a locked range and will be submitted again. False: it is in in_flight and may
 * go. */
bool file_range_hold(struct file_chan *fc, struct req *req);
void file_range_done(struct file_chan *fc, struct req *req);
/* In a fiber of the home loop. */
void file_range_lock_wait(struct file_node *fn, struct range_lock *lk, uint64_t off, uint64_t end);
void file_range_unlock_wait(struct file_node *fn, struct range_lock *lk);
/* From where on to lock a file whose length changes and that ends at @at, or later: from where the
 * page begins. For the kernel zeroes the rest of that in its cache, and a write past the cache that
 * finds it there when it ends takes that for a failure of the medium, which the flushes hear of. */
uint64_t file_last_page(const struct file_node *fn, uint64_t at);
/* In a fiber of the chan's loop. */
int file_range_register_wait(struct file_chan *fc);
void file_range_unregister_wait(struct file_chan *fc);

/* file_align.c: what O_DIRECT asks for. On a worker. 0 or -errno with @err. */
int file_align_find(struct file_node *fn, int fd, struct err *err);

/* file_lock.c: takes QEMU's image locks on @fd. On a worker. 1: there are no locks to be had, which
 * is no error. */
int file_lock_take(int fd, const char *name, bool writable, bool share, struct err *err);
/* Gives them back. Any thread. */
void file_lock_release(int fd);
/* Rewrites the -EBUSY that file_lock_take() has just put into @err: QEMU's text, with ours as the
 * hint. */
void file_lock_qemu_words(int fd, const char *name, bool writable, struct err *err);

extern const struct node_ops file_ops;

/* ---- file_pages.c ---- */

/* Is next to nothing of the file in the page cache? On a worker. */
bool file_pages_is_cold(const struct file_node *fn);
/* On a worker, before anything is read. */
int file_pages_new(const struct file_node *fn, struct file_pages **ret);
/* [@off, @off + @len) was read or written, by the chan's node, which has pages. */
void file_pages_touch(struct file_chan *fc, uint64_t off, uint64_t len);
/* In a fiber: no worker is at it any more. */
void file_pages_idle_wait(struct file_chan *fc);
/* Drops what is left. NULL is fine. */
void file_pages_free(struct file_pages *p);

#endif
