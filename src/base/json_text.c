/* SPDX-License-Identifier: MIT */
#include "base/json_text.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

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

void json_text_print(FILE *out, const char *text)
{
	fputc('"', out);
	while (*text) {
		size_t len;

		print_point(out, next_point(text, &len));
		text += len;
	}
	fputc('"', out);
}
