/* SPDX-License-Identifier: MIT */
/* ctl/option_list.h - options as people write them: key=value,... or JSON, both flattened to
 * one list of dotted keys ("file.filename"). Pure; nothing is printed. Words are QEMU's.
 *
 * Invariants:
 *	O6  whatever the text, parsing ends with a list of at most OPTIONS_MAX options or an error,
 *	    in time linear in the text for each option. */
#ifndef CTL_OPTION_LIST_H
#define CTL_OPTION_LIST_H

#include <stdbool.h>
#include <stdint.h>

struct err;

enum { OPTIONS_MAX = 1024, OPTIONS_DEPTH_MAX = 64 };

enum option_kind { OPTION_TEXT, OPTION_NUMBER, OPTION_BOOL, OPTION_NULL, OPTION_EMPTY };

struct option_item {
	char *key;                      /* owned */
	char *value;                    /* owned; as written, a text without its escapes */
	enum option_kind kind;          /* what JSON says it is; EMPTY: {} or [] */
	bool is_used;
};

struct option_list {
	struct option_item *items;      /* owned */
	unsigned n;
	char *warning;                  /* owned; NULL: nothing to say */
};

/* "key=value,key2=value2": a comma in a value is written twice; a word without "=" is the value of
 * @implied where it comes first (NULL: never), else a switch, on or (with "no" before it) off.
 * Of options given twice the last counts. 0, -EINVAL or -ENOMEM; *@ret only on success. */
int option_list_parse(const char *text, const char *implied, struct option_list *ret,
		      struct err *err);
/* A JSON object. -EPROTO: well-formed, but no object. */
int option_list_parse_json(const char *text, struct option_list *ret, struct err *err);
/* A zeroed list is fine. */
void option_list_fini(struct option_list *l);

/* Puts an option at the end, or in the place of one with that key. 0, -E2BIG or -ENOMEM. */
int option_list_set(struct option_list *l, const char *key, const char *value,
		    enum option_kind kind);

/* The option @prefix@key, which counts as used from now on; or NULL. */
const struct option_item *option_list_take(struct option_list *l, const char *prefix,
					   const char *key);
/* Forgets option @key, if it is there: what had its value points nowhere. */
void option_list_remove(struct option_list *l, const char *key);
/* Does any key begin with @prefix@key followed by a dot? */
bool option_list_has_below(const struct option_list *l, const char *prefix, const char *key);
/* The first option whose key begins with @prefix and which nobody took, or NULL. */
const struct option_item *option_list_unused(const struct option_list *l, const char *prefix);

/* Is @text a letter, then letters, digits, "-", "." and "_"? */
bool option_is_identifier(const char *text);
/* Reads a value; NULL: @ret is left alone. 0 or -errno with QEMU's words, key without @prefix. */
int option_bool(const struct option_item *o, const char *prefix, bool *ret, struct err *err);
int option_size(const struct option_item *o, const char *prefix, uint64_t *ret, struct err *err);
/* A whole number: decimal, 0x hexadecimal or 0 octal; a negative one is 2^64 more, as in QEMU. */
int option_number(const struct option_item *o, const char *prefix, uint64_t *ret, struct err *err);

#endif
