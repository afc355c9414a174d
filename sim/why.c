/* SPDX-License-Identifier: MIT */
#include "sim/why.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void why_say(struct why *w, const char *fmt, ...)
{
	va_list ap;

	if (w->text[0])
		return;
	va_start(ap, fmt);
	vsnprintf(w->text, sizeof(w->text), fmt, ap);
	va_end(ap);
}

void why_add(struct why *w, const char *fmt, ...)
{
	size_t n = strlen(w->text);
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(w->text + n, sizeof(w->text) - n, fmt, ap);
	va_end(ap);
}
