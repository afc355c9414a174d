/* SPDX-License-Identifier: MIT */
/* sim/model.h - what a guest may read: now, and after a power cut.
 *
 * The model looks at a window of the guest's disk. What is written carries a *stamp* in every eight
 * bytes: the number of the write and the guest's sector. Each sector has a list of versions, one
 * for each operation that changed it, so that whatever is read can be told apart.
 *
 * Times are numbers of events in the disk's log (disk.h): `now` is how many there are. After a
 * cut at k a sector must hold the newest version that a flush, itself ended by then, had made
 * durable, or one after it that had begun by then.
 *
 * Where operations race, that is overlap in a sector while both are under way, whatever any of
 * them leaves is right.
 *
 * An operation that failed leaves a sector old or new; a read decides which it is for the guest. A
 * raw data file is to show the same (W7 of pending.h), but bringing it back may fail, too. So where
 * it was seen to hold what the guest does not read, either is right there: until a flush has ended
 * well that began when nothing failed any more, which has tried again. */
#ifndef SIM_MODEL_H
#define SIM_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MODEL_NEVER UINT32_MAX

enum model_kind { MODEL_WRITE, MODEL_ZERO, MODEL_DISCARD };

/* What sectors hold before all operations; MODEL_ZEROED: whatever lies below. */
enum model_initial { MODEL_ZEROS, MODEL_OWN, MODEL_BACKING, MODEL_ZEROED };

/* Stamps' numbers: operations count from 0; these are of what was there before. */
enum { STAMP_OPS_MAX = 0xf00, STAMP_STALE = 0xffd, STAMP_OWN = 0xffe, STAMP_BACKING = 0xfff };

struct model_op {
	enum model_kind kind;
	uint64_t off, len;
	uint32_t begin, done, flushed;  /* times; MODEL_NEVER: not yet */
	uint32_t restored;              /* and when a raw data file shows what the guest reads */
	uint32_t done_serial;           /* the order in which they were done */
	int res;
};

/* How the content of a version is found. */
enum model_state {
	VERSION_NEW,
	VERSION_OLD,                    /* as before the operation */
	VERSION_EITHER,                 /* one of the two, until somebody looks */
	VERSION_RACE,                   /* one of the two, for ever */
};

struct model_version {
	uint32_t op;
	uint32_t older;                 /* + 1; 0: the initial content */
	enum model_state state;
	bool is_left;                   /* failed, and OLD; but a raw data file had it */
};

struct model {
	uint64_t off, len;              /* the window: whole sectors */
	uint8_t *initial;               /* enum model_initial, by sector; owned */
	uint32_t *newest;               /* version + 1, by sector; owned */
	struct model_version *versions;
	struct model_op *ops;
	uint32_t nversions, versions_room, nops, ops_room;
	uint32_t serial;
	char why[256];                  /* the last mismatch */
};

void model_init(struct model *m, uint64_t off, uint64_t len);
void model_fini(struct model *m);

/* Fills @buf with what operation @number writes to [@off, @off + @len) of the guest's disk. */
void stamp_fill(unsigned number, uint64_t off, void *buf, uint64_t len);
/* Does it hold anything that stamp_fill() made? */
bool stamp_is_there(const void *buf, uint64_t len);

/* An operation begins; its number. @is_race: others are under way in its sectors. */
uint32_t model_begin(struct model *m, enum model_kind kind, uint64_t off, uint64_t len,
		     bool is_race, uint32_t now);
/* It ended, and is durable if @is_durable. */
void model_end(struct model *m, uint32_t op, int res, bool is_durable, uint32_t now);
/* Was it a failure or a discard? Then what it did is not known before it was read. */
bool model_is_open(const struct model *m, uint32_t op);

/* Before a flush or a read begins; what model_flushed() is to be told when it has ended well, and
 * model_check_read() in any case. */
uint32_t model_mark(const struct model *m);
void model_flushed(struct model *m, uint32_t begun, uint32_t now);
/* The same flush, if no request to a disk could fail from then on. */
void model_restored(struct model *m, uint32_t begun, uint32_t now);

/* Is @buf what a read of [@off, @off + @len), begun at @begun, may have found? What was open is
 * decided by it. False: m->why says why not. */
bool model_check_read(struct model *m, uint64_t off, const void *buf, uint64_t len,
		      uint32_t begun);
/* The guest has just read the sector at @off, where a raw data file holds @sector. */
void model_note_raw(struct model *m, uint64_t off, const void *sector);
/* The sector at @off, after a power cut at @k; or that of a raw data file. */
bool model_check_crash(struct model *m, uint64_t off, const void *sector, uint32_t k);
bool model_check_raw(struct model *m, uint64_t off, const void *sector, uint32_t k);
/* Is it what was there before all operations? */
bool model_is_initial(const struct model *m, uint64_t off, const void *sector);
/* Has any operation begun in [@off, @off + @len)? */
bool model_was_changed(const struct model *m, uint64_t off, uint64_t len);
/* Was any byte of the sector at @off ever changed? */
static inline bool model_is_touched(const struct model *m, uint64_t off)
{
	return m->newest[(off - m->off) / 512];
}

#endif
