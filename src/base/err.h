/* SPDX-License-Identifier: MIT */
/* base/err.h - an error as a person will read it.
 *
 * Functions return 0 or -errno. Those that a person waits for also take a `struct err *`, which
 * is filled once, where the cause is known, and gains context on its way up:
 *
 *	if (fd < 0)
 *		return err_set(err, errno, "cannot open '%s'", path);
 *	...
 *	if (rc < 0)
 *		return err_wrap(err, rc, "backing file of '%s'", name);
 *
 * Libraries never print one; the command does. A NULL err is allowed everywhere. */
#ifndef BASE_ERR_H
#define BASE_ERR_H

enum { ERR_TEXT_MAX = 1024 };

struct err {
	int code;                       /* positive errno; 0: no error */
	char text[ERR_TEXT_MAX];        /* one line, no full stop, no newline; cut where too long */
	char hint[256];                 /* what to do about it, or empty */
};

/* Sets @err's text from @fmt and appends ": strerror(code)". Returns -code. */
int err_set_errno(struct err *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* Sets @err's text from @fmt alone. Returns -code; @code is a positive errno. */
int err_set(struct err *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* Puts "@fmt: " before @err's text. Returns @rc (negative errno). Fills an empty err
 * with strerror(-rc). */
int err_wrap(struct err *err, int rc, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* Says what the reader can do about it (one sentence, no full stop). */
void err_hint(struct err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
