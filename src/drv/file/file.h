/* SPDX-License-Identifier: MIT */
/* drv/file/file.h - a node over a regular file or a block device. */
#ifndef DRV_FILE_FILE_H
#define DRV_FILE_FILE_H

#include <stdbool.h>
#include <stdint.h>

struct err;
struct loop;
struct node;

/* As QEMU's cache= modes. A flush is fdatasync(2) in all of them but unsafe. */
enum file_cache {
	FILE_CACHE_WRITEBACK,           /* the page cache; durable at a flush */
	FILE_CACHE_NONE,                /* O_DIRECT; durable at a flush */
	FILE_CACHE_WRITETHROUGH,        /* the page cache; every write durable */
	FILE_CACHE_DIRECTSYNC,          /* O_DIRECT; every write durable */
	FILE_CACHE_UNSAFE,              /* the page cache; flushes do nothing */
};

/* QEMU's names, and "off" for none. 0 or -EINVAL. */
int file_cache_parse(const char *text, enum file_cache *ret, struct err *err);
const char *file_cache_name(enum file_cache cache);

struct file_opts {
	const char *path;               /* what is opened, and what messages call it */
	int fd;                         /* an open descriptor, taken on success; or -1: @path
					 * is opened. It gets O_DIRECT where @cache asks for it */
	enum file_cache cache;
	bool writable;
	bool drop_pages;                /* what it brings into the page cache does not stay there
					 * (file_pages.c) */
	bool discard;                   /* REQ_DISCARD and REQ_MAY_UNMAP give space back */
	bool no_lock;                   /* neither take nor look at image locks */
	bool share_writes;              /* others may write; file_refuse_writers_wait() ends that */
	bool qemu_words;                /* say what QEMU says in errors; our own is the hint */
	bool sim;                       /* @fd is a simulated file of @home, a sim loop. A
					 * direct one has blocks of 512 bytes */
};

/* In a fiber of the home loop of @file, which was opened with share_writes: from now on nobody else
 * may write. 0, or -EBUSY where somebody does. @opts: those of its opening. */
int file_refuse_writers_wait(struct node *file, const struct file_opts *opts, struct err *err);
/* Does @n, a node of any kind, hold a lock by which its file is refused to all who would write to
 * it and look at locks? Not while file_refuse_writers_wait() runs. */
bool file_refuses_writers(struct node *n);

/* In a fiber of @home. On failure the caller keeps opts->fd. */
int file_open_wait(const struct file_opts *opts, struct loop *home, struct node **ret,
		   struct err *err);

#endif
