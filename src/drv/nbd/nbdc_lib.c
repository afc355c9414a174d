/* SPDX-License-Identifier: MIT */
/* drv/nbd/nbdc_lib.c - libnbd is loaded once and stays. The types of its functions come from its
 * header; the version of its interface, which the name of the file says, is the one built with. */
#include "drv/nbd/nbdc_lib.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>

#include "base/bits.h"
#include "base/err.h"

#define NBDC_LIB_FILE "libnbd.so.0"

/* Written once, by load(). */
static struct nbdc_lib lib;
static bool is_loaded;
static char why[256];

static void load(void)
{
	static const char *const names[] = {
#define NBDC_LIB_NAME(name) "nbd_" #name,
		NBDC_LIB(NBDC_LIB_NAME)
#undef NBDC_LIB_NAME
	};
	void **slots = (void **)(void *)&lib;
	void *so = dlopen(NBDC_LIB_FILE, RTLD_NOW | RTLD_LOCAL);

	_Static_assert(sizeof(lib) == sizeof(names), "a slot a name");
	is_loaded = so;
	for (unsigned i = 0; i < ARRAY_SIZE(names) && is_loaded; i++) {
		slots[i] = dlsym(so, names[i]);
		is_loaded = slots[i];
	}
	if (!is_loaded)
		snprintf(why, sizeof(why), "%s", dlerror());
}

const struct nbdc_lib *nbdc_lib_get(struct err *err)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, load);
	if (is_loaded)
		return &lib;
	err_set(err, ENOPKG, "NBD needs libnbd, which cannot be loaded: %s", why);
	err_hint(err, "install libnbd: the package is libnbd0 on Debian, libnbd elsewhere");
	return NULL;
}
