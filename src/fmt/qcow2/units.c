/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/units.h"

#include "fmt/qcow2/writer.h"

uint64_t units_alike_end(const struct qcow2 *q, uint32_t a, uint32_t b, uint64_t lo)
{
	unsigned n = 1U << (q->cluster_bits - q->unit_bits);
	unsigned first = (unsigned)(lo >> q->unit_bits), i = first + 1;

	while (i < n && !((a >> i ^ a >> first) & 1) && !((b >> i ^ b >> first) & 1))
		i++;
	return (uint64_t)i << q->unit_bits;
}

/* May the place that @entry names be written to? */
static bool is_own(const struct qcow2 *q, uint64_t entry)
{
	return entry & QCOW2_COPIED || (q->writer && q->writer->broken & BREAK_Q3_COPIED);
}

struct units units_of(const struct qcow2 *q, struct l2_pair pair, uint64_t guest)
{
	struct unit u = map_entry(q, pair.entry, guest);
	struct units r = { .pair = pair };

	r.is_bad = u.kind == EXT_CORRUPT;
	r.is_compressed = u.kind == EXT_COMPRESSED;
	if (r.is_bad)
		return r;
	if (r.is_compressed) {
		r.data = units_all(q);
		return r;
	}
	r.has_host = u.has_host;
	r.host = u.host_off;
	r.is_own = u.has_host && is_own(q, pair.entry);
	if (q->entry_words == 1) {
		r.data = u.kind == EXT_DATA;
		r.zero = u.kind == EXT_ZERO;
		return r;
	}
	r.data = (uint32_t)pair.bitmap;
	r.zero = (uint32_t)(pair.bitmap >> 32);
	r.is_bad = (r.data & r.zero) || (r.data && !r.has_host);
	return r;
}

struct l2_pair units_pair(const struct qcow2 *q, uint64_t host, uint32_t data, uint32_t zero)
{
	assert(!(data & zero) && (!data || host));
	if (q->entry_words == 2)
		return (struct l2_pair){ host, data | (uint64_t)zero << 32 };
	return (struct l2_pair){ host | (zero ? QCOW2_ZERO : 0), 0 };
}
