/* SPDX-License-Identifier: MIT */
#include "cmd/json_out.h"

#include <inttypes.h>
#include <stddef.h>

#include "base/json_text.h"

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
		json_text_print(j->out, key);
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
	json_text_print(j->out, value);
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
