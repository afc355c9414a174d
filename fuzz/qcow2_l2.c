/* SPDX-License-Identifier: MIT */
/* fuzz/qcow2_l2.c - L1 and L2 tables, extended ones too, and compressed clusters: read and mapped
 * through the node, many requests at a time and one by one.
 *
 * Also held: reads that run together give what the same reads give alone; what a map says is zero
 * reads as zeros; what it says lies in the file reads as the file's bytes. */
#include <stdatomic.h>
#include <string.h>

#include "blk/port.h"
#include "fmt/qcow2/format.h"
#include "fmt/qcow2/qcow2.h"
#include "fuzz/image.h"

enum { READS = 10, READ_MAX = 72 << 10, MAPS = 16, MAP_MAX = 16 << 20, LOOK_BYTES = 512 };

struct one {
	struct req req;
	struct iovec iov[2];
	uint64_t off, len;
	uint8_t *bytes;
	int rc;
	unsigned *left;
	struct fiber *waiter;
};

/* An offset of a disk of @size bytes where something is likely to be. */
static uint64_t some_offset(struct session *s, uint64_t size)
{
	uint64_t off;

	switch (prng_below(&s->prng, 5)) {
	case 0: off = prng_below(&s->prng, size); break;
	case 1: off = prng_below(&s->prng, MIN(size, (uint64_t)8192)); break;
	case 2: off = size - 1 - prng_below(&s->prng, MIN(size, (uint64_t)70000)); break;
	case 3: off = prng_below(&s->prng, MIN(size, (uint64_t)1 << 20)); break;
	default: off = prng_below(&s->prng, MIN(size, (uint64_t)128 << 10));
	}
	return prng_below(&s->prng, 2) ? off : align_down(off, 512);
}

static void done(struct req *req, int res)
{
	struct one *o = container_of(req, struct one, req);

	o->rc = res;
	if (--*o->left == 0)
		fiber_wake(o->waiter);
}

static void prepare(struct one *o)
{
	o->iov[0] = (struct iovec){ o->bytes, o->len / 3 };
	o->iov[1] = (struct iovec){ o->bytes + o->len / 3, o->len - o->len / 3 };
	o->req = (struct req){ .kind = REQ_READ, .off = o->off, .len = o->len, .iov = o->iov,
			       .iovcnt = 2, .done = done };
}

static void read_together(struct session *s, struct port_chan *pc, struct one *list)
{
	uint64_t size = atomic_load(&s->top->size);
	unsigned left = READS;

	for (unsigned i = 0; i < READS; i++) {
		struct one *o = &list[i];

		o->off = some_offset(s, size);
		o->len = prng_below(&s->prng, 4) ? 1 + prng_below(&s->prng, 5000)
						 : 1 + prng_below(&s->prng, READ_MAX);
		o->len = MIN(o->len, size - o->off);
		o->bytes = malloc(o->len);
		FUZZ_CHECK(o->bytes, "no memory");
		memset(o->bytes, 0xee, o->len);
		o->left = &left;
		o->waiter = fiber_self();
		prepare(o);
		port_submit(pc, &o->req);
	}
	while (left)
		fiber_park();
}

static void read_alone(struct session *s, const struct one *list)
{
	struct chan *ch = s->top->home_chan;

	for (unsigned i = 0; i < READS; i++) {
		const struct one *o = &list[i];
		uint8_t *again = malloc(o->len);
		bool fails;
		int rc;

		FUZZ_CHECK(again, "no memory");
		rc = chan_read_wait(ch, o->off, again, o->len);
		fails = rc;
		/* Which of several errors a read answers with is its parts' luck. */
		FUZZ_CHECK(fails == (o->rc != 0), "%d, then %d, at %#llx, %#llx bytes", o->rc, rc,
			   (unsigned long long)o->off, (unsigned long long)o->len);
		FUZZ_CHECK(rc || !memcmp(again, o->bytes, o->len), "other bytes at %#llx, %#llx",
			   (unsigned long long)o->off, (unsigned long long)o->len);
		session_note(s, &fails, sizeof(fails));
		if (!rc)
			session_note(s, again, o->len);
		free(again);
	}
}

/* Is it true what @run says of the bytes at @off, the first or last of the run? */
static void look(struct session *s, const struct map_run *run, uint64_t off, uint64_t rel)
{
	uint8_t got[LOOK_BYTES], file[LOOK_BYTES];
	uint64_t n = MIN(run->len - rel, (uint64_t)LOOK_BYTES);

	if (chan_read_wait(s->top->home_chan, off + rel, got, n))
		return;
	if (run->flags & MAP_ZERO) {
		for (uint64_t i = 0; i < n; i++)
			FUZZ_CHECK(!got[i], "said to be zero: %#llx",
				   (unsigned long long)(off + rel + i));
	} else if ((run->flags & MAP_HOST) && (run->flags & MAP_DATA) && run->file == s->file) {
		image_read(s->im, run->host_off + rel, file, n);
		FUZZ_CHECK(!memcmp(got, file, n), "%#llx is not at %#llx",
			   (unsigned long long)(off + rel),
			   (unsigned long long)(run->host_off + rel));
	}
}

static void map_some(struct session *s)
{
	uint64_t size = atomic_load(&s->top->size), off = some_offset(s, size);

	for (unsigned i = 0; i < MAPS; i++) {
		struct req req = { .kind = REQ_MAP, .off = off,
				   .len = MIN(size - off, (uint64_t)MAP_MAX) };
		struct map_run run;
		int rc = chan_submit_wait(s->top->home_chan, &req);

		session_note(s, &rc, sizeof(rc));
		if (rc) {
			off = some_offset(s, size);
			continue;
		}
		run = req.map;
		FUZZ_CHECK(run.len && run.len <= req.len, "a run of %llu",
			   (unsigned long long)run.len);
		session_note(s, &run.len, sizeof(run.len));
		session_note(s, &run.flags, sizeof(run.flags));
		session_note(s, &run.depth, sizeof(run.depth));
		if (run.flags & MAP_HOST)
			session_note(s, &run.host_off, sizeof(run.host_off));
		look(s, &run, off, 0);
		look(s, &run, off, run.len - MIN(run.len, (uint64_t)LOOK_BYTES));
		off += run.len;
		if (off == size)
			off = some_offset(s, size);
	}
}

static void use(struct session *s)
{
	struct qcow2_opts opts = { 0 };
	struct one list[READS] = { 0 };
	struct port *port;

	if (session_open_wait(s, &opts) || !atomic_load(&s->top->size))
		return;
	FUZZ_CHECK(!port_new(s->top, true, &port, NULL) && !port_open_wait(port, NULL), "port");
	read_together(s, port_here(port), list);
	port_close_wait(port);
	port_free(port);
	read_alone(s, list);
	for (unsigned i = 0; i < READS; i++)
		free(list[i].bytes);
	map_some(s);
}

static void run(const uint8_t *data, size_t size)
{
	session_run(data, size, use);
}

static size_t mutate(uint8_t *data, size_t size, size_t max, struct prng *p)
{
	return image_mutate(data, size, max, p, SPOT_HEADER | SPOT_L1 | SPOT_L2 | SPOT_DATA |
			    SPOT_SIZE | SPOT_SEED | SPOT_BYTES);
}

const struct fuzz_target fuzz_target = { "qcow2_l2", IMAGE_PACKED_MAX, run, mutate };
