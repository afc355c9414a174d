/* SPDX-License-Identifier: MIT */
#include "base/size.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
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

int size_parse(const char *text, const char *what, uint64_t *ret, struct err *err)
{
	double value, fraction, whole;
	char *end;
	int shift;

	if (!isdigit((unsigned char)text[0]))
		goto invalid;
	if (text[0] == '0' && (text[1] == 'x' || text[1] == 'X')) {
		errno = 0;
		uint64_t hex = strtoull(text, &end, 16);

		if (*end || end == text + 1)
			goto invalid;
		if (errno == ERANGE || hex > INT64_MAX)
			goto range;
		*ret = hex;
		return 0;
	}
	/* Whole numbers keep all their digits; a fraction goes through a double. */
	errno = 0;
	uint64_t n = strtoull(text, &end, 10);

	if (*end != '.') {
		shift = suffix_shift(end);
		if (shift < 0)
			goto invalid;
		if (errno == ERANGE || n > ((uint64_t)INT64_MAX >> shift))
			goto range;
		*ret = n << shift;
		return 0;
	}
	value = strtod(text, &end);
	fraction = modf(value, &whole);
	shift = suffix_shift(end);
	if (shift < 0 || (fraction != 0 && shift == 0))
		goto invalid;
	value = ldexp(value, shift);
	if (!(value < 9223372036854775808.0))
		goto range;
	*ret = (uint64_t)value;
	return 0;
invalid:
	err_set(err, EINVAL, "%s: '%s' is not a size", what, text);
	err_hint(err, "write a number of bytes, or one with a suffix: 512, 64k, 1.5G, 2T");
	return -EINVAL;
range:
	return err_set(err, ERANGE, "%s: '%s' is too large", what, text);
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
