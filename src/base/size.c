/* SPDX-License-Identifier: MIT */
#include "base/size.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"

static int suffix_shift(const char *end)
{
	static const char letters[] = "bkmgtpe";
	const char *at;

	if (!*end)
		return 0;
	if (end[1])
		return -1;
	at = strchr(letters, tolower((unsigned char)*end));
	return at ? (int)(at - letters) * 10 : -1;
}

/* The fraction at *@at, which begins with a point if there is one: 0 <= *@ret <= 1. Exponents are
 * none. False: a point that no digit is near. */
static bool read_fraction(const char **at, bool has_whole, double *ret)
{
	static const char digits[] = "0123456789";
	char text[32];
	size_t n;

	*ret = 0;
	if (**at != '.')
		return has_whole;
	n = strspn(*at + 1, digits);
	/* No double knows more digits than these. */
	snprintf(text, sizeof(text), "0.%.*s", (int)MIN(n, (size_t)24), *at + 1);
	*ret = strtod(text, NULL);
	*at += 1 + n;
	return has_whole || n;
}

static int read_hex(const char *text, uint64_t *ret)
{
	uint64_t n;
	char *end;

	errno = 0;
	n = strtoull(text, &end, 16);
	if (*end || !isxdigit((unsigned char)text[2]))
		return -EINVAL;
	if (errno)
		return -ERANGE;
	*ret = n;
	return 0;
}

int size_read(const char *text, uint64_t *ret)
{
	const char *at = text + strspn(text, " \t\n\v\f\r");
	const char *digits = at + (*at == '+' || *at == '-');
	size_t ndigits = strspn(digits, "0123456789");
	uint64_t whole = 0, more;
	double fraction;
	int shift;

	/* A number all the same, but one that no size can be. */
	if (*at == '-')
		return ndigits && !digits[ndigits] ? -ERANGE : -EINVAL;
	if (digits[0] == '0' && (digits[1] == 'x' || digits[1] == 'X'))
		return read_hex(digits, ret);
	at = digits + ndigits;
	errno = 0;
	if (ndigits)
		whole = strtoull(digits, NULL, 10);
	if (errno)
		return -ERANGE;
	if (!read_fraction(&at, ndigits, &fraction))
		return -EINVAL;
	shift = suffix_shift(at);
	if (shift < 0 || (shift == 0 && fraction != 0))
		return -EINVAL;
	/* Whole numbers keep all their digits; a fraction is rounded. */
	more = (uint64_t)round(ldexp(fraction, shift));
	if (whole > UINT64_MAX >> shift || whole << shift > UINT64_MAX - more)
		return -ERANGE;
	*ret = (whole << shift) + more;
	return 0;
}

int size_parse(const char *text, const char *what, uint64_t *ret, struct err *err)
{
	uint64_t size = 0;
	int rc = isdigit((unsigned char)text[0]) ? size_read(text, &size) : -EINVAL;

	if (rc == -EINVAL) {
		err_set(err, EINVAL, "%s: '%s' is not a size", what, text);
		err_hint(err, "write a number of bytes, or one with a suffix: 512, 64k, 1.5G, 2T");
		return -EINVAL;
	}
	if (rc || size > INT64_MAX)
		return err_set(err, ERANGE, "%s: '%s' is too large", what, text);
	*ret = size;
	return 0;
}

int number_parse(const char *text, const char *what, uint64_t min, uint64_t max, uint64_t *ret,
		 struct err *err)
{
	char *end;

	errno = 0;
	uint64_t n = strtoull(text, &end, 10);

	if (!isdigit((unsigned char)text[0]) || *end)
		return err_set(err, EINVAL, "%s: '%s' is not a number", what, text);
	if (errno == ERANGE || n < min || n > max)
		return err_set(err, ERANGE, "%s: %s is not between %llu and %llu", what, text,
			       (unsigned long long)min, (unsigned long long)max);
	*ret = n;
	return 0;
}

char *size_format(uint64_t bytes, char *buf, size_t n)
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
	int exponent;
	double value = (double)bytes;
	unsigned unit;

	/* The next unit from 1000 on, so that three digits are always enough. */
	frexp(value / (1000.0 / 1024.0), &exponent);
	unit = exponent > 0 ? (unsigned)(exponent - 1) / 10 : 0;
	if (unit >= ARRAY_SIZE(units))
		unit = ARRAY_SIZE(units) - 1;
	snprintf(buf, n, "%0.3g %s", ldexp(value, -(int)unit * 10), units[unit]);
	return buf;
}
