/* SPDX-License-Identifier: MIT */
/* export/vub/config.c - what the device says of itself (virtio 1.2, 5.2.3 and 5.2.4). */
#include <errno.h>
#include <string.h>

#include "export/vub/vub_impl.h"

enum {
	SECTORS_MAX = 1 << 22,          /* of one range to discard or zero: 2 GiB */
	PHYSICAL_MAX = 64 << 10,
};

static uint64_t bit(unsigned n)
{
	return 1ULL << n;
}

uint64_t vub_config_features(const struct vub *v)
{
	uint64_t f = bit(VIRTIO_F_VERSION_1) | bit(VIRTIO_F_RING_PACKED) |
		     bit(VIRTIO_RING_F_INDIRECT_DESC) | bit(VIRTIO_RING_F_EVENT_IDX) |
		     bit(VHOST_USER_F_PROTOCOL_FEATURES) | bit(VHOST_USER_F_LOG_ALL) |
		     bit(VIRTIO_BLK_F_SEG_MAX) | bit(VIRTIO_BLK_F_BLK_SIZE) |
		     bit(VIRTIO_BLK_F_TOPOLOGY) | bit(VIRTIO_BLK_F_MQ) | bit(VIRTIO_BLK_F_FLUSH);

	if (v->read_only)
		return f | bit(VIRTIO_BLK_F_RO);
	return f | bit(VIRTIO_BLK_F_CONFIG_WCE) | bit(VIRTIO_BLK_F_DISCARD) |
	       bit(VIRTIO_BLK_F_WRITE_ZEROES);
}

/* The block size that is fast, as log2 of sectors. */
static uint8_t physical_exp(const struct vub *v)
{
	uint32_t align = v->port->node->align;

	if (align <= VUB_SECTOR || align > PHYSICAL_MAX || !is_pow2(align))
		return 0;
	return (uint8_t)log2_floor(align / VUB_SECTOR);
}

void vub_config_fill(const struct vub *v, struct virtio_blk_config *ret)
{
	uint32_t grain = 1u << physical_exp(v);

	*ret = (struct virtio_blk_config){
		.capacity = port_size(v->port) / VUB_SECTOR,
		.seg_max = VUB_SEGMENTS_MAX,
		.blk_size = VUB_SECTOR,
		.physical_block_exp = physical_exp(v),
		.min_io_size = (uint16_t)grain,
		.opt_io_size = grain,
		.wce = !v->is_write_through,
		.num_queues = (uint16_t)v->nqueues,
	};
	if (v->read_only)
		return;
	ret->max_discard_sectors = SECTORS_MAX;
	ret->max_discard_seg = VUB_RANGES_MAX;
	ret->discard_sector_alignment = grain;
	ret->max_write_zeroes_sectors = SECTORS_MAX;
	ret->max_write_zeroes_seg = VUB_RANGES_MAX;
	ret->write_zeroes_may_unmap = 1;
}

int vub_config_write(struct vub *v, const struct vhost_user_config *c, bool *ret_changed)
{
	bool is_write_through;

	if (c->offset != offsetof(struct virtio_blk_config, wce) || c->size != 1 || v->read_only)
		return -EINVAL;
	is_write_through = !c->data[0];
	*ret_changed = is_write_through != v->is_write_through;
	v->is_write_through = is_write_through;
	return 0;
}
