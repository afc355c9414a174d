/* SPDX-License-Identifier: MIT */
/* export/nbd/handshake.c - the negotiation, as straight-line code in a fiber.
 *
 * Only what is asked for is read, never a byte beyond, so that nothing is left over when the
 * transmission phase begins. Replies gather in a small buffer that is sent when it is full and
 * when the answer to an option is complete.
 *
 * N7: the connection's timer shuts the socket down when the time is over, which ends whatever this
 * code waits for; options are counted, and their data is at most RX_BYTES long (longer data is
 * read away and refused). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "export/nbd/nbd_impl.h"

/* One negotiation; on the heap, since fibers' stacks are small. */
struct shake {
	struct nbd_conn *c;
	const struct nbd_server *s;
	bool is_fixed;                  /* the client speaks fixed newstyle */
	bool no_zeroes;
	bool is_chosen;                 /* c->export is what the client wants */
	const struct nbd_export *meta_export;   /* of the last SET_META_CONTEXT, or NULL */
	uint32_t option;                /* at hand, and its data */
	uint32_t len;
	const uint8_t *data;            /* in c->rx_buf */
	int error;                      /* the first of sending */
	size_t out_len;
	uint8_t out[4096];
};

/* ---- bytes ---- */

static int receive_all(struct shake *h, void *buf, size_t n)
{
	struct nbd_conn *c = h->c;

	while (n) {
		struct io io = {
			.op = IO_RECV, .fd = c->fd, .fixed = c->fixed, .buf = buf, .len = n,
		};
		int res = loop_io_wait(c->loop, &io);

		if (res <= 0)
			return res ? res : -ECONNRESET;
		buf = (uint8_t *)buf + res;
		n -= (size_t)res;
	}
	return 0;
}

static int receive_away(struct shake *h, uint32_t n)
{
	int rc = 0;

	while (n && !rc) {
		uint32_t part = MIN(n, (uint32_t)RX_BYTES);

		rc = receive_all(h, h->c->rx_buf, part);
		n -= part;
	}
	return rc;
}

static void flush_out(struct shake *h)
{
	struct nbd_conn *c = h->c;
	size_t at = 0;

	while (at < h->out_len && !h->error) {
		struct iovec iov = { h->out + at, h->out_len - at };
		struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
		struct io io = { .op = IO_SENDMSG, .fd = c->fd, .fixed = c->fixed, .msg = &msg };
		int res = loop_io_wait(c->loop, &io);

		if (res <= 0)
			h->error = res ? res : -EPIPE;
		else
			at += (size_t)res;
	}
	h->out_len = 0;
}

static void put(struct shake *h, const void *data, size_t n)
{
	while (n) {
		size_t part = MIN(n, sizeof(h->out) - h->out_len);

		memcpy(h->out + h->out_len, data, part);
		h->out_len += part;
		data = (const uint8_t *)data + part;
		n -= part;
		if (h->out_len == sizeof(h->out))
			flush_out(h);
	}
}

/* The head of a reply to the option at hand; @len bytes are to follow. */
static void put_reply(struct shake *h, uint32_t type, size_t len)
{
	const struct nbd_option_reply head = {
		.magic = be64_make(NBD_REP_MAGIC),
		.option = be32_make(h->option),
		.type = be32_make(type),
		.len = be32_make((uint32_t)len),
	};

	put(h, &head, sizeof(head));
}

static void put_ack(struct shake *h)
{
	put_reply(h, NBD_REP_ACK, 0);
}

static void put_error(struct shake *h, uint32_t type, const char *text)
{
	put_reply(h, type, strlen(text));
	put(h, text, strlen(text));
}

/* ---- the option's data ---- */

static bool take(struct shake *h, const void **ret, uint32_t n)
{
	if (n > h->len)
		return false;
	*ret = h->data;
	h->data += n;
	h->len -= n;
	return true;
}

static bool take_u32(struct shake *h, uint32_t *ret)
{
	const void *p;

	if (!take(h, &p, 4))
		return false;
	*ret = be32_load(p);
	return true;
}

static bool take_u16(struct shake *h, uint16_t *ret)
{
	const void *p;

	if (!take(h, &p, 2))
		return false;
	*ret = be16_load(p);
	return true;
}

/* A length of 32 bits, and as many bytes. */
static bool take_string(struct shake *h, const char **ret, uint32_t *ret_len)
{
	const void *p;
	uint32_t len;

	if (!take_u32(h, &len) || len > NBD_STRING_MAX || !take(h, &p, len))
		return false;
	*ret = p;
	*ret_len = len;
	return true;
}

/* ---- what an export is ---- */

static bool is_read_only(const struct nbd_export *e)
{
	return e->read_only || e->port->read_only || e->port->node->read_only;
}

static uint16_t transmission_flags(const struct shake *h, const struct nbd_export *e)
{
	const struct port *port = e->port;
	unsigned flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA |
			 NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_CACHE;

	if (h->c->is_structured)
		flags |= NBD_FLAG_SEND_DF;
	if (is_read_only(e))
		return (uint16_t)(flags | NBD_FLAG_READ_ONLY);
	flags |= NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
	if (port->node->can_discard && !port->ignore_discard)
		flags |= NBD_FLAG_SEND_TRIM;
	return (uint16_t)flags;
}

static uint32_t preferred_block(const struct nbd_export *e)
{
	uint32_t align = e->port->node->align;

	return is_pow2(align) && align <= 65536 ? MAX(align, 4096u) : 4096;
}

static void put_info_text(struct shake *h, enum nbd_info type, const char *text)
{
	const be16_t wire_type = be16_make((uint16_t)type);

	put_reply(h, NBD_REP_INFO, sizeof(wire_type) + strlen(text));
	put(h, &wire_type, sizeof(wire_type));
	put(h, text, strlen(text));
}

static void put_info(struct shake *h, const struct nbd_export *e, enum nbd_info type)
{
	const struct nbd_info_export export = {
		.type = be16_make(NBD_INFO_EXPORT),
		.size = be64_make(port_size(e->port)),
		.flags = be16_make(transmission_flags(h, e)),
	};
	const struct nbd_info_block_size sizes = {
		.type = be16_make(NBD_INFO_BLOCK_SIZE),
		.minimum = be32_make(1),
		.preferred = be32_make(preferred_block(e)),
		.maximum = be32_make(NBD_PAYLOAD_MAX),
	};

	switch (type) {
	case NBD_INFO_EXPORT:
		put_reply(h, NBD_REP_INFO, sizeof(export));
		put(h, &export, sizeof(export));
		return;
	case NBD_INFO_NAME:
		put_info_text(h, type, e->name);
		return;
	case NBD_INFO_DESCRIPTION:
		if (e->description)
			put_info_text(h, type, e->description);
		return;
	case NBD_INFO_BLOCK_SIZE:
		put_reply(h, NBD_REP_INFO, sizeof(sizes));
		put(h, &sizes, sizeof(sizes));
		return;
	}
}

/* ---- options ---- */

static void choose(struct shake *h, const struct nbd_export *e)
{
	struct nbd_conn *c = h->c;

	c->export = e;
	c->is_read_only = is_read_only(e);
	c->has_allocation = c->is_structured && h->meta_export == e;
	h->is_chosen = true;
}

static int export_name(struct shake *h)
{
	static const uint8_t zeros[124];
	const struct nbd_export *e = nbd_server_find(h->s, (const char *)h->data, h->len);

	if (!e)
		return -ENOENT;                 /* this option has no error reply */

	const struct nbd_export_reply reply = {
		.size = be64_make(port_size(e->port)),
		.flags = be16_make(transmission_flags(h, e)),
	};

	put(h, &reply, sizeof(reply));
	if (!h->no_zeroes)
		put(h, zeros, sizeof(zeros));
	choose(h, e);
	return 0;
}

static void list(struct shake *h)
{
	if (h->len) {
		put_error(h, NBD_REP_ERR_INVALID, "the option takes no data");
		return;
	}
	for (unsigned i = 0; i < h->s->nexports && !h->error; i++) {
		const struct nbd_export *e = &h->s->exports[i];
		const char *text = e->description ? e->description : "";
		const be32_t name_len = be32_make((uint32_t)strlen(e->name));

		put_reply(h, NBD_REP_SERVER, sizeof(name_len) + strlen(e->name) + strlen(text));
		put(h, &name_len, sizeof(name_len));
		put(h, e->name, strlen(e->name));
		put(h, text, strlen(text));
	}
	put_ack(h);
}

/* NBD_OPT_INFO and NBD_OPT_GO. */
static void info(struct shake *h)
{
	bool is_go = h->option == NBD_OPT_GO;
	const char *name;
	uint32_t name_len;
	uint16_t n, type;
	unsigned wanted = 1u << NBD_INFO_EXPORT;

	if (!take_string(h, &name, &name_len) || !take_u16(h, &n) || h->len != n * 2u) {
		put_error(h, NBD_REP_ERR_INVALID, "malformed option");
		return;
	}
	while (take_u16(h, &type))
		if (type <= NBD_INFO_BLOCK_SIZE)
			wanted |= 1u << type;

	const struct nbd_export *e = nbd_server_find(h->s, name, name_len);

	if (!e) {
		put_error(h, NBD_REP_ERR_UNKNOWN, "no such export");
		return;
	}
	for (type = NBD_INFO_EXPORT; type <= NBD_INFO_BLOCK_SIZE; type++)
		if (wanted & 1u << type)
			put_info(h, e, type);
	put_ack(h);
	if (is_go)
		choose(h, e);
}

static void structured_reply(struct shake *h)
{
	if (h->len) {
		put_error(h, NBD_REP_ERR_INVALID, "the option takes no data");
		return;
	}
	h->c->is_structured = true;
	put_ack(h);
}

/* Does @query ask for base:allocation? */
static bool is_match(const char *query, uint32_t len, bool is_list)
{
	static const char name[] = NBD_BASE_ALLOCATION, base[] = "base:";

	if (len == sizeof(name) - 1 && !memcmp(query, name, len))
		return true;
	return is_list && len == sizeof(base) - 1 && !memcmp(query, base, len);
}

/* NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT. */
static void meta_context(struct shake *h)
{
	bool is_list = h->option == NBD_OPT_LIST_META_CONTEXT;
	const char *name, *query;
	uint32_t name_len, query_len, n;

	if (!is_list)
		h->meta_export = NULL;          /* whatever comes of this one */
	if (!h->c->is_structured) {
		put_error(h, NBD_REP_ERR_INVALID, "structured replies come first");
		return;
	}
	if (!take_string(h, &name, &name_len) || !take_u32(h, &n)) {
		put_error(h, NBD_REP_ERR_INVALID, "malformed option");
		return;
	}

	bool found = is_list && !n;

	for (; n; n--) {
		if (!take_string(h, &query, &query_len))
			break;
		found |= is_match(query, query_len, is_list);
	}
	if (n || h->len) {
		put_error(h, NBD_REP_ERR_INVALID, "malformed option");
		return;
	}

	const struct nbd_export *e = nbd_server_find(h->s, name, name_len);

	if (!e) {
		put_error(h, NBD_REP_ERR_UNKNOWN, "no such export");
		return;
	}
	if (found) {
		const be32_t id = be32_make(is_list ? 0 : NBD_CONTEXT_ALLOCATION);

		put_reply(h, NBD_REP_META_CONTEXT, sizeof(id) + strlen(NBD_BASE_ALLOCATION));
		put(h, &id, sizeof(id));
		put(h, NBD_BASE_ALLOCATION, strlen(NBD_BASE_ALLOCATION));
		if (!is_list)
			h->meta_export = e;
	}
	put_ack(h);
}

/* Answers the option at hand. -ECANCELED: the client leaves. */
static int answer(struct shake *h)
{
	int rc = 0;

	if (!h->is_fixed && h->option != NBD_OPT_EXPORT_NAME)
		return -EPROTO;                 /* the client would not understand a reply */
	switch (h->option) {
	case NBD_OPT_EXPORT_NAME:
		rc = export_name(h);
		break;
	case NBD_OPT_ABORT:
		put_ack(h);
		rc = -ECANCELED;
		break;
	case NBD_OPT_LIST:
		list(h);
		break;
	case NBD_OPT_INFO:
	case NBD_OPT_GO:
		info(h);
		break;
	case NBD_OPT_STRUCTURED_REPLY:
		structured_reply(h);
		break;
	case NBD_OPT_LIST_META_CONTEXT:
	case NBD_OPT_SET_META_CONTEXT:
		meta_context(h);
		break;
	default:                                /* NBD_OPT_STARTTLS among them */
		put_error(h, NBD_REP_ERR_UNSUP, "this server does not know the option");
	}
	flush_out(h);
	return rc ? rc : h->error;
}

/* Receives the next option with its data and answers it. */
static int one_option(struct shake *h)
{
	struct nbd_option head;
	int rc = receive_all(h, &head, sizeof(head));

	if (rc < 0)
		return rc;
	if (be64_get(head.magic) != NBD_IHAVEOPT)
		return -EPROTO;
	h->option = be32_get(head.option);
	h->len = be32_get(head.len);
	h->data = h->c->rx_buf;
	if (h->len > RX_BYTES) {
		if (h->option == NBD_OPT_EXPORT_NAME || !h->is_fixed)
			return -EPROTO;
		rc = receive_away(h, h->len);
		if (rc < 0)
			return rc;
		put_error(h, NBD_REP_ERR_TOO_BIG, "the option is too long");
		flush_out(h);
		return h->error;
	}
	rc = receive_all(h, h->c->rx_buf, h->len);
	return rc < 0 ? rc : answer(h);
}

static int greet(struct shake *h)
{
	const struct nbd_greeting greeting = {
		.passwd = be64_make(NBD_INIT_PASSWD),
		.magic = be64_make(NBD_IHAVEOPT),
		.flags = be16_make(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES),
	};
	be32_t wire_flags;

	put(h, &greeting, sizeof(greeting));
	flush_out(h);
	if (h->error)
		return h->error;

	int rc = receive_all(h, &wire_flags, sizeof(wire_flags));

	if (rc < 0)
		return rc;

	uint32_t flags = be32_get(wire_flags);

	if (flags & ~(uint32_t)(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES))
		return -EPROTO;
	h->is_fixed = flags & NBD_FLAG_FIXED_NEWSTYLE;
	h->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
	return 0;
}

int nbd_handshake_wait(struct nbd_conn *c)
{
	struct shake *h = calloc(1, sizeof(*h));

	if (!h)
		return -ENOMEM;
	h->c = c;
	h->s = c->lane->server;

	int rc = greet(h);

	for (unsigned i = 0; !rc && !h->is_chosen; i++)
		rc = i < OPTIONS_MAX ? one_option(h) : -EPROTO;
	free(h);
	return rc;
}
