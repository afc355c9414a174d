/* SPDX-License-Identifier: MIT */
/* drv/nbd/test_server.h - for the tests: a server in a thread of its own, over memory, that can be
 * told to misbehave. It speaks fixed newstyle with structured replies, answers one command at a
 * time and takes any number of connections, one thread each. */
#ifndef DRV_NBD_TEST_SERVER_H
#define DRV_NBD_TEST_SERVER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum {
	SERVER_CONNECTIONS_MAX = 64,
	/* Flags of an export. */
	SERVER_READ_ONLY = 1 << 1, SERVER_FLUSH = 1 << 2, SERVER_FUA = 1 << 3,
	SERVER_TRIM = 1 << 5, SERVER_ZERO = 1 << 6, SERVER_MULTI_CONN = 1 << 8,
	SERVER_FAST_ZERO = 1 << 11,
	SERVER_ALL = SERVER_FLUSH | SERVER_FUA | SERVER_TRIM | SERVER_ZERO | SERVER_FAST_ZERO,
};

/* What it does wrong, once, with the command that @wrong_after says. */
enum server_wrong {
	WRONG_NOTHING,
	WRONG_CLOSE,                    /* closes the connection */
	WRONG_MAGIC,                    /* a reply that is none */
	WRONG_COOKIE,                   /* a reply to nobody */
	WRONG_RANGE,                    /* data from elsewhere */
	WRONG_LONG,                     /* more data than there may be */
	WRONG_SHORT,                    /* an end without the data */
	WRONG_TWICE,                    /* two replies to one command */
	WRONG_SIMPLE,                   /* a simple reply to a structured READ */
	WRONG_EXTENT_NONE,              /* MAP: no extent... */
	WRONG_EXTENT_EMPTY,             /* ...one without bytes... */
	WRONG_EXTENT_LONG,              /* ...or one that is longer than the disk */
	WRONG_NOISE,                    /* bytes of a generator, then closes */
	WRONG_ERROR,                    /* answers with @error */
	WRONGS,
};

struct test_server {
	char path[108];
	uint8_t *disk;
	uint64_t size;
	uint16_t flags;
	uint32_t block, data_max;       /* 0: does not say */
	unsigned accept_max;            /* connections; 0: any number. More are left to wait */
	bool has_no_map;
	bool is_simple;                 /* no structured replies */
	bool greets_wrong;              /* noise instead of a greeting */
	enum server_wrong wrong;
	atomic_int wrong_after;         /* commands; below 0: never */
	uint32_t error;                 /* of the protocol */
	uint64_t noise;
	/* What it has seen. */
	atomic_uint connections, commands[8], fuas;
	atomic_uint misaligned;         /* commands that ignore the block sizes */

	int listen_fd;
	pthread_t thread;
	pthread_mutex_t lock;           /* of the disk and the list */
	int fds[SERVER_CONNECTIONS_MAX];
	pthread_t threads[SERVER_CONNECTIONS_MAX];
	unsigned n;
	bool is_stopping;
};

/* The rest of @s is set. Listens at a new path in the working directory, or again at s->path. */
void test_server_start(struct test_server *s);
/* Closes everything; the memory stays. */
void test_server_stop(struct test_server *s);

#endif
