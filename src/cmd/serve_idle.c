/* SPDX-License-Identifier: MIT */
#include "cmd/serve_idle.h"

#include "base/log.h"
#include "base/mem_release.h"
#include "blk/port.h"
#include "cmd/serve.h"
#include "export/nbd/nbd.h"
#include "export/vub/vub.h"

void serve_idle_init(struct serve_idle *idle, uint64_t now_ns)
{
	*idle = (struct serve_idle){ .next_ns = now_ns + SERVE_IDLE_NS };
}

/* Clients that came, and those that went. */
static uint64_t count_clients(const struct serve *s)
{
	struct nbd_server_stats server;
	uint64_t n = 0;

	if (s->server) {
		nbd_server_get_stats(s->server, &server);
		n = 2 * server.connections_total - server.connections;
	}
	for (unsigned i = 0; i < s->opts->nimages; i++) {
		struct vub_stats machine;

		if (!s->disks[i].vub)
			continue;
		vub_get_stats(s->disks[i].vub, &machine);
		n += 2 * machine.sessions_total - machine.sessions;
	}
	return n;
}

/* Something that grows with all that is done. */
static uint64_t count(const struct serve *s)
{
	uint64_t n = count_clients(s);
	struct port_stats p;

	for (unsigned i = 0; i < s->opts->nimages; i++) {
		port_get_stats(s->disks[i].port, &p);
		for (unsigned k = 0; k < REQ_KINDS; k++)
			n += p.ops[k];
	}
	return n;
}

bool serve_idle_look(struct serve_idle *idle, const struct serve *s, uint64_t now_ns)
{
	uint64_t n;

	if (now_ns < idle->next_ns)
		return false;
	idle->next_ns = now_ns + SERVE_IDLE_NS;
	n = count(s);
	if (n != idle->seen) {
		idle->seen = n;
		idle->is_clean = false;
		return false;
	}
	if (idle->is_clean)
		return false;
	idle->is_clean = true;
	mem_release();
	log_debug("idle: gave free memory back (%s)", mem_name());
	return true;
}
