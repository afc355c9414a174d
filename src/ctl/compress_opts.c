/* SPDX-License-Identifier: MIT */
#include "ctl/compress_opts.h"

#include <errno.h>

#include "base/bits.h"
#include "base/err.h"
#include "ctl/graph.h"
#include "ctl/option_list.h"

enum { LEVEL_MAX = 22 };

int compress_options_take(struct option_list *l, struct graph_opts *ret, struct err *err)
{
	const struct option_item *o = option_list_take(l, "", "compression_level");
	uint64_t level = 0, window = 32 * KiB;
	int rc = option_number(o, "", &level, err);

	if (!rc && o && (!level || level > LEVEL_MAX))
		rc = err_set(err, EINVAL, "compression_level is not within 1 and %d", LEVEL_MAX);
	o = option_list_take(l, "", "deflate_window");
	if (!rc)
		rc = option_size(o, "", &window, err);
	if (!rc && window != 4 * KiB && window != 32 * KiB)
		rc = err_set(err, EINVAL, "deflate_window is either 4k or 32k");
	if (rc)
		return rc;
	ret->compression_level = (int)level;
	ret->deflate_small_window = window == 4 * KiB;
	option_list_remove(l, "compression_level");
	option_list_remove(l, "deflate_window");
	return 0;
}
