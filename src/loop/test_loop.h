/* SPDX-License-Identifier: MIT */
/* loop/test_loop.h - what several tests of the loop need. */
#ifndef LOOP_TEST_LOOP_H
#define LOOP_TEST_LOOP_H

#include "loop/loop.h"
#include "loop/work.h"

/* A loop with @workers; NULL: none. The test fails if there can't be one. */
struct loop *test_loop_new(enum loop_backend backend, struct workers *workers);
/* Runs @body in a child process, in which it may spoil what it likes; it ends with _exit(0) or the
 * test fails. Skips the test where a sanitizer needs what bodies spoil. */
void test_in_child(void (*body)(void));

#endif
