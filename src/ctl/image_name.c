/* SPDX-License-Identifier: MIT */
#include "ctl/image_name.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"
#include "base/json_text.h"
#include "ctl/nbd_name.h"
#include "ctl/option_list.h"

/* What QEMU knows and byre does not open: told apart from what nobody knows. */
static const char *const foreign_drivers[] = {
	"blkdebug", "blklogwrites", "blkverify", "bochs", "cloop", "compress",
	"copy-before-write", "copy-on-read", "dmg", "ftp", "ftps", "gluster", "host_cdrom", "http",
	"https", "iscsi", "iser", "luks", "nfs", "null-aio", "null-co", "nvme", "parallels",
	"preallocate", "qcow", "qed", "quorum", "rbd", "replication", "snapshot-access", "ssh",
	"throttle", "vdi", "vhdx", "vmdk", "vpc", "vvfat",
};

enum { PREFIX_MAX = 512 };

/* One image of the description, whose options begin with @prefix. */
struct describing {
	struct option_list *list;
	char prefix[PREFIX_MAX];
	unsigned depth;
	struct image_name *name;
	struct err *err;
};

static int describe(struct describing *d);

void image_name_fini(struct image_name *n)
{
	if (n->backing)
		image_name_fini(n->backing);
	if (n->data_file)
		image_name_fini(n->data_file);
	if (n->nbd)
		nbdc_server_fini(n->nbd);
	free(n->backing);
	free(n->data_file);
	free(n->nbd);
	free(n->path);
	free(n->format);
	free(n->shown);
	free(n->unknown_to_raw);
	free(n->unknown_to_qcow2);
	*n = (struct image_name) { 0 };
}

/* What stands before a colon with no slash before it. */
size_t image_name_protocol_len(const char *name)
{
	size_t n = strcspn(name, ":/");

	return name[n] == ':' ? n : 0;
}

bool image_name_is_vhost_user(const char *name)
{
	return !strncmp(name, "vhost-user:", strlen("vhost-user:"));
}

static bool is_foreign(const char *name, size_t n)
{
	for (unsigned i = 0; i < ARRAY_SIZE(foreign_drivers); i++)
		if (!strncmp(name, foreign_drivers[i], n) && !foreign_drivers[i][n])
			return true;
	return false;
}

bool image_name_is_format(const char *format)
{
	return !strcmp(format, "qcow2") || !strcmp(format, "raw");
}

bool image_name_is_bare(const char *format)
{
	return !strcmp(format, "file") || !strcmp(format, "host_device") || !strcmp(format, "nbd");
}

static bool is_known_format(const char *name)
{
	return image_name_is_format(name) || image_name_is_bare(name);
}

int image_name_check_format(const char *name, struct err *err)
{
	if (is_known_format(name))
		return 0;
	if (is_foreign(name, strlen(name)))
		return err_set(err, ENOTSUP, "Driver '%s' is not supported", name);
	return err_set(err, EINVAL, "Unknown driver '%s'", name);
}

/* ---- options ---- */

static const struct option_item *take(struct describing *d, const char *key)
{
	return option_list_take(d->list, d->prefix, key);
}

/* As in QEMU, what is no text is as good as not said. */
static const struct option_item *take_text(struct describing *d, const char *key)
{
	const struct option_item *o = take(d, key);

	return o && o->kind == OPTION_TEXT ? o : NULL;
}

static int take_bool(struct describing *d, const char *key, bool *ret)
{
	return option_bool(take(d, key), d->prefix, ret, d->err);
}

/* The value of @key where it is none of @words, else NULL. */
static const char *take_wrong_word(struct describing *d, const char *key, const char *const *words,
				   unsigned n)
{
	const struct option_item *o = take(d, key);

	for (unsigned i = 0; o && i < n; i++)
		if (!strcmp(o->value, words[i]))
			return NULL;
	return o ? o->value : NULL;
}

static int take_word(struct describing *d, const char *key, const char *const *words, unsigned n)
{
	const char *wrong = take_wrong_word(d, key, words, n);

	return wrong ? err_set(d->err, EINVAL, "invalid parameter value: %s", wrong) : 0;
}

static int check_node_name(const struct option_item *o, struct err *err)
{
	enum { NODE_NAME_MAX = 31 };

	if (!o)
		return 0;
	if (!option_is_identifier(o->value))
		return err_set(err, EINVAL, "Invalid node-name: '%s'", o->value);
	if (strlen(o->value) > NODE_NAME_MAX)
		return err_set(err, EINVAL, "Node name too long");
	return 0;
}

/* What every node has. */
static int take_common(struct describing *d)
{
	static const char *const discards[] = { "off", "ignore", "on", "unmap" };
	static const char *const zeroes[] = { "off", "on", "unmap" };
	struct image_name *n = d->name;
	const struct option_item *direct = take(d, "cache.direct"), *flush;
	bool is_direct = false, no_flush = false, ignored;
	int rc;

	flush = take(d, "cache.no-flush");
	rc = check_node_name(take(d, "node-name"), d->err);
	if (!rc)
		rc = option_bool(direct, d->prefix, &is_direct, d->err);
	if (!rc)
		rc = option_bool(flush, d->prefix, &no_flush, d->err);
	if (!rc)
		rc = take_bool(d, "read-only", &n->is_read_only);
	if (!rc)
		rc = take_bool(d, "auto-read-only", &ignored);
	if (!rc)
		rc = take_bool(d, "force-share", &n->is_share_forced);
	if (!rc && take_wrong_word(d, "discard", discards, ARRAY_SIZE(discards)))
		rc = err_set(d->err, EINVAL, "Invalid discard option");
	if (!rc)
		rc = take_word(d, "detect-zeroes", zeroes, ARRAY_SIZE(zeroes));
	if (rc)
		return rc;
	if (direct || flush) {
		n->has_cache = true;
		n->cache = is_direct ? FILE_CACHE_NONE :
			   no_flush ? FILE_CACHE_UNSAFE : FILE_CACHE_WRITEBACK;
	}
	return 0;
}

/* What @n calls its server from now on. */
static int set_nbd(struct image_name *n, const struct nbdc_server *server, struct err *err)
{
	n->nbd = malloc(sizeof(*n->nbd));
	n->path = nbd_name_show(server);
	if (!n->nbd || !n->path) {
		free(n->nbd);
		n->nbd = NULL;
		return err_set_errno(err, ENOMEM, "NBD");
	}
	*n->nbd = *server;
	return 0;
}

static int refuse_unused(struct describing *d, const char *driver)
{
	const struct option_item *unused = option_list_unused(d->list, d->prefix);

	if (!unused)
		return 0;
	return err_set(d->err, EINVAL, "Block protocol '%s' doesn't support the option '%s'",
		       driver, unused->key + strlen(d->prefix));
}

/* The options of an NBD export; d->prefix leads to them. */
static int take_nbd(struct describing *d)
{
	struct nbdc_server server;
	int rc = nbd_name_take(d->list, d->prefix, &server, d->err);

	if (rc)
		return rc;
	rc = set_nbd(d->name, &server, d->err);
	if (rc) {
		nbdc_server_fini(&server);
		return rc;
	}
	rc = take_common(d);
	return rc ? rc : refuse_unused(d, "nbd");
}

/* The options of a file; d->prefix leads to them. */
static int take_file(struct describing *d)
{
	static const char *const lockings[] = { "auto", "on", "off" };
	static const char *const aios[] = { "threads", "native", "io_uring" };
	const struct option_item *filename = take(d, "filename"), *locking, *aio;
	uint64_t ignored_number;
	bool ignored;
	int rc;

	if (!filename || filename->kind != OPTION_TEXT || !filename->value[0])
		return err_set(d->err, EINVAL, "The 'file' block driver requires a file name");
	d->name->path = strdup(filename->value);
	if (!d->name->path)
		return err_set_errno(d->err, ENOMEM, "'%s'", filename->value);
	locking = take(d, "locking");
	rc = take_word(d, "locking", lockings, ARRAY_SIZE(lockings));
	if (!rc)
		rc = take_word(d, "aio", aios, ARRAY_SIZE(aios));
	aio = take(d, "aio");
	if (!rc)
		rc = take_bool(d, "drop-cache", &ignored);
	if (!rc)
		rc = take_bool(d, "x-check-cache-dropped", &ignored);
	if (!rc)
		rc = option_number(take(d, "aio-max-batch"), d->prefix, &ignored_number, d->err);
	if (!rc)
		rc = take_common(d);
	if (rc)
		return rc;
	if (aio && !strcmp(aio->value, "native"))
		d->name->wants_direct = true;
	d->name->no_lock = locking && !strcmp(locking->value, "off");
	return refuse_unused(d, "file");
}

/* Appends @key and a dot to the prefix. *@ret_len is the length to go back to. */
static int go_into(struct describing *d, const char *key, size_t *ret_len)
{
	size_t len = strlen(d->prefix);

	if (len + strlen(key) + 1 >= PREFIX_MAX)
		return err_set(d->err, EINVAL, "The description of an image is too deep");
	snprintf(d->prefix + len, PREFIX_MAX - len, "%s.", key);
	*ret_len = len;
	return 0;
}

/* The file below a format. */
static int take_child_file(struct describing *d)
{
	const struct option_item *node = take(d, "file"), *driver;
	size_t len = 0;
	int rc;

	if (node && node->kind == OPTION_TEXT)
		return err_set(d->err, EINVAL, "Cannot find device='%s' nor node-name='%s'",
			       node->value, node->value);
	if (!option_list_has_below(d->list, d->prefix, "file"))
		return err_set(d->err, EINVAL, "A block device must be specified for \"file\"");
	rc = go_into(d, "file", &len);
	if (rc)
		return rc;
	driver = take_text(d, "driver");
	if (!driver && !take_text(d, "filename")) {
		rc = err_set(d->err, EINVAL, "Must specify either driver or file");
	} else if (driver && !strcmp(driver->value, "nbd")) {
		rc = take_nbd(d);
	} else if (driver && strcmp(driver->value, "file") &&
		   strcmp(driver->value, "host_device")) {
		rc = is_known_format(driver->value) ?
			err_set(d->err, ENOTSUP, "A format below a format ('%s') is not supported",
				driver->value) :
			image_name_check_format(driver->value, d->err);
	} else {
		rc = take_file(d);
	}
	d->prefix[len] = '\0';
	return rc;
}

static void print_json_member(FILE *f, const char *key, const struct option_item *o)
{
	if (!o)
		return;
	fprintf(f, "\"%s\": ", key);
	if (o->kind == OPTION_NUMBER)
		fputs(o->value, f);
	else
		json_text_print(f, o->value);
	fputs(", ", f);
}

static void print_text_member(FILE *f, const char *key, const char *value)
{
	if (!value)
		return;
	fprintf(f, "\"%s\": ", key);
	json_text_print(f, value);
	fputs(", ", f);
}

static void print_file(FILE *f, const struct image_name *n)
{
	const struct nbdc_server *s = n->nbd;

	fputc('{', f);
	if (s) {
		print_text_member(f, "server.path", s->path);
		print_text_member(f, "server.host", s->host);
		print_text_member(f, "driver", "nbd");
		print_text_member(f, "export", s->export);
		print_text_member(f, "server.port", s->port);
		fprintf(f, "\"server.type\": \"%s\"}", s->path ? "unix" : "inet");
	} else {
		fputs("\"driver\": \"file\", \"filename\": ", f);
		json_text_print(f, n->path);
		fputc('}', f);
	}
}

/* A part of a file has no file name, so QEMU shows it by a description. */
static int describe_range(struct describing *d, const struct option_item *offset,
			  const struct option_item *size)
{
	size_t n;
	FILE *f = open_memstream(&d->name->shown, &n);

	if (!f)
		return err_set_errno(d->err, ENOMEM, "'%s'", d->name->path);
	fputs("json:{", f);
	print_json_member(f, "offset", offset);
	fputs("\"driver\": \"raw\", ", f);
	print_json_member(f, "size", size);
	fputs("\"file\": ", f);
	print_file(f, d->name);
	fputs("}", f);
	return fclose(f) ? err_set_errno(d->err, ENOMEM, "'%s'", d->name->path) : 0;
}

static int take_raw(struct describing *d)
{
	const struct option_item *offset = take(d, "offset"), *size = take(d, "size");
	int rc = option_size(offset, d->prefix, &d->name->raw_offset, d->err);

	if (!rc)
		rc = option_size(size, d->prefix, &d->name->raw_size, d->err);
	if (rc || (!offset && !size))
		return rc;
	d->name->has_raw_size = size;
	return describe_range(d, offset, size);
}

/* An image of its own below @key, or NULL where there is none. */
static int take_image(struct describing *d, const char *key, const char *format,
		      struct image_name **ret)
{
	struct image_name *outer = d->name, *inner;
	size_t len = 0;
	int rc;

	if (!option_list_has_below(d->list, d->prefix, key))
		return 0;
	inner = calloc(1, sizeof(*inner));
	if (!inner)
		return err_set_errno(d->err, ENOMEM, "'%s'", key);
	rc = go_into(d, key, &len);
	if (!rc) {
		d->name = inner;
		if (format && !take(d, "driver"))
			rc = take_file(d);
		else
			rc = describe(d);
		d->name = outer;
		d->prefix[len] = '\0';
	}
	if (rc) {
		image_name_fini(inner);
		free(inner);
		return rc;
	}
	*ret = inner;
	return 0;
}

static int take_backing(struct describing *d)
{
	const struct option_item *o = take(d, "backing");

	if (o && (o->kind == OPTION_NULL || (o->kind == OPTION_TEXT && !o->value[0]))) {
		d->name->no_backing = true;
		if (o->kind == OPTION_TEXT && !d->list->warning)
			d->list->warning = strdup("Use of \"backing\": \"\" is deprecated; "
						  "use \"backing\": null instead");
		return 0;
	}
	if (o && o->kind == OPTION_TEXT)
		return err_set(d->err, EINVAL, "Cannot find device='%s' nor node-name='%s'",
			       o->value, o->value);
	return take_image(d, "backing", NULL, &d->name->backing);
}

static int take_overlap_check(struct describing *d)
{
	static const char *const levels[] = { "none", "constant", "cached", "all" };
	static const char *const parts[] = {
		"main-header", "active-l1", "active-l2", "refcount-table", "refcount-block",
		"snapshot-table", "inactive-l1", "inactive-l2", "bitmap-directory",
	};
	const char *wrong = take_wrong_word(d, "overlap-check", levels, ARRAY_SIZE(levels));
	bool ignored;
	int rc = 0;

	if (!wrong)
		wrong = take_wrong_word(d, "overlap-check.template", levels, ARRAY_SIZE(levels));
	if (wrong)
		return err_set(d->err, EINVAL, "Unsupported value '%s' for qcow2 option "
			       "'overlap-check'. Allowed are any of the following: none, "
			       "constant, cached, all", wrong);
	for (unsigned i = 0; i < ARRAY_SIZE(parts) && !rc; i++) {
		char key[64];

		snprintf(key, sizeof(key), "overlap-check.%s", parts[i]);
		rc = take_bool(d, key, &ignored);
	}
	return rc;
}

static int take_qcow2(struct describing *d)
{
	static const char *const switches[] = {
		"lazy-refcounts", "pass-discard-request", "pass-discard-snapshot",
		"pass-discard-other", "discard-no-unref",
	};
	static const char *const sizes[] = {
		"cache-size", "l2-cache-size", "l2-cache-entry-size", "refcount-cache-size",
	};
	uint64_t ignored_size, interval = 0;
	bool ignored;
	int rc = 0;

	for (unsigned i = 0; i < ARRAY_SIZE(switches) && !rc; i++)
		rc = take_bool(d, switches[i], &ignored);
	for (unsigned i = 0; i < ARRAY_SIZE(sizes) && !rc; i++)
		rc = option_size(take(d, sizes[i]), d->prefix, &ignored_size, d->err);
	if (!rc)
		rc = option_number(take(d, "cache-clean-interval"), d->prefix, &interval, d->err);
	if (!rc && interval > UINT32_MAX)
		rc = err_set(d->err, EINVAL, "Cache clean interval too big");
	take(d, "encrypt.format");
	take(d, "encrypt.key-secret");
	if (!rc)
		rc = take_overlap_check(d);
	if (!rc)
		rc = take_backing(d);
	if (!rc)
		rc = take_image(d, "data-file", "file", &d->name->data_file);
	return rc;
}

static int note_key(const struct describing *d, const struct option_item *o, char **ret)
{
	if (o)
		*ret = strdup(o->key + strlen(d->prefix));
	return o && !*ret ? err_set_errno(d->err, ENOMEM, "'%s'", o->key) : 0;
}

/* The options of a format that is found out only later: those of all, and which of them do not
 * fit which. */
static int take_any_format(struct describing *d)
{
	const struct option_item *raw_only = take(d, "offset"), *unused;
	int rc = take_raw(d);

	if (!raw_only)
		raw_only = take(d, "size");
	if (!rc)
		rc = note_key(d, option_list_unused(d->list, d->prefix), &d->name->unknown_to_raw);
	if (!rc)
		rc = take_qcow2(d);
	unused = option_list_unused(d->list, d->prefix);
	return rc ? rc : note_key(d, raw_only ? raw_only : unused, &d->name->unknown_to_qcow2);
}

/* The options that a description with a format understands. */
static int take_format(struct describing *d, const char *format)
{
	const struct option_item *unused;
	int rc = take_common(d);

	if (!rc)
		rc = take_child_file(d);
	if (!rc && !format)
		return take_any_format(d);
	if (!rc)
		rc = strcmp(format, "raw") ? take_qcow2(d) : take_raw(d);
	unused = option_list_unused(d->list, d->prefix);
	if (rc || !unused)
		return rc;
	return err_set(d->err, EINVAL, "Block format '%s' does not support the option '%s'", format,
		       unused->key + strlen(d->prefix));
}

/* Fills d->name with what the options below d->prefix say. */
static int describe(struct describing *d)
{
	const struct option_item *driver = take_text(d, "driver");
	int rc;

	if (++d->depth > IMAGE_NAME_DEPTH_MAX)
		return err_set(d->err, EINVAL, "The description of an image is too deep");
	if (!driver && !take(d, "file") && !option_list_has_below(d->list, d->prefix, "file"))
		return err_set(d->err, EINVAL, "Must specify either driver or file");
	rc = driver ? image_name_check_format(driver->value, d->err) : 0;
	if (rc)
		return rc;
	if (driver) {
		d->name->format = strdup(driver->value);
		if (!d->name->format)
			return err_set_errno(d->err, ENOMEM, "'%s'", driver->value);
	}
	if (driver && !strcmp(driver->value, "nbd"))
		rc = take_nbd(d);
	else if (driver && strcmp(driver->value, "qcow2") && strcmp(driver->value, "raw"))
		rc = take_file(d);
	else
		rc = take_format(d, driver ? driver->value : NULL);
	d->depth--;
	return rc;
}

/* Takes @list, but leaves its warning. */
static int describe_list(struct option_list *list, struct image_name *ret, struct err *err)
{
	struct image_name name = { 0 };
	struct describing d = { .list = list, .name = &name, .err = err };
	int rc = describe(&d);

	if (rc)
		image_name_fini(&name);
	else
		*ret = name;
	return rc;
}

int image_name_parse_options(const char *text, struct image_name *ret, char **ret_warning,
			     struct err *err)
{
	struct option_list list = { 0 };
	int rc = option_list_parse(text, "file", &list, err);

	if (rc)
		return rc;
	rc = describe_list(&list, ret, err);
	*ret_warning = list.warning;
	list.warning = NULL;
	option_list_fini(&list);
	return rc;
}

static int parse_nbd(const char *text, struct image_name *ret, struct err *err)
{
	struct image_name name = { 0 };
	struct nbdc_server server;
	int rc = nbd_name_parse(text, &server, err);

	if (rc)
		return rc;
	rc = set_nbd(&name, &server, err);
	if (rc) {
		nbdc_server_fini(&server);
		image_name_fini(&name);
	} else {
		*ret = name;
	}
	return rc;
}

int image_name_parse(const char *text, struct image_name *ret, struct err *err)
{
	struct option_list list = { 0 };
	struct image_name name = { 0 };
	size_t n = image_name_protocol_len(text);
	int rc;

	if (n == 4 && !strncmp(text, "json", n)) {
		rc = option_list_parse_json(text + 5, &list, err);
		if (rc && rc != -EPROTO)
			err_wrap(err, rc, "Could not parse the JSON options");
		if (!rc)
			rc = describe_list(&list, ret, err);
		option_list_fini(&list);
		return rc;
	}
	if (nbd_name_is(text))
		return parse_nbd(text, ret, err);
	if (image_name_is_vhost_user(text)) {
		name.path = strdup(text);
		if (!name.path)
			return err_set_errno(err, ENOMEM, "'%s'", text);
		*ret = name;
		return 0;
	}
	if (n == 4 && !strncmp(text, "file", n))
		text += 5;
	else if (n && is_foreign(text, n))
		return err_set(err, ENOTSUP, "Protocol '%.*s' is not supported", (int)n, text);
	else if (n || text[0] == ':')
		return err_set(err, EINVAL, "Unknown protocol '%.*s'", (int)n, text);
	if (!text[0])
		return err_set(err, EINVAL, "The 'file' block driver requires a file name");
	/* What is shown is a name that means the same again. */
	if (asprintf(&name.path, "%s%s", image_name_protocol_len(text) ? "./" : "", text) < 0)
		return err_set_errno(err, ENOMEM, "'%s'", text);
	*ret = name;
	return 0;
}
