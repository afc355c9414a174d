/* SPDX-License-Identifier: MIT */
/* ctl/option_json.c - JSON to a flat list of options (option_list.h). As QEMU's reader, it takes
 * strings in single quotes too. */
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"
#include "ctl/option_list.h"

enum { KEY_MAX = 1023 };

struct json {
	const char *at;
	struct option_list list;
	char key[KEY_MAX + 1];          /* of the value that is being read, dotted */
	unsigned depth;
	struct err *err;
};

static int parse_value(struct json *j);

static int fail(struct json *j, const char *what)
{
	return err_set(j->err, EINVAL, "%s", what);
}

static int fail_parse(struct json *j, const char *what)
{
	return err_set(j->err, EINVAL, "JSON parse error, %s", what);
}

static char peek(struct json *j)
{
	while (*j->at == ' ' || *j->at == '\t' || *j->at == '\n' || *j->at == '\r')
		j->at++;
	return *j->at;
}

static int set(struct json *j, const char *value, enum option_kind kind)
{
	int rc = option_list_set(&j->list, j->key, value, kind);

	return rc ? err_set_errno(j->err, -rc, "JSON options") : 0;
}

/* ---- tokens ---- */

/* Is there a number at @s? *@ret_len is its length, else that of what could have become one. */
static bool find_number(const char *s, size_t *ret_len)
{
	static const char digits[] = "0123456789";
	size_t n = s[0] == '-', more = strspn(s + n, digits);

	*ret_len = n + (s[n] == '0');
	if (!more || (s[n] == '0' && more > 1))
		return false;
	n += more;
	if (s[n] == '.') {
		more = strspn(s + n + 1, digits);
		n += 1 + more;
		*ret_len = n;
		if (!more)
			return false;
	}
	if (s[n] == 'e' || s[n] == 'E') {
		n += s[n + 1] == '+' || s[n + 1] == '-' ? 2 : 1;
		more = strspn(s + n, digits);
		*ret_len = n;
		if (!more)
			return false;
		n += more;
	}
	*ret_len = n;
	return true;
}

/* Bytes of the string at @s with its quotes; where it is none, of what could have become one. */
static size_t find_string(const char *s, bool *ret_found)
{
	size_t n = 1;

	while (s[n] != *s) {
		n += s[n] == '\\';
		*ret_found = (unsigned char)s[n] >= ' ' && (unsigned char)s[n] < 0xfe;
		if (!*ret_found)
			return n;
		n++;
	}
	*ret_found = true;
	return n + 1;
}

/* Bytes of the token at @s; where there is none, of what could have become one. */
static size_t find_token(const char *s, bool *ret_found)
{
	size_t n = 0;

	if (*s == '"' || *s == '\'')
		return find_string(s, ret_found);
	if (*s == '-' || isdigit((unsigned char)*s)) {
		*ret_found = find_number(s, &n);
		return n;
	}
	*ret_found = strchr(" \t\r\n{}[]:,", *s) || islower((unsigned char)*s);
	return *ret_found;
}

/* What is no token is an error before all others, up to where the first value ends. */
static int check_tokens(struct json *j)
{
	unsigned depth = 0;

	for (const char *s = j->at; *s;) {
		bool is_found = false;
		size_t n = find_token(s, &is_found);

		if (!is_found)
			return err_set(j->err, EINVAL, "JSON parse error, stray '%.*s'",
				       (int)MIN(n + 1, (size_t)INT_MAX), s);
		depth += *s == '{' || *s == '[';
		if (*s == '}' || *s == ']')
			depth -= depth > 0;
		if (!depth && !strchr(" \t\r\n", *s))
			break;
		s += n;
	}
	return 0;
}

/* ---- strings ---- */

static int hex4(const char *s, unsigned *ret)
{
	unsigned v = 0;

	for (int i = 0; i < 4; i++) {
		if (!isxdigit((unsigned char)s[i]))
			return -EINVAL;
		v = v << 4 | (unsigned)(isdigit((unsigned char)s[i]) ? s[i] - '0' :
								       (s[i] | 32) - 'a' + 10);
	}
	*ret = v;
	return 0;
}

static char *put_point(char *to, unsigned c)
{
	if (c && c < 0x80) {            /* NUL in two bytes: ours end texts */
		*to++ = (char)c;
	} else if (c < 0x800) {
		*to++ = (char)(0xc0 | c >> 6);
		*to++ = (char)(0x80 | (c & 0x3f));
	} else if (c < 0x10000) {
		*to++ = (char)(0xe0 | c >> 12);
		*to++ = (char)(0x80 | (c >> 6 & 0x3f));
		*to++ = (char)(0x80 | (c & 0x3f));
	} else {
		*to++ = (char)(0xf0 | c >> 18);
		*to++ = (char)(0x80 | (c >> 12 & 0x3f));
		*to++ = (char)(0x80 | (c >> 6 & 0x3f));
		*to++ = (char)(0x80 | (c & 0x3f));
	}
	return to;
}

/* Reads the code point behind "u"; a pair of surrogates is one. On failure *@at stays. */
static int unescape_point(const char **at, char **to)
{
	const char *s = *at + 1;
	unsigned c, low;

	if (hex4(s, &c) || (c >= 0xdc00 && c < 0xe000))
		return -EINVAL;
	s += 4;
	if (c >= 0xd800 && c < 0xdc00) {
		if (s[0] != '\\' || s[1] != 'u' || hex4(s + 2, &low) || low < 0xdc00 ||
		    low >= 0xe000)
			return -EINVAL;
		s += 6;
		c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
	}
	*to = put_point(*to, c);
	*at = s;
	return 0;
}

/* *@at is behind the backslash. */
static int unescape(const char **at, char **to)
{
	static const char letters[] = "\"'\\/bfnrt", plain[] = "\"'\\/\b\f\n\r\t";
	const char *p = **at ? strchr(letters, **at) : NULL;

	if (**at == 'u')
		return unescape_point(at, to);
	if (!p)
		return -EINVAL;
	*(*to)++ = plain[p - letters];
	(*at)++;
	return 0;
}

/* The string at j->at, returned owned. */
static int parse_string(struct json *j, char **ret)
{
	char quote = *j->at, *text, *to;
	const char *s = j->at + 1, *end;
	int rc;

	for (end = s; *end != quote; end++)
		end += *end == '\\';
	text = malloc((size_t)(end - s) + 1);
	if (!text)
		return err_set_errno(j->err, ENOMEM, "JSON options");
	for (to = text; s < end;) {
		if (*s != '\\') {
			*to++ = *s++;
			continue;
		}
		s++;
		if (unescape(&s, &to)) {
			rc = *s == 'u' ? err_set(j->err, EINVAL, "JSON parse error, \\%.5s is "
						 "not a valid Unicode character", s) :
					 fail_parse(j, "invalid escape sequence in string");
			free(text);
			return rc;
		}
	}
	*to = '\0';
	j->at = end + 1;
	*ret = text;
	return 0;
}

/* ---- other values ---- */

/* Numbers are kept as they are shown: whole ones of 64 bits exactly, all others as doubles. */
static int parse_number(struct json *j)
{
	char number[32], *end;
	long long whole;

	errno = 0;
	whole = strtoll(j->at, &end, 10);
	if (strchr(".eE", *end) && *end)
		errno = ERANGE;
	snprintf(number, sizeof(number), "%lld", whole);
	if (errno && *j->at != '-' && !strchr(".eE", *end)) {
		errno = 0;
		snprintf(number, sizeof(number), "%llu", strtoull(j->at, &end, 10));
	}
	if (errno)
		snprintf(number, sizeof(number), "%.17g", strtod(j->at, &end));
	j->at = end;
	return set(j, number, OPTION_NUMBER);
}

static int parse_word(struct json *j)
{
	char word[32];
	size_t n = strspn(j->at, "abcdefghijklmnopqrstuvwxyz");

	snprintf(word, sizeof(word), "%.*s", (int)n, j->at);
	j->at += n;
	if (!strcmp(word, "true") || !strcmp(word, "false"))
		return set(j, word, OPTION_BOOL);
	if (!strcmp(word, "null"))
		return set(j, "", OPTION_NULL);
	return err_set(j->err, EINVAL, "JSON parse error, invalid keyword '%s'", word);
}

/* Adds @name to the key. *@ret_len is the length to go back to. */
static int go_into(struct json *j, const char *name, size_t *ret_len)
{
	size_t len = strlen(j->key);

	if (len + strlen(name) + 1 >= sizeof(j->key))
		return fail(j, "a key is too long");
	snprintf(j->key + len, sizeof(j->key) - len, "%s%s", len ? "." : "", name);
	*ret_len = len;
	return 0;
}

static bool has_key(const struct json *j)
{
	for (unsigned i = 0; i < j->list.n; i++)
		if (!strcmp(j->list.items[i].key, j->key))
			return true;
	return false;
}

/* "name": value */
static int parse_member(struct json *j)
{
	size_t len = 0;
	char *name;
	int rc;

	switch (peek(j)) {
	case '"':
	case '\'':
		break;
	case '\0':
		return fail_parse(j, "premature EOI");
	default:
		if (islower((unsigned char)*j->at))
			return parse_word(j) ? -EINVAL : fail_parse(j, "key is not a string in "
								       "object");
		return fail_parse(j, strchr("}],:", *j->at) ? "expecting value" :
							      "key is not a string in object");
	}
	rc = parse_string(j, &name);
	if (rc)
		return rc;
	rc = go_into(j, name, &len);
	free(name);
	if (rc)
		return rc;
	if (has_key(j))
		rc = fail_parse(j, "duplicate key");
	else if (peek(j) != ':')
		rc = fail_parse(j, *j->at ? "missing : in object pair" : "premature EOI");
	if (!rc) {
		j->at++;
		rc = parse_value(j);
	}
	j->key[len] = '\0';
	return rc;
}

static int parse_element(struct json *j, unsigned index)
{
	char name[16];
	size_t len = 0;
	int rc;

	snprintf(name, sizeof(name), "%u", index);
	rc = go_into(j, name, &len);
	if (!rc)
		rc = parse_value(j);
	j->key[len] = '\0';
	return rc;
}

/* An object or a list. */
static int parse_many(struct json *j, char end)
{
	int rc = 0;

	if (++j->depth > OPTIONS_DEPTH_MAX)
		return fail_parse(j, "JSON nesting depth limit exceeded");
	j->at++;
	if (peek(j) == end) {
		j->at++;
		j->depth--;
		return j->key[0] ? set(j, "", OPTION_EMPTY) : 0;
	}
	for (unsigned i = 0; !rc; i++) {
		rc = end == '}' ? parse_member(j) : parse_element(j, i);
		if (rc)
			break;
		if (peek(j) == end)
			break;
		if (*j->at != ',')
			rc = fail_parse(j, !*j->at ? "premature EOI" : end == '}' ?
					"expected separator in dict" :
					"expected separator in list");
		else
			j->at++;
	}
	if (!rc)
		j->at++;
	j->depth--;
	return rc;
}

static int parse_value(struct json *j)
{
	char c = peek(j), *text;
	int rc;

	if (c == '{' || c == '[')
		return parse_many(j, c == '{' ? '}' : ']');
	if (c == '"' || c == '\'') {
		rc = parse_string(j, &text);
		if (rc)
			return rc;
		rc = set(j, text, OPTION_TEXT);
		free(text);
		return rc;
	}
	if (c == '-' || isdigit((unsigned char)c))
		return parse_number(j);
	if (islower((unsigned char)c))
		return parse_word(j);
	return fail_parse(j, c ? "expecting value" : "premature EOI");
}

int option_list_parse_json(const char *text, struct option_list *ret, struct err *err)
{
	struct json *j = calloc(1, sizeof(*j));
	int rc;

	if (!j)
		return err_set_errno(err, ENOMEM, "JSON options");
	j->at = text;
	j->err = err;
	rc = peek(j) ? 0 : fail(j, "Expecting a JSON value");
	if (!rc)
		rc = check_tokens(j);
	if (!rc)
		rc = *j->at == '{' ? parse_many(j, '}') : parse_value(j);
	if (!rc && peek(j))
		rc = fail(j, "Expecting at most one JSON value");
	if (!rc && text[strspn(text, " \t\r\n")] != '{')
		rc = err_set(err, EPROTO, "Invalid JSON object given");
	if (rc)
		option_list_fini(&j->list);
	else
		*ret = j->list;
	free(j);
	return rc;
}
