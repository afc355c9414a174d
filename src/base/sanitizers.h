/* SPDX-License-Identifier: MIT */
/* base/sanitizers.h - is this built for AddressSanitizer, for ThreadSanitizer? gcc and clang say it
 * in different ways. */
#ifndef BASE_SANITIZERS_H
#define BASE_SANITIZERS_H

#if defined(__SANITIZE_ADDRESS__)
#define HAS_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HAS_ASAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define HAS_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define HAS_TSAN 1
#endif
#endif
#ifndef HAS_ASAN
#define HAS_ASAN 0
#endif
#ifndef HAS_TSAN
#define HAS_TSAN 0
#endif

#endif
