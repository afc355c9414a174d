/* SPDX-License-Identifier: MIT */
/* base/size.h - sizes and numbers as people write and read them. Pure. */
#ifndef BASE_SIZE_H
#define BASE_SIZE_H

#include <stddef.h>
#include <stdint.h>

struct err;

/* Reads "4096", "64k", "1.5G", ".5T" as qemu-img does: blanks and a plus sign, a decimal number, or
 * 0x hexadecimal without suffix, then one of b k M G T P E in either case (powers of 1024; none:
 * bytes). 0, -EINVAL (not a size) or -ERANGE (2^64 or more, or a negative number). */
int size_read(const char *text, uint64_t *ret);

/* The same, stricter: the text begins with a digit, and 2^63 is -ERANGE. @what names the option
 * for @err. */
int size_parse(const char *text, const char *what, uint64_t *ret, struct err *err);

/* Parses a decimal whole number in [@min, @max]. 0, -EINVAL or -ERANGE. */
int number_parse(const char *text, const char *what, uint64_t min, uint64_t max, uint64_t *ret,
		 struct err *err);

/* "512 B", "1.5 KiB", "10 GiB": at most three significant digits, as qemu-img prints sizes.
 * Returns @buf; 16 bytes are enough. */
char *size_format(uint64_t bytes, char *buf, size_t n);

#endif
