/* SPDX-License-Identifier: MIT */
/* job/job_end.h - what every job does last. */
#ifndef JOB_JOB_END_H
#define JOB_JOB_END_H

#include <stdint.h>

struct loop;

/* In a fiber of @l, with the job's own memory freed: if it has lasted for more than a second since
 * @start_ns, free memory goes back to the system, by a worker. */
void job_end_wait(struct loop *l, uint64_t start_ns);

#endif
