/* SPDX-License-Identifier: MIT */
#include "cmd/json_out.h"

#include <inttypes.h>
#include <stddef.h>

enum { INDENT = 4 };

static void new_line(struct json_out *j)
{
	fprintf(j->out, "\n%*s", (int)j->depth * INDENT, "");
}

/* What stands before a value: a comma, its line, its name. */
static void begin(struct json_out *j, const char *key)
{
	if (j->has_members)
		fputc(',', j->out);
	if (j->depth)
		new_line(j);
	if (key) {
		json_print_string(j->out, key);
		fputs(": ", j->out);
	}
	j->has_members = true;
}

static void open_value(struct json_out *j, const char *key, char bracket)
{
	begin(j, key);
	fputc(bracket, j->out);
	j->depth++;
	j->has_members = false;
}

static void close_value(struct json_out *j, char bracket)
{
	j->depth--;
	new_line(j);
	fputc(bracket, j->out);
	j->has_members = true;
	if (!j->depth) {
		fputc('\n', j->out);
		j->has_members = false;
	}
}

void json_object(struct json_out *j, const char *key)
{
	open_value(j, key, '{');
}

void json_end_object(struct json_out *j)
{
	close_value(j, '}');
}

void json_array(struct json_out *j, const char *key)
{
	open_value(j, key, '[');
}

void json_end_array(struct json_out *j)
{
	close_value(j, ']');
}

void json_string(struct json_out *j, const char *key, const char *value)
{
	begin(j, key);
	json_print_string(j->out, value);
}

void json_number(struct json_out *j, const char *key, int64_t value)
{
	begin(j, key);
	fprintf(j->out, "%" PRId64, value);
}

void json_bool(struct json_out *j, const char *key, bool value)
{
	begin(j, key);
	fputs(value ? "true" : "false", j->out);
}

/* ---- strings ---- */

enum { REPLACEMENT = 0xfffd };

/* Is @c a code point that a well-formed text of @len bytes may have? */
static bool is_valid_point(uint32_t c, unsigned len)
{
	static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };

	if (c < least[len] || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
		return false;
	return !((c >= 0xfdd0 && c <= 0xfdef) || (c & 0xfffe) == 0xfffe);
}

/* The code point at @s and the number of its bytes; what is not UTF-8 is replaced. */
static uint32_t next_point(const char *s, size_t *ret_len)
{
	const unsigned char *u = (const unsigned char *)s;
	unsigned len = u[0] < 0x80 ? 1 : u[0] < 0xc0 ? 0 : u[0] < 0xe0 ? 2 :
		       u[0] < 0xf0 ? 3 : u[0] < 0xf8 ? 4 : 0;
	uint32_t c;

	*ret_len = 1;
	if (len == 1)
		return u[0];
	if (!len)
		return REPLACEMENT;
	c = u[0] & (0x7fU >> len);
	for (unsigned i = 1; i < len; i++) {
		if ((u[i] & 0xc0) != 0x80)
			return REPLACEMENT;
		c = c << 6 | (u[i] & 0x3f);
		*ret_len = i + 1;
	}
	return is_valid_point(c, len) ? c : REPLACEMENT;
}

static void print_point(FILE *out, uint32_t c)
{
	static const char plain[] = "\"\\\b\f\n\r\t", letter[] = "\"\\bfnrt";

	for (unsigned i = 0; i < sizeof(plain) - 1; i++) {
		if (c == (unsigned char)plain[i]) {
			fprintf(out, "\\%c", letter[i]);
			return;
		}
	}
	if (c >= 0x20 && c < 0x7f)
		fputc((int)c, out);
	else if (c < 0x10000)
		fprintf(out, "\\u%04X", (unsigned)c);
	else
		fprintf(out, "\\u%04X\\u%04X", (unsigned)(0xd800 + ((c - 0x10000) >> 10)),
			(unsigned)(0xdc00 + ((c - 0x10000) & 0x3ff)));
}

void json_print_string(FILE *out, const char *text)
{
	fputc('"', out);
	while (*text) {
		size_t len;

		print_point(out, next_point(text, &len));
		text += len;
	}
	fputc('"', out);
}
