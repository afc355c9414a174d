/* SPDX-License-Identifier: MIT */
/* mem/cxx.c - C++'s operators new and delete, by the names that compilers give them.
 *
 * In C, so that programs in C need no C++ library. What C++ is needed for, the handler of failed
 * requests and throwing, is asked of the C++ library that a program with such operators has.
 *
 * The forms of new that do not throw are left to that library: they must catch what a handler
 * throws, and are calls of the forms below. */
#include <errno.h>
#include <stdlib.h>

#include "mem/api.h"
#include "mem/os.h"

typedef void new_handler_fn(void);

new_handler_fn *cxx_get_new_handler(void) __asm__("_ZSt15get_new_handlerv")
	__attribute__((weak));
void cxx_throw_bad_alloc(void) __asm__("_ZSt17__throw_bad_allocv")
	__attribute__((weak, noreturn));

/* A request failed: what the standard says. */
static __attribute__((noinline, cold)) void *new_failed(size_t size, size_t align)
{
	for (;;) {
		new_handler_fn *handler = cxx_get_new_handler ? cxx_get_new_handler() : NULL;
		void *p;

		if (!handler && cxx_throw_bad_alloc)
			cxx_throw_bad_alloc();
		if (!handler)
			os_die("operator new: no memory", NULL);
		handler();
		p = align ? api_alloc_aligned(align, size) : api_alloc(size);
		if (p)
			return p;
	}
}

/* Declares @id as the exported @mangled. */
#define NAMED(mangled) __asm__(mangled) EXPORT
/* The same function by another name. */
#define ALSO(mangled) __attribute__((alias(mangled)))

void *cxx_new(size_t size) NAMED("_Znwm");
void *cxx_new_array(size_t size) NAMED("_Znam") ALSO("_Znwm");
void *cxx_new_aligned(size_t size, size_t align) NAMED("_ZnwmSt11align_val_t");
void *cxx_new_array_aligned(size_t size, size_t align) NAMED("_ZnamSt11align_val_t")
	ALSO("_ZnwmSt11align_val_t");

void cxx_delete(void *p) NAMED("_ZdlPv");
void cxx_delete_array(void *p) NAMED("_ZdaPv") ALSO("_ZdlPv");
/* What else they are told is not needed: the map knows. */
void cxx_delete_sized(void *p, size_t size) NAMED("_ZdlPvm");
void cxx_delete_array_sized(void *p, size_t size) NAMED("_ZdaPvm") ALSO("_ZdlPvm");
void cxx_delete_aligned(void *p, size_t align) NAMED("_ZdlPvSt11align_val_t") ALSO("_ZdlPvm");
void cxx_delete_array_aligned(void *p, size_t align) NAMED("_ZdaPvSt11align_val_t")
	ALSO("_ZdlPvm");
void cxx_delete_nothrow(void *p, const void *tag) NAMED("_ZdlPvRKSt9nothrow_t");
void cxx_delete_array_nothrow(void *p, const void *tag) NAMED("_ZdaPvRKSt9nothrow_t")
	ALSO("_ZdlPvRKSt9nothrow_t");
void cxx_delete_sized_aligned(void *p, size_t size, size_t align)
	NAMED("_ZdlPvmSt11align_val_t");
void cxx_delete_array_sized_aligned(void *p, size_t size, size_t align)
	NAMED("_ZdaPvmSt11align_val_t") ALSO("_ZdlPvmSt11align_val_t");
void cxx_delete_aligned_nothrow(void *p, size_t align, const void *tag)
	NAMED("_ZdlPvSt11align_val_tRKSt9nothrow_t");
void cxx_delete_array_aligned_nothrow(void *p, size_t align, const void *tag)
	NAMED("_ZdaPvSt11align_val_tRKSt9nothrow_t") ALSO("_ZdlPvSt11align_val_tRKSt9nothrow_t");

void *cxx_new(size_t size)
{
	void *p = api_alloc(size);

	return __builtin_expect(p != NULL, 1) ? p : new_failed(size, 0);
}

void *cxx_new_aligned(size_t size, size_t align)
{
	void *p = api_alloc_aligned(align, size);

	return p ? p : new_failed(size, align);
}

void cxx_delete(void *p)
{
	api_free(p);
}

void cxx_delete_sized(void *p, size_t size)
{
	api_free(p);
}

void cxx_delete_nothrow(void *p, const void *tag)
{
	api_free(p);
}

void cxx_delete_sized_aligned(void *p, size_t size, size_t align)
{
	api_free(p);
}

void cxx_delete_aligned_nothrow(void *p, size_t align, const void *tag)
{
	api_free(p);
}
