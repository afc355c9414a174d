/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"
#include "drv/vub/vfe.h"

enum { RECONNECT_SECONDS_MAX = 86400 };

static int bad_option(const char *option, struct err *err)
{
	return err_set(err, EINVAL, "vhost-user: '%s' is no option or has no such value", option);
}

static int take_switch(const char *value, bool *ret)
{
	if (strcmp(value, "on") && strcmp(value, "off"))
		return -EINVAL;
	*ret = !strcmp(value, "on");
	return 0;
}

static int take_off_switch(const char *value, bool *ret_is_off)
{
	bool on;
	int rc = take_switch(value, &on);

	if (!rc)
		*ret_is_off = !on;
	return rc;
}

static int take_number(const char *value, unsigned min, unsigned max, unsigned *ret)
{
	char *end;
	unsigned long n = strtoul(value, &end, 10);

	if (value[0] < '0' || value[0] > '9' || *end || n < min || n > max)
		return -EINVAL;
	*ret = (unsigned)n;
	return 0;
}

static int take_option(struct vfe_opts *o, const char *key, const char *value)
{
	unsigned n = 0;
	int rc = 0;

	if (!strcmp(key, "packed"))
		return take_switch(value, &o->want.packed);
	if (!strcmp(key, "event-idx"))
		return take_off_switch(value, &o->want.no_event_idx);
	if (!strcmp(key, "indirect"))
		return take_off_switch(value, &o->want.no_indirect);
	if (!strcmp(key, "inflight"))
		return take_off_switch(value, &o->want.no_inflight);
	if (!strcmp(key, "poll"))
		return take_switch(value, &o->poll);
	if (!strcmp(key, "queues"))
		return take_number(value, 1, VFE_QUEUES_MAX, &o->want.queues);
	if (!strcmp(key, "queue-size")) {
		rc = take_number(value, 4, VFE_RING_MAX, &n);
		if (rc || !is_pow2(n))
			return -EINVAL;
		o->want.queue_size = n;
		return 0;
	}
	if (strcmp(key, "reconnect"))
		return -EINVAL;
	rc = take_number(value, 0, RECONNECT_SECONDS_MAX, &n);
	if (!rc)
		o->reconnect_ms = n * 1000;
	return rc;
}

/* Copies up to the next single comma, with double ones made single; returns what is behind it, or
 * NULL at the end. */
static const char *take_word(const char *text, char *out)
{
	for (; *text; text++) {
		if (*text == ',' && *++text != ',') {
			*out = '\0';
			return text;
		}
		*out++ = *text;
	}
	*out = '\0';
	return NULL;
}

int vfe_opts_parse(const char *text, struct vfe_opts *ret, struct err *err)
{
	struct vfe_opts o = { .path = strdup(text) };
	char *word = strdup(text);
	int rc = 0;

	if (!o.path || !word)
		rc = err_set_errno(err, ENOMEM, "'%s'", text);
	else
		text = take_word(text, o.path);
	if (!rc && !o.path[0])
		rc = err_set(err, EINVAL, "vhost-user: the name of a socket is missing");
	while (!rc && text) {
		char *value;

		text = take_word(text, word);
		value = strchr(word, '=');
		if (value)
			*value++ = '\0';
		if (!value || take_option(&o, word, value))
			rc = bad_option(word, err);
	}
	free(word);
	if (rc)
		vfe_opts_fini(&o);
	else
		*ret = o;
	return rc;
}

void vfe_opts_fini(struct vfe_opts *o)
{
	free(o->path);
	*o = (struct vfe_opts){ 0 };
}
