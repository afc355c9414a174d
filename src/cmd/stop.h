/* SPDX-License-Identifier: MIT */
/* cmd/stop.h - INT, TERM and HUP, for a command that has something to put right before it ends.
 *
 * The first one asks it to end in order: it starts nothing more, waits for what is under way, and
 * closes. That is for ever where a server does not answer. So whoever has not ended STOP_GRACE_NS
 * later is not waited for: give_up() puts right what can be without an answer, and the program ends
 * by the signal. A second signal ends it at once.
 *
 * Main thread only, and only there do signals arrive: all other threads have them blocked. */
#ifndef CMD_STOP_H
#define CMD_STOP_H

#include <stdatomic.h>

#include "base/bits.h"

struct loop;

#define STOP_GRACE_NS NS_PER_SEC

/* Signals that are ignored stay so. @give_up(arg) is called by @l, or never. Returns what is true
 * from the first signal on. */
const atomic_bool *stop_watch(struct loop *l, void (*give_up)(void *arg), void *arg);
/* Before @l goes: nobody gives up any more. */
void stop_unwatch(void);
/* Ends the program by the signal that came. Returns if none did. */
void stop_end(void);

#endif
