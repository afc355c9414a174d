/* SPDX-License-Identifier: MIT */
/* drv/vub/vfe_part.h - a request in parts. All of it on the chan's loop. */
#ifndef DRV_VUB_VFE_PART_H
#define DRV_VUB_VFE_PART_H

#include "drv/vub/vfe_impl.h"

/* Is @req to be sent? Greater than 0: yes; else its answer. */
int vfe_part_admit(const struct vfe_chan *vc, struct req *req);
/* Makes @s the next part of @req, with a bounce buffer if it needs one. False: there is none. */
bool vfe_part_choose(struct vfe_chan *vc, struct vfe_slot *s, struct req *req);
/* Puts the part of slot @token into the ring. 0 or -EAGAIN. */
int vfe_part_put(struct vfe_chan *vc, uint16_t token);
/* The back end is done with the part of slot @token. 0 or the request's error; *@ret_has_more:
 * another part follows. */
int vfe_part_end(struct vfe_chan *vc, uint16_t token, bool *ret_has_more);

#endif
