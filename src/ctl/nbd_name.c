/* SPDX-License-Identifier: MIT */
#include "ctl/nbd_name.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"
#include "ctl/option_list.h"

#define PORT_DEFAULT "10809"

struct scheme {
	const char *name;
	bool is_unix, has_tls;
};

static const struct scheme schemes[] = {
	{ "nbd", false, false },   { "nbd+tcp", false, false },  { "nbd+unix", true, false },
	{ "nbds", false, true },   { "nbds+tcp", false, true },  { "nbds+unix", true, true },
};

/* The scheme that @name begins with; @ret_rest is what follows the colon. */
static const struct scheme *find_scheme(const char *name, const char **ret_rest)
{
	size_t n = strcspn(name, ":/");

	if (name[n] != ':')
		return NULL;
	for (unsigned i = 0; i < ARRAY_SIZE(schemes); i++) {
		if (strlen(schemes[i].name) == n && !strncmp(name, schemes[i].name, n)) {
			*ret_rest = name + n + 1;
			return &schemes[i];
		}
	}
	return NULL;
}

bool nbd_name_is(const char *name)
{
	const char *rest;

	return find_scheme(name, &rest);
}

static int no_memory(struct err *err)
{
	return err_set_errno(err, ENOMEM, "NBD");
}

static int no_uri(struct err *err)
{
	return err_set(err, EINVAL, "No valid URL specified");
}

/* ---- URIs ---- */

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The @n bytes at @text with %XX resolved, owned. -EINVAL also for %00, which would cut it. */
static int decode(const char *text, size_t n, char **ret, struct err *err)
{
	char *out = malloc(n + 1), *at = out;

	if (!out)
		return no_memory(err);
	for (size_t i = 0; i < n; i++) {
		int hi, lo;

		if (text[i] != '%') {
			*at++ = text[i];
			continue;
		}
		hi = n - i > 2 ? hex_digit(text[i + 1]) : -1;
		lo = hi >= 0 ? hex_digit(text[i + 2]) : -1;
		if (lo < 0 || !(hi | lo)) {
			free(out);
			return no_uri(err);
		}
		*at++ = (char)(hi << 4 | lo);
		i += 2;
	}
	*at = '\0';
	free(*ret);
	*ret = out;
	return 0;
}

static bool is_key(const char *text, size_t n, const char *key)
{
	return strlen(key) == n && !strncmp(text, key, n);
}

/* One "key=value" of a URI's query. */
static int take_query_item(const char *item, size_t n, const struct scheme *scheme,
			   struct nbdc_server *s, struct err *err)
{
	const char *eq = memchr(item, '=', n), *value;
	size_t nkey = eq ? (size_t)(eq - item) : n, nvalue;

	if (!eq)
		return no_uri(err);
	value = eq + 1;
	nvalue = n - nkey - 1;
	if (scheme->is_unix && !s->path && is_key(item, nkey, "socket"))
		return decode(value, nvalue, &s->path, err);
	if (!scheme->has_tls)
		return no_uri(err);
	if (is_key(item, nkey, "tls-certificates"))
		return decode(value, nvalue, &s->tls_certificates, err);
	if (is_key(item, nkey, "tls-psk-file"))
		return decode(value, nvalue, &s->tls_psk_file, err);
	if (!is_key(item, nkey, "tls-verify-peer") || nvalue != 1 || (*value | 1) != '1')
		return no_uri(err);
	s->tls_trusts_anybody = *value == '0';
	return 0;
}

static int take_query(const char *query, size_t n, const struct scheme *scheme,
		      struct nbdc_server *s, struct err *err)
{
	const char *end = query + n;
	int rc = 0;

	while (query < end && !rc) {
		const char *amp = memchr(query, '&', (size_t)(end - query));
		size_t len = (size_t)((amp ? amp : end) - query);

		rc = take_query_item(query, len, scheme, s, err);
		query += len + 1;
	}
	return rc;
}

/* "host:port", "[::1]:port", "host:" or "host". */
static int take_host(const char *text, size_t n, struct nbdc_server *s, struct err *err)
{
	const char *end = text + n, *host = text, *port = end, *stop;
	int rc;

	if (n && *text == '[') {
		stop = memchr(text, ']', n);
		if (!stop || (stop + 1 < end && stop[1] != ':'))
			return no_uri(err);
		host = text + 1;
		port = stop + 1;
	} else {
		stop = memchr(text, ':', n);
		if (!stop)
			stop = end;
		port = stop;
	}
	if (stop == host)
		return no_uri(err);
	rc = decode(host, (size_t)(stop - host), &s->host, err);
	if (rc)
		return rc;
	if (port < end)
		port++;
	for (const char *p = port; p < end; p++)
		if (*p < '0' || *p > '9')
			return no_uri(err);
	s->port = port < end ? strndup(port, (size_t)(end - port)) : strdup(PORT_DEFAULT);
	return s->port ? 0 : no_memory(err);
}

/* [user@]host[:port] */
static int take_authority(const char *text, size_t n, const struct scheme *scheme,
			  struct nbdc_server *s, struct err *err)
{
	const char *at = memchr(text, '@', n);

	if (at) {
		size_t user = (size_t)(at - text);

		if (scheme->has_tls && decode(text, user, &s->tls_username, err))
			return -EINVAL;
		text = at + 1;
		n -= user + 1;
	}
	if (scheme->is_unix)
		return n ? no_uri(err) : 0;
	return take_host(text, n, s, err);
}

/* @text follows "scheme://". */
static int parse_uri(const char *text, const struct scheme *scheme, struct nbdc_server *s,
		     struct err *err)
{
	size_t all = strcspn(text, "#"), authority = strcspn(text, "/?#");
	size_t path_end = strcspn(text, "?#"), path = authority;
	int rc = take_authority(text, authority, scheme, s, err);

	while (path < path_end && text[path] == '/')
		path++;
	if (!rc && path < path_end)
		rc = decode(text + path, path_end - path, &s->export, err);
	if (!rc && path_end < all)
		rc = take_query(text + path_end + 1, all - path_end - 1, scheme, s, err);
	if (!rc && scheme->is_unix && (!s->path || !s->path[0]))
		rc = no_uri(err);
	s->has_tls = scheme->has_tls;
	return rc;
}

/* ---- QEMU's older names ---- */

/* "host:port", "[::1]:port". */
static int parse_address(const char *text, size_t n, struct nbdc_server *s, struct err *err)
{
	bool is_ipv6 = n && *text == '[';
	const char *host = is_ipv6 ? text + 1 : text;
	const char *stop = memchr(text, is_ipv6 ? ']' : ':', n), *port;

	port = stop ? stop + (is_ipv6 ? 2 : 1) : NULL;
	if (!port || port >= text + n || port[-1] != ':')
		return err_set(err, EINVAL, "error parsing %saddress '%.*s'",
			       is_ipv6 ? "IPv6 " : "", (int)n, text);
	s->host = strndup(host, (size_t)(stop - host));
	s->port = strndup(port, (size_t)(text + n - port));
	return s->host && s->port ? 0 : no_memory(err);
}

/* @text follows "nbd:". */
static int parse_old(const char *text, struct nbdc_server *s, struct err *err)
{
	static const char mark[] = ":exportname=", local[] = "unix:";
	const char *export = strstr(text, mark);
	size_t n = export ? (size_t)(export - text) : strlen(text);

	if (!n || (export && !export[sizeof(mark) - 1]))
		return err_set(err, EINVAL, "NBD server address missing");
	if (export) {
		s->export = strdup(export + sizeof(mark) - 1);
		if (!s->export)
			return no_memory(err);
	}
	if (n < sizeof(local) - 1 || strncmp(text, local, sizeof(local) - 1))
		return parse_address(text, n, s, err);
	s->path = strndup(text + sizeof(local) - 1, n - (sizeof(local) - 1));
	return s->path ? 0 : no_memory(err);
}

int nbd_name_parse(const char *name, struct nbdc_server *ret, struct err *err)
{
	const char *rest = NULL;
	const struct scheme *scheme = find_scheme(name, &rest);
	struct nbdc_server s = { 0 };
	int rc;

	if (!scheme)
		return no_uri(err);
	if (!strncmp(rest, "//", 2))
		rc = parse_uri(rest + 2, scheme, &s, err);
	else if (scheme == &schemes[0] && !strstr(rest, "://"))
		rc = parse_old(rest, &s, err);
	else
		rc = no_uri(err);
	if (rc)
		nbdc_server_fini(&s);
	else
		*ret = s;
	return rc;
}

/* ---- options ---- */

struct taking {
	struct option_list *list;
	const char *prefix;
	struct nbdc_server *s;
	struct err *err;
};

/* @key's value, copied to @ret where it is there. */
static int take_copy(struct taking *t, const char *key, char **ret)
{
	const struct option_item *o = option_list_take(t->list, t->prefix, key);

	if (!o || o->kind == OPTION_NULL || o->kind == OPTION_EMPTY)
		return 0;
	*ret = strdup(o->value);
	return *ret ? 0 : no_memory(t->err);
}

static int take_seconds(struct taking *t, const char *key, uint32_t *ret)
{
	const struct option_item *o = option_list_take(t->list, t->prefix, key);
	uint64_t s = 0;
	int rc = option_number(o, t->prefix, &s, t->err);

	if (!rc && o)
		*ret = (uint32_t)MIN(s, (uint64_t)UINT32_MAX);
	return rc;
}

static int missing(struct taking *t, const char *key)
{
	return err_set(t->err, EINVAL, "Parameter '%s' is missing", key);
}

/* What QEMU has besides for sockets that connect, and what changes nothing here. */
static void take_ignored(struct taking *t)
{
	static const char *const ignored[] = { "server.to", "server.numeric", "server.keep-alive",
					       "server.tight" };

	for (unsigned i = 0; i < ARRAY_SIZE(ignored); i++)
		option_list_take(t->list, t->prefix, ignored[i]);
}

static int refuse_others(struct taking *t)
{
	char prefix[512 + 8];
	const struct option_item *o;

	snprintf(prefix, sizeof(prefix), "%sserver.", t->prefix);
	o = option_list_unused(t->list, prefix);
	return o ? err_set(t->err, EINVAL, "Parameter '%s' is unexpected",
			   o->key + strlen(prefix)) : 0;
}

static int take_server(struct taking *t, const char *type)
{
	struct nbdc_server *s = t->s;
	int rc;

	take_ignored(t);
	if (!strcmp(type, "unix")) {
		rc = take_copy(t, "server.path", &s->path);
		return rc || s->path ? rc : missing(t, "path");
	}
	if (!strcmp(type, "vsock") || !strcmp(type, "fd"))
		return err_set(t->err, ENOTSUP, "NBD over '%s' is not supported", type);
	if (strcmp(type, "inet"))
		return err_set(t->err, EINVAL, "Parameter 'type' does not accept value '%s'", type);
	rc = take_copy(t, "server.host", &s->host);
	if (!rc)
		rc = take_copy(t, "server.port", &s->port);
	if (rc)
		return rc;
	return !s->host ? missing(t, "host") : !s->port ? missing(t, "port") : 0;
}

/* path=, or host= and port=. */
static int check_flat(struct taking *t)
{
	struct nbdc_server *s = t->s;

	if (s->path && s->host)
		return err_set(t->err, EINVAL,
			       "path and host may not be used at the same time");
	if (s->path && s->port)
		return err_set(t->err, EINVAL, "port may not be used without host");
	if (!s->path && !s->host)
		return err_set(t->err, EINVAL, "NBD server address missing");
	if (s->host && !s->port) {
		s->port = strdup(PORT_DEFAULT);
		if (!s->port)
			return no_memory(t->err);
	}
	return 0;
}

static int take_address(struct taking *t)
{
	struct nbdc_server *s = t->s;
	const struct option_item *type = option_list_take(t->list, t->prefix, "server.type");
	bool has_server = option_list_has_below(t->list, t->prefix, "server");
	int rc = take_copy(t, "path", &s->path);

	if (!rc)
		rc = take_copy(t, "host", &s->host);
	if (!rc)
		rc = take_copy(t, "port", &s->port);
	if (rc)
		return rc;
	if (!has_server)
		return check_flat(t);
	if (s->path || s->host || s->port)
		return err_set(t->err, EINVAL,
			       "Cannot use 'server' and path/host/port at the same time");
	rc = type ? take_server(t, type->value) : missing(t, "type");
	return rc ? rc : refuse_others(t);
}

static int take_all(struct taking *t)
{
	const struct option_item *tls;
	int rc = take_address(t);

	if (!rc)
		rc = take_copy(t, "export", &t->s->export);
	if (!rc)
		rc = take_copy(t, "x-dirty-bitmap", &t->s->map_context);
	if (!rc)
		rc = take_seconds(t, "reconnect-delay", &t->s->reconnect_delay_s);
	if (!rc)
		rc = take_seconds(t, "open-timeout", &t->s->open_timeout_s);
	option_list_take(t->list, t->prefix, "tls-hostname");
	tls = option_list_take(t->list, t->prefix, "tls-creds");
	if (!rc && tls)
		return err_set(t->err, EINVAL, "No TLS credentials with id '%s'", tls->value);
	return rc;
}

int nbd_name_take(struct option_list *list, const char *prefix, struct nbdc_server *ret,
		  struct err *err)
{
	struct nbdc_server s = { 0 };
	struct taking t = { .list = list, .prefix = prefix, .s = &s, .err = err };
	int rc = take_all(&t);

	if (rc)
		nbdc_server_fini(&s);
	else
		*ret = s;
	return rc;
}

/* ---- the one name ---- */

char *nbd_name_show(const struct nbdc_server *s)
{
	const char *tls = s->has_tls ? "s" : "", *slash = s->export ? "/" : "";
	const char *export = s->export ? s->export : "";
	char *text;
	int n;

	if (s->path)
		n = asprintf(&text, "nbd%s+unix://%s%s?socket=%s", tls, slash, export, s->path);
	else
		n = asprintf(&text, "nbd%s://%s:%s%s%s", tls, s->host, s->port, slash, export);
	return n < 0 ? NULL : text;
}
