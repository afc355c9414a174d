/* SPDX-License-Identifier: MIT */
/* base/test_scale.h - what tests divide their work by. ThreadSanitizer is slow, and most of what is
 * done a thousand times over with one seed after the other is done by one thread. */
#ifndef BASE_TEST_SCALE_H
#define BASE_TEST_SCALE_H

#if defined(__SANITIZE_THREAD__)
enum { TEST_SCALE = 16 };
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
enum { TEST_SCALE = 16 };
#else
enum { TEST_SCALE = 1 };
#endif
#else
enum { TEST_SCALE = 1 };
#endif

#endif
