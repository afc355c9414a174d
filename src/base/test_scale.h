/* SPDX-License-Identifier: MIT */
/* base/test_scale.h - what tests divide their work by. ThreadSanitizer is slow, and most of what is
 * done a thousand times over with one seed after the other is done by one thread. AddressSanitizer,
 * and a second compiler, are to see each kind of path; that the results are right is seen without
 * them. */
#ifndef BASE_TEST_SCALE_H
#define BASE_TEST_SCALE_H

#include "base/sanitizers.h"

#ifdef __clang__
#define IS_CLANG 1
#else
#define IS_CLANG 0
#endif

enum {
	TEST_SCALE = HAS_TSAN ? 16 : HAS_ASAN || IS_CLANG ? 3 : 1,
	TEST_SCALE_FAULTS = HAS_TSAN ? 16 : 1,  /* of what fails or is damaged: ASan sees all */
};

#endif
