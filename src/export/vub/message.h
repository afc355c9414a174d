/* SPDX-License-Identifier: MIT */
/* export/vub/message.h - what a front end's message must look like. Pure: no I/O, no state.
 *
 * Invariants:
 *	V11  what vub_message_check() lets through has the payload that its request needs, no more
 *	    and no less, and descriptors as many as it needs: nobody behind it checks that again;
 *	V12  a request that needs a protocol feature is refused where that was not negotiated. */
#ifndef EXPORT_VUB_MESSAGE_H
#define EXPORT_VUB_MESSAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/vhost_user.h"

/* Is @head that of a message whose payload can be received? 0 or -EPROTO. */
int vub_message_check_head(const struct vhost_user_header *head, const char **ret_why);

/* Is @m, with head.size bytes of payload and @nfds descriptors, right where @features (protocol
 * features) were negotiated? 0; -EOPNOTSUPP: a request that we do not know; or -EPROTO. *@ret_why
 * says what is wrong. */
int vub_message_check(const struct vhost_user_msg *m, unsigned nfds, uint64_t features,
		      const char **ret_why);

/* Has @request an answer of its own, whether one is asked for or not? */
bool vub_message_has_reply(uint32_t request);
/* For messages. */
const char *vub_message_name(uint32_t request);

static inline bool vub_has_bit(uint64_t features, unsigned bit)
{
	return features >> bit & 1;
}

#endif
