/* SPDX-License-Identifier: MIT */
/* tests/vub/hostile.c - attacks the disk at one socket of a daemon, and looks after each attack
 * whether that disk and another one of the same daemon can be read.
 *
 *	hostile VICTIM OTHER SEED ROUNDS
 *
 * Both sockets serve at least 1 MiB, and the same if VICTIM is read-only. Says what it does before
 * it does it; the first thing that goes wrong ends it with status 1. */
#include "hostile.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bits.h"

enum { SECTORS = 2048, READ_BYTES = 64 << 10 };

struct run {
	const char *victim;
	struct peer other;
	struct prng prng;
	uint64_t seed;
	unsigned attacks;
};

static void die(const struct run *r, const char *what, int rc)
{
	fprintf(stderr, "hostile: %s: %d (seed %llu, attack %u)\n", what, rc,
		(unsigned long long)r->seed, r->attacks);
	exit(1);
}

/* The layouts in turn. */
static struct vfe_want want(unsigned i)
{
	return (struct vfe_want){
		.packed = i & 1, .no_event_idx = i & 2, .no_inflight = i & 4,
		.protocol = 1ULL << VHOST_USER_PROTOCOL_F_LOG_SHMFD |
			    1ULL << VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS |
			    1ULL << VHOST_USER_PROTOCOL_F_RESET_DEVICE,
	};
}

/* A front end that behaves can read, and reads what the other disk has. */
static void look(struct run *r)
{
	uint64_t sector = prng_below(&r->prng, SECTORS - READ_BYTES / 512);
	struct vfe_want w = want((unsigned)prng_below(&r->prng, 8));
	struct peer p;
	int rc = peer_request(&r->other, VIRTIO_BLK_T_IN, sector, READ_BYTES);

	if (rc)
		die(r, "the other disk", rc);
	rc = peer_open(&p, r->victim, &w);
	if (rc)
		die(r, "the disk does not take a new front end", rc);
	rc = peer_request(&p, VIRTIO_BLK_T_IN, sector, READ_BYTES);
	if (rc)
		die(r, "the disk does not answer a new front end", rc);
	rc = peer_request(&p, VIRTIO_BLK_T_FLUSH, 0, 0);
	if (rc)
		die(r, "a flush", rc);
	/* What is not read-only some attacks may well have written. */
	if (vfe_link_has(&p.link, VIRTIO_BLK_F_RO) &&
	    memcmp(p.at + PEER_DATA, r->other.at + PEER_DATA, READ_BYTES))
		die(r, "the content has changed", 0);
	rc = peer_request(&p, VIRTIO_BLK_T_GET_ID, 0, VIRTIO_BLK_ID_BYTES);
	if (rc)
		die(r, "the serial number", rc);
	peer_close(&p);
}

static void start(struct run *r, struct peer *p, const char *what, unsigned variant)
{
	struct vfe_want w = want(variant);
	int rc = peer_open(p, r->victim, &w);

	printf("%u: %s, variant %u\n", ++r->attacks, what, variant);
	if (rc)
		die(r, "the disk does not take its attacker", rc);
}

static void end(struct run *r, struct peer *p)
{
	/* A moment for what was kicked; often none, so that the end comes in the middle. */
	if (prng_below(&r->prng, 2))
		usleep((useconds_t)prng_below(&r->prng, 4000));
	peer_close(p);
	look(r);
}

static void attack_chains(struct run *r, unsigned variant)
{
	for (unsigned i = 0; i < hostile_chains(); i++) {
		struct peer p;

		start(r, &p, "a chain", variant);
		printf("\t%s\n", hostile_chain(&p, i));
		end(r, &p);
	}
}

static void attack_all(struct run *r, const struct hostile_case *cases, unsigned variant)
{
	for (; cases->name; cases++) {
		struct peer p;

		start(r, &p, cases->name, variant);
		cases->attack(&p, &r->prng);
		end(r, &p);
	}
}

int main(int argc, char **argv)
{
	static struct run r;
	unsigned rounds;
	struct vfe_want w = { 0 };
	int rc;

	if (argc != 5) {
		fprintf(stderr, "usage: hostile VICTIM OTHER SEED ROUNDS\n");
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	r.victim = argv[1];
	r.seed = strtoull(argv[3], NULL, 10);
	r.prng.state = r.seed;
	rounds = (unsigned)strtoul(argv[4], NULL, 10);
	rc = peer_open(&r.other, argv[2], &w);
	if (rc)
		die(&r, "the other disk does not take a front end", rc);
	for (unsigned i = 0; i < rounds; i++) {
		attack_chains(&r, i);
		attack_all(&r, hostile_rings, i);
		attack_all(&r, hostile_messages, i);
	}
	peer_close(&r.other);
	return 0;
}
