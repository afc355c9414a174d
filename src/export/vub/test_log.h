/* SPDX-License-Identifier: MIT */
/* export/vub/test_log.h - for the tests: a front end's side of the dirty log (V23). */
#ifndef EXPORT_VUB_TEST_LOG_H
#define EXPORT_VUB_TEST_LOG_H

#include "export/vub/test_host.h"

enum {
	LOG_PAGE = VHOST_USER_LOG_PAGE,
	LOG_WANTS = 4,
};

/* Front ends that negotiate LOG_SHMFD, with rings of either layout. */
extern const struct vfe_want log_wants[LOG_WANTS];

struct dirty_log {
	int fd;
	uint64_t bytes;
	uint8_t *bits;
};

/* Makes a log for all of a guest's memory. */
void log_start(struct dirty_log *log);
void log_end(struct dirty_log *log);

/* The messages. What they send must be negotiated: see log_wants. */
void log_tell_base(const struct dirty_log *log, struct guest *g);
void log_tell_features(struct guest *g, bool is_on);
/* The flag of ring @i. */
void log_tell_ring(struct guest *g, unsigned i, bool is_on);
/* All of them, as QEMU does: the log, then the feature, then the rings. */
void log_tell(const struct dirty_log *log, struct guest *g);

bool log_has(const struct dirty_log *log, uint64_t addr);

#endif
