/* SPDX-License-Identifier: MIT */
/* cmd/json_out.h - JSON as qemu-img prints it: four spaces a level, a member a line. Members
 * come in the order of the calls. Strings are escaped to plain ASCII. */
#ifndef CMD_JSON_OUT_H
#define CMD_JSON_OUT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct json_out {
	FILE *out;
	unsigned depth;
	bool has_members;               /* of what is open */
};

/* @key: the member's name; NULL in arrays and at the top. json_end_*() of the outermost ends
 * the line. */
void json_object(struct json_out *j, const char *key);
void json_end_object(struct json_out *j);
void json_array(struct json_out *j, const char *key);
void json_end_array(struct json_out *j);
void json_string(struct json_out *j, const char *key, const char *value);
void json_number(struct json_out *j, const char *key, int64_t value);
void json_bool(struct json_out *j, const char *key, bool value);

#endif
