/* SPDX-License-Identifier: MIT */
/* base/test_scale.h - what tests divide their work by. ThreadSanitizer is slow, and most of what is
 * done a thousand times over with one seed after the other is done by one thread. AddressSanitizer
 * is to see each kind of path; that the results are right is seen without it. */
#ifndef BASE_TEST_SCALE_H
#define BASE_TEST_SCALE_H

#include "base/sanitizers.h"

enum {
	TEST_SCALE = HAS_TSAN ? 16 : HAS_ASAN ? 3 : 1,
	TEST_SCALE_FAULTS = HAS_TSAN ? 16 : 1,  /* of what fails or is damaged: ASan sees all */
};

#endif
