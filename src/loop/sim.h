/* SPDX-License-Identifier: MIT */
/* loop/sim.h - simulated files for LOOP_SIM: memory behind descriptors that no kernel knows.
 *
 * Operations of a sim loop complete in an order, and with short counts, drawn from the loop's seed;
 * time is simulated and jumps when nothing else is left to do. Faults are asked for by the test.
 * Descriptors are numbers from SIM_FD_BASE on; real descriptors cannot be used on a sim loop. */
#ifndef LOOP_SIM_H
#define LOOP_SIM_H

#include <stdint.h>

#include "loop/loop.h"

enum { SIM_FD_BASE = 1 << 20 };

/* A new simulated file with @size zero bytes. Returns its descriptor or -ENOMEM. */
int sim_file_new(struct loop *l, uint64_t size);
void sim_file_free(struct loop *l, int fd);
uint64_t sim_file_size(struct loop *l, int fd);
/* Direct access, for the test's own set-up and checks. Grows the file on write. */
void sim_file_pread(struct loop *l, int fd, void *buf, uint64_t len, uint64_t off);
void sim_file_pwrite(struct loop *l, int fd, const void *buf, uint64_t len, uint64_t off);

/* Called for each operation before it takes effect: 0 lets it pass, -errno makes it fail. */
void sim_set_fault(struct loop *l, int (*fault)(void *arg, const struct io *io), void *arg);
/* Probability in 1/256 that a READ or WRITE is answered short (at a 512-byte boundary). */
void sim_set_short(struct loop *l, unsigned chance);

#endif
