/* SPDX-License-Identifier: MIT */
/* export/nbd/request.c - requests to the port, checked, and back.
 *
 * N6: a request is checked here against a table of what each command allows, before anything is
 * done for it. The port checks ranges and rights again, but NBD wants its own errors. */
#include <errno.h>

#include "export/nbd/nbd_impl.h"

static const struct rule {
	bool is_known;
	bool has_payload;               /* in either direction: len is limited */
	bool writes;
	bool has_no_range;
	uint8_t kind;                   /* enum req_kind, where it is submitted */
	uint16_t flags;                 /* NBD_CMD_FLAG_FUA is allowed everywhere */
	uint32_t beyond_end;            /* the error */
} rules[] = {
	[NBD_CMD_READ] = {
		.is_known = true, .has_payload = true, .kind = REQ_READ,
		.flags = NBD_CMD_FLAG_DF, .beyond_end = NBD_EINVAL,
	},
	[NBD_CMD_WRITE] = {
		.is_known = true, .has_payload = true, .writes = true, .kind = REQ_WRITE,
		.beyond_end = NBD_ENOSPC,
	},
	[NBD_CMD_FLUSH] = { .is_known = true, .has_no_range = true, .kind = REQ_FLUSH },
	[NBD_CMD_TRIM] = {
		.is_known = true, .writes = true, .kind = REQ_DISCARD, .beyond_end = NBD_EINVAL,
	},
	[NBD_CMD_CACHE] = { .is_known = true, .beyond_end = NBD_EINVAL },
	[NBD_CMD_WRITE_ZEROES] = {
		.is_known = true, .writes = true, .kind = REQ_ZERO,
		.flags = NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO, .beyond_end = NBD_ENOSPC,
	},
	[NBD_CMD_BLOCK_STATUS] = {
		.is_known = true, .flags = NBD_CMD_FLAG_REQ_ONE, .beyond_end = NBD_EINVAL,
	},
};

static struct nbd_refusal refuse(uint32_t error, const char *why)
{
	return (struct nbd_refusal){ error, why };
}

/* A read that is too long may be cut by its client, which EOVERFLOW tells it to do; but only
 * where DF is known, says the specification. */
static struct nbd_refusal refuse_length(const struct nbd_conn *c, const struct nbd_ask *ask)
{
	bool is_read = ask->type == NBD_CMD_READ;

	return refuse(is_read && c->is_structured ? NBD_EOVERFLOW : NBD_EINVAL,
		      "the request is longer than 32 MiB");
}

struct nbd_refusal nbd_request_check(const struct nbd_conn *c, const struct nbd_ask *ask)
{
	const struct rule *rule = ask->type < ARRAY_SIZE(rules) ? &rules[ask->type] : NULL;

	if (!rule || !rule->is_known)
		return refuse(NBD_EINVAL, "unknown command");
	if (ask->flags & ~(rule->flags | NBD_CMD_FLAG_FUA))
		return refuse(NBD_EINVAL, "a flag that does not belong to the command");
	if ((ask->flags & NBD_CMD_FLAG_DF) && !c->is_structured)
		return refuse(NBD_EINVAL, "the DF flag needs structured replies");
	if (rule->writes && c->is_read_only)
		return refuse(NBD_EPERM, "the export is read-only");
	if (rule->has_no_range)
		return ask->off || ask->len ? refuse(NBD_EINVAL, "a flush has no range")
					    : refuse(NBD_OK, NULL);
	if (ask->type == NBD_CMD_BLOCK_STATUS && !c->has_allocation)
		return refuse(NBD_EINVAL, "no metadata context was negotiated");
	if (ask->type == NBD_CMD_BLOCK_STATUS && !ask->len)
		return refuse(NBD_EINVAL, "the range is empty");
	if (rule->has_payload && ask->len > NBD_PAYLOAD_MAX)
		return refuse_length(c, ask);
	if (!range_within(ask->off, ask->len, port_size(c->port)))
		return refuse(rule->beyond_end, "beyond the end of the export");
	return refuse(NBD_OK, NULL);
}

uint32_t nbd_request_buffer(const struct nbd_ask *ask)
{
	switch (ask->type) {
	case NBD_CMD_READ:
	case NBD_CMD_WRITE:
		return ask->len;
	case NBD_CMD_BLOCK_STATUS:
		return nbd_status_buffer(ask);
	default:
		return 0;
	}
}

static void done(struct req *req, int res)
{
	struct nbd_req *nr = container_of(req, struct nbd_req, req);

	/* Only a fast zero may be answered ENOTSUP. */
	if (res == -EOPNOTSUPP && !(nr->ask.flags & NBD_CMD_FLAG_FAST_ZERO))
		res = -EINVAL;
	if (res < 0)
		nbd_reply_errno(nr, res);
	else if (nr->ask.type == NBD_CMD_READ)
		nbd_reply_read(nr);
	else
		nbd_reply_ok(nr);
}

static uint8_t req_flags(const struct nbd_ask *ask)
{
	uint8_t flags = 0;

	if (rules[ask->type].writes && ask->flags & NBD_CMD_FLAG_FUA)
		flags |= REQ_FUA;
	if (ask->type != NBD_CMD_WRITE_ZEROES)
		return flags;
	if (!(ask->flags & NBD_CMD_FLAG_NO_HOLE))
		flags |= REQ_MAY_UNMAP;
	if (ask->flags & NBD_CMD_FLAG_FAST_ZERO)
		flags |= REQ_FAST_ONLY;
	return flags;
}

/* What is empty goes to the port as well, which answers it. */
static void submit(struct nbd_req *nr)
{
	struct req *req = &nr->req;

	nr->iov = (struct iovec){ nr->buf, nr->ask.len };
	req->done = done;
	req->off = nr->ask.off;
	req->len = nr->ask.len;
	req->iov = &nr->iov;
	req->iovcnt = 1;
	req->iov_skip = 0;
	req->kind = rules[nr->ask.type].kind;
	req->flags = req_flags(&nr->ask);
	port_submit(nr->conn->pc, req);
}

void nbd_request_start(struct nbd_req *nr)
{
	switch (nr->ask.type) {
	case NBD_CMD_BLOCK_STATUS:
		nbd_status_start(nr);
		return;
	case NBD_CMD_CACHE:             /* a hint; nothing is faster than the read itself */
		nbd_reply_ok(nr);
		return;
	default:
		submit(nr);
	}
}
