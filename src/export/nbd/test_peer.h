/* SPDX-License-Identifier: MIT */
/* export/nbd/test_peer.h - for the tests: a server in this process over disks in memory, and a
 * client that sends bytes made by hand.
 *
 * Loops run in threads of their own; the test's thread is the client. Whatever a client waits for
 * that does not come within 10 s fails the test. */
#ifndef EXPORT_NBD_TEST_PEER_H
#define EXPORT_NBD_TEST_PEER_H

#include <pthread.h>
#include <stdatomic.h>

#include "blk/port.h"
#include "export/nbd/nbd.h"
#include "export/nbd/proto.h"
#include "loop/loop_thread.h"

enum {
	PEER_LOOPS_MAX = 2,
	DISK_BYTES = 40 << 20,
	PATTERN_BYTES = 1 << 20,        /* up to here each 8 bytes are pattern_at(); zeros follow */
	GRANULE = 4096,
};

static inline uint64_t pattern_at(uint64_t off)
{
	return off * 0x9e3779b97f4a7c15ULL;
}

/* A disk in memory. Its map goes by granules, of which granule_flags() tells. */
struct mem_disk {
	struct node node;
	uint8_t *data;
	_Atomic int fail_errno;         /* if not 0, requests that touch fail_off fail with it */
	_Atomic uint64_t fail_off;
	atomic_bool is_holding;         /* requests are kept until mem_disk_release() */
	atomic_uint held;
	atomic_uint flushes, fuas, discards, zeros;
	_Atomic uint8_t zero_req_flags; /* of the last REQ_ZERO */
	unsigned (*granule_flags)(uint64_t granule);
	pthread_mutex_t lock;           /* of data: loops share it */
};

struct peer {
	struct workers *workers;
	struct loop *loops[PEER_LOOPS_MAX];
	struct loop_thread threads[PEER_LOOPS_MAX];
	unsigned nloops;
	struct mem_disk disk;           /* exported as "disk" */
	struct mem_disk second;         /* exported as "second", read-only */
	struct port *port, *second_port;
	struct nbd_server *server;
	bool is_stopped;
	void *taken[4];
};

/* @opts: limits alone are used, and listening sockets. NULL: the defaults. */
void peer_start(struct peer *p, enum loop_backend backend, unsigned nloops,
		const struct nbd_server_opts *opts);
void peer_stop(struct peer *p);         /* the server alone */
void peer_end(struct peer *p);          /* everything; checks that nothing is left */
/* Takes all of loops[0]'s iobufs, and gives them back. */
void peer_take_memory(struct peer *p);
void peer_give_memory(struct peer *p);
void mem_disk_release(struct peer *p, struct mem_disk *d);
/* Waits until @d holds @n requests. */
void mem_disk_await_held(struct mem_disk *d, unsigned n);
size_t peer_memory_used(struct peer *p);        /* of loops[0]'s iobufs */
/* Waits until the server has @n connections. */
void peer_await_connections(struct peer *p, unsigned n);

/* ---- the client ---- */

int client_connect(struct peer *p);     /* a socket pair's end; nothing is read yet */
void client_send(int fd, const void *data, size_t n);
void client_receive(int fd, void *data, size_t n);
/* The server must close, having sent nothing more. */
void client_expect_end(int fd);

void client_greet(int fd, uint32_t flags);
void client_option(int fd, uint32_t option, const void *data, uint32_t n);
/* Receives an option reply's head, checks it, receives up to @n bytes of its data, which must
 * be all; returns how many. */
uint32_t client_option_reply(int fd, uint32_t option, uint32_t type, void *data, uint32_t n);

enum { CLIENT_STRUCTURED = 1, CLIENT_ALLOCATION = 2 };
/* A connection in the transmission phase with export @name. */
int client_open(struct peer *p, const char *name, unsigned what);

struct nbd_request client_request(unsigned type, unsigned flags, uint64_t cookie, uint64_t off,
				  uint32_t len);
void client_ask(int fd, unsigned type, unsigned flags, uint64_t cookie, uint64_t off, uint32_t len);
/* A simple reply with this error to that cookie. */
void client_expect_simple(int fd, uint64_t cookie, uint32_t error);
/* A last chunk of this type; returns the bytes that follow. */
uint32_t client_expect_chunk(int fd, uint64_t cookie, unsigned type);
/* A structured error with a message. */
void client_expect_error(int fd, uint64_t cookie, uint32_t error);
/* @n bytes from @off of a disk that nobody wrote to. */
void client_check_pattern(const uint8_t *data, uint64_t off, size_t n);
void pause_ms(unsigned ms);
void client_disconnect(int fd);         /* NBD_CMD_DISC; the server must close; closes */

void run_on_peer(struct peer *p, unsigned loop, int (*fn)(void *arg), void *arg);

#endif
