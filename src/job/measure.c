/* SPDX-License-Identifier: MIT */
#include "job/measure.h"

#include <errno.h>

#include "base/bits.h"
#include "blk/port.h"
#include "fmt/qcow2/format.h"
#include "job/job_end.h"
#include "job/map.h"

enum { ENTRY_BYTES = 8, BITMAP_ENTRY_BYTES = 24 };

/* The refcount table and blocks for @clusters others and themselves, in clusters. (D4) */
static uint64_t refcount_clusters(const struct measure_layout *l, uint64_t clusters)
{
	uint64_t per_block = l->cluster * 8 >> l->refcount_order;
	uint64_t own = 0, blocks, table, before;

	do {
		before = own;
		blocks = div_round_up(clusters + own, per_block);
		table = div_round_up(blocks * ENTRY_BYTES, l->cluster);
		own = blocks + table;
	} while (own != before);
	return own;
}

int measure_metadata(const struct measure_layout *l, uint64_t size, uint64_t *ret)
{
	uint64_t entry = l->extended_l2 ? 2 * ENTRY_BYTES : ENTRY_BYTES;
	uint64_t data = div_round_up(size, l->cluster);
	uint64_t l2 = div_round_up(data, l->cluster / entry);
	uint64_t l1 = div_round_up(l2 * ENTRY_BYTES, l->cluster), others;

	if (l2 * ENTRY_BYTES > QCOW2_L1_BYTES_MAX)
		return -EFBIG;
	others = 1 + l1 + l2;
	*ret = (others + refcount_clusters(l, others + data)) * l->cluster;
	return 0;
}

uint64_t measure_bitmap(const struct measure_layout *l, uint64_t size, uint64_t granularity,
			size_t name_len, uint64_t *ret_entry)
{
	uint64_t bytes = div_round_up(div_round_up(size, granularity), 8);
	uint64_t clusters = div_round_up(bytes, l->cluster);

	*ret_entry = align_up(BITMAP_ENTRY_BYTES + name_len, 8);
	return (clusters + div_round_up(clusters * ENTRY_BYTES, l->cluster)) * l->cluster;
}

int measure_data_wait(struct port_chan *pc, uint64_t size, uint64_t cluster, uint64_t *ret)
{
	struct map_cursor c;
	struct map_run run;
	uint64_t used = 0, begun = loop_now(pc->loop);

	map_cursor_init(&c, pc, 0, size);
	while (c.off < c.end) {
		uint64_t start = c.off, end;
		int rc = map_next_wait(&c, &run);

		if (rc)
			return rc;
		if ((run.flags & (MAP_DATA | MAP_ZERO)) != MAP_DATA)
			continue;
		end = align_up(c.off, cluster);
		used += end - align_down(start, cluster);
		c.off = MIN(end, c.end);        /* the rest of the cluster is counted */
	}
	job_end_wait(pc->loop, begun);
	*ret = used;
	return 0;
}
