/* SPDX-License-Identifier: MIT */
/* mem/step.h - names for the accesses to shared memory that the two protocols consist of.
 *
 * MEM_STEP(name) stands before each such access. In a plain build it is nothing. A test compiles
 * these files again with MEM_STEP_HOOK and is called there: to wait, so that other threads get in
 * between, or to note the order of the steps, which must be that of the model (mem/model/). */
#ifndef MEM_STEP_H
#define MEM_STEP_H

#ifdef MEM_STEP_HOOK
void mem_step(const char *name);
#define MEM_STEP(name) mem_step(#name)
#else
#define MEM_STEP(name) ((void)0)
#endif

#endif
