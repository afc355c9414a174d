/* SPDX-License-Identifier: MIT */
/* sim/why.h - what is wrong with a case: the first thing that was found, for whoever runs it. */
#ifndef SIM_WHY_H
#define SIM_WHY_H

enum { WHY_MAX = 512 };

struct why {
	char text[WHY_MAX];             /* empty: nothing is */
};

/* What was said first stays. */
__attribute__((format(printf, 2, 3)))
void why_say(struct why *w, const char *fmt, ...);
/* More about it. */
__attribute__((format(printf, 2, 3)))
void why_add(struct why *w, const char *fmt, ...);

#endif
