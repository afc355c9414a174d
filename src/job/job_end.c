/* SPDX-License-Identifier: MIT */
#include "job/job_end.h"

#include "base/bits.h"
#include "base/mem_release.h"
#include "loop/loop.h"
#include "loop/work.h"

static void release(void *arg)
{
	mem_release();
}

void job_end_wait(struct loop *l, uint64_t start_ns)
{
	if (loop_now(l) - start_ns > NS_PER_SEC)
		loop_work_wait(l, release, NULL);
}
