/* SPDX-License-Identifier: MIT */
#include "ctl/option_list.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"
#include "base/size.h"

/* ---- the list ---- */

static struct option_item *find(const struct option_list *l, const char *prefix, const char *key)
{
	size_t n = strlen(prefix);

	for (unsigned i = 0; i < l->n; i++)
		if (!strncmp(l->items[i].key, prefix, n) && !strcmp(l->items[i].key + n, key))
			return &l->items[i];
	return NULL;
}

static struct option_item *add(struct option_list *l)
{
	struct option_item *items;

	if (!is_pow2(l->n) && l->n)
		return &l->items[l->n++];
	items = realloc(l->items, 2 * MAX(l->n, 1u) * sizeof(*items));
	if (!items)
		return NULL;
	l->items = items;
	return &l->items[l->n++];
}

int option_list_set(struct option_list *l, const char *key, const char *value,
		    enum option_kind kind)
{
	struct option_item *o = find(l, "", key);
	char *copy;

	if (!o && l->n == OPTIONS_MAX)
		return -E2BIG;
	copy = strdup(value);
	if (!copy)
		return -ENOMEM;
	if (o) {
		free(o->value);
		o->value = copy;
		o->kind = kind;
		return 0;
	}
	o = add(l);
	if (!o) {
		free(copy);
		return -ENOMEM;
	}
	*o = (struct option_item) { .key = strdup(key), .value = copy, .kind = kind };
	if (o->key)
		return 0;
	l->n--;
	free(copy);
	return -ENOMEM;
}

void option_list_fini(struct option_list *l)
{
	for (unsigned i = 0; i < l->n; i++) {
		free(l->items[i].key);
		free(l->items[i].value);
	}
	free(l->items);
	free(l->warning);
	*l = (struct option_list) { 0 };
}

const struct option_item *option_list_take(struct option_list *l, const char *prefix,
					   const char *key)
{
	struct option_item *o = find(l, prefix, key);

	if (o)
		o->is_used = true;
	return o;
}

void option_list_remove(struct option_list *l, const char *key)
{
	struct option_item *o = find(l, "", key);

	if (!o)
		return;
	free(o->key);
	free(o->value);
	l->n--;
	memmove(o, o + 1, (size_t)(l->items + l->n - o) * sizeof(*o));
}

bool option_list_has_below(const struct option_list *l, const char *prefix, const char *key)
{
	size_t n = strlen(prefix), k = strlen(key);

	for (unsigned i = 0; i < l->n; i++) {
		const char *name = l->items[i].key;

		if (!strncmp(name, prefix, n) && !strncmp(name + n, key, k) && name[n + k] == '.')
			return true;
	}
	return false;
}

const struct option_item *option_list_unused(const struct option_list *l, const char *prefix)
{
	for (unsigned i = 0; i < l->n; i++)
		if (!l->items[i].is_used && !strncmp(l->items[i].key, prefix, strlen(prefix)))
			return &l->items[i];
	return NULL;
}

/* ---- values ---- */

bool option_is_identifier(const char *text)
{
	if (!isalpha((unsigned char)*text))
		return false;
	while (isalnum((unsigned char)*text) || (*text && strchr("-._", *text)))
		text++;
	return !*text;
}

int option_bool(const struct option_item *o, const char *prefix, bool *ret, struct err *err)
{
	static const char *const words[] = { "on", "off", "yes", "no", "true", "false", "y", "n" };
	unsigned i = 0;

	if (!o)
		return 0;
	while (i < ARRAY_SIZE(words) && strcmp(o->value, words[i]))
		i++;
	if (i == ARRAY_SIZE(words))
		return err_set(err, EINVAL, "Parameter '%s' expects 'on' or 'off'",
			       o->key + strlen(prefix));
	*ret = i % 2 == 0;
	return 0;
}

int option_size(const struct option_item *o, const char *prefix, uint64_t *ret, struct err *err)
{
	int rc = -EINVAL;

	if (!o)
		return 0;
	if (o->kind == OPTION_TEXT || o->kind == OPTION_NUMBER)
		rc = size_read(o->value, ret);
	if (rc == -ERANGE)
		return err_set(err, ERANGE, "Value '%s' is out of range for parameter '%s'",
			       o->value, o->key + strlen(prefix));
	if (rc)
		err_set(err, EINVAL, "Parameter '%s' expects a non-negative number below 2^64\n"
			"Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, "
			"peta-\nand exabytes, respectively.", o->key + strlen(prefix));
	return rc;
}

int option_number(const struct option_item *o, const char *prefix, uint64_t *ret, struct err *err)
{
	uint64_t number;
	char *end;

	if (!o)
		return 0;
	errno = 0;
	number = strtoull(o->value, &end, 0);
	if (end == o->value || *end || errno)
		return err_set(err, EINVAL, "Parameter '%s' expects a number",
			       o->key + strlen(prefix));
	*ret = number;
	return 0;
}

/* ---- key=value,... ---- */

/* Copies the word at *@at up to a comma that is not doubled, undoubled, and goes behind it. */
static char *cut_value(const char **at)
{
	const char *s = *at;
	char *word = malloc(strlen(s) + 1), *to = word;

	if (!word)
		return NULL;
	for (; *s; s++) {
		if (*s == ',' && *++s != ',')
			break;
		*to++ = *s;
	}
	*to = '\0';
	*at = s;
	return word;
}

static int add_switch(struct option_list *l, const char *word, struct err *err)
{
	bool is_off = !strncmp(word, "no", 2);
	const char *key = word + (is_off ? 2 : 0), *value = is_off ? "off" : "on";
	char *text;

	/* What asks for help has no value to be short of. */
	if (!strcmp(word, "help") || !strcmp(word, "?"))
		return option_list_set(l, word, "on", OPTION_TEXT);
	if (asprintf(&text, "%s%sshort-form boolean option '%s%s' deprecated\nPlease use %s=%s "
		     "instead", l->warning ? l->warning : "", l->warning ? "\n" : "",
		     is_off ? "no" : "", key, key, value) < 0)
		return -ENOMEM;
	free(l->warning);
	l->warning = text;
	return option_list_set(l, key, value, OPTION_TEXT);
}

/* One option of the text; *@at goes behind it. */
static int parse_one(struct option_list *l, const char **at, const char *implied, struct err *err)
{
	const char *s = *at;
	size_t n = strcspn(s, "=,");
	char *word, *key;
	int rc;

	if (s[n] != '=') {
		word = cut_value(at);
		rc = !word ? -ENOMEM :
		     implied ? option_list_set(l, implied, word, OPTION_TEXT) :
		     word[0] ? add_switch(l, word, err) : 0;
		free(word);
		return rc;
	}
	key = strndup(s, n);
	*at = s + n + 1;
	word = cut_value(at);
	rc = key && word ? option_list_set(l, key, word, OPTION_TEXT) : -ENOMEM;
	free(key);
	free(word);
	return rc;
}

int option_list_parse(const char *text, const char *implied, struct option_list *ret,
		      struct err *err)
{
	struct option_list l = { 0 };
	int rc = 0;

	while (*text && !rc) {
		rc = parse_one(&l, &text, implied, err);
		implied = NULL;
	}
	if (rc) {
		option_list_fini(&l);
		return err_set_errno(err, -rc, "options");
	}
	*ret = l;
	return 0;
}
