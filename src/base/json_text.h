/* SPDX-License-Identifier: MIT */
/* base/json_text.h - a text as JSON has it. */
#ifndef BASE_JSON_TEXT_H
#define BASE_JSON_TEXT_H

#include <stdio.h>

/* Prints @text in quotes, in ASCII: other characters are escaped, what is not UTF-8 is U+FFFD. */
void json_text_print(FILE *out, const char *text);

#endif
