/* SPDX-License-Identifier: MIT */
/* sim/crash.h - what a power cut leaves of a medium.
 *
 * After event k of a log (disk.h) each sector holds one of:
 *	what is *durable*: of the writes that were done before a sync was submitted which is
 *	itself done before k (or had FUA, and are done), the one that took effect last;
 *	what any other write brought, that was submitted before k, unless it took effect before
 *	the durable one.
 * A *fate*, a seed, decides for each write whether it is kept, lost or torn at sectors, and in
 * which order those that overlap come. The first FATES_NAMED fates are the extreme ones.
 *
 * Where a write covers a part of a sector, its fate takes along what else was in the sector when it
 * took effect; one that did not is lost there.
 *
 * Of two disks each syncs what is its own; the power goes for both.
 *
 * A file's growth that is not durable may be lost as well, and with it what was written there.
 * Where it was cut, it may be as long as before; a cut is durable before what comes after it is. */
#ifndef SIM_CRASH_H
#define SIM_CRASH_H

#include "sim/disk.h"

enum crash_fate {
	FATE_ALL_LOST,
	FATE_ALL_KEPT,
	FATE_ONLY_NEWEST,
	FATE_ALL_BUT_NEWEST,
	FATE_ONLY_DATA,
	FATE_ONLY_METADATA,
	FATE_ONLY_OLDEST,
	FATE_ALL_TORN,
	FATES_NAMED,
};

struct crash {
	const struct sim_log *log;
	bool is_device;
	struct sim_pages durable;
	uint64_t durable_size;
	uint32_t at;                    /* events seen */
	uint32_t *open;                 /* ops submitted that are not durable; owned */
	uint32_t nopen, open_room;

	/* What crash_make() left. It lies over `durable`. */
	struct sim_pages image;
	uint64_t size;
};

/* @base, @size: the medium when the log began. */
void crash_init(struct crash *c, const struct sim_log *log, const struct sim_pages *base,
		uint64_t size, bool is_device);
void crash_fini(struct crash *c);
/* Goes on to after event @k, the number of events that have happened. Never back. */
void crash_advance(struct crash *c, uint32_t k);
/* Makes c->image and c->size. */
void crash_make(struct crash *c, uint64_t fate);

#endif
