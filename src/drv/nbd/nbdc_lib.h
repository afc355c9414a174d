/* SPDX-License-Identifier: MIT */
/* drv/nbd/nbdc_lib.h - libnbd's functions, from when it is first needed. */
#ifndef DRV_NBD_NBDC_LIB_H
#define DRV_NBD_NBDC_LIB_H

#include <libnbd.h>

#define NBDC_LIB(X) \
	X(aio_block_status) X(aio_connect_tcp) X(aio_connect_unix) X(aio_disconnect) X(aio_flush) \
	X(aio_get_direction) X(aio_get_fd) X(aio_is_ready) X(aio_notify_read) \
	X(aio_notify_write) X(aio_pread) X(aio_pwrite) X(aio_trim) X(aio_zero) \
	X(add_meta_context) X(can_fast_zero) X(can_flush) X(can_fua) X(can_meta_context) \
	X(can_multi_conn) X(can_trim) X(can_zero) X(close) X(create) X(get_block_size) \
	X(get_errno) X(get_error) X(get_size) X(is_read_only) X(set_export_name) \
	X(set_pread_initialize) X(set_tls) X(set_tls_certificates) X(set_tls_psk_file) \
	X(set_tls_username) X(set_tls_verify_peer)

struct nbdc_lib {
#define NBDC_LIB_MEMBER(name) __typeof__(nbd_##name) *name;
	NBDC_LIB(NBDC_LIB_MEMBER)
#undef NBDC_LIB_MEMBER
};

struct err;

/* Loads libnbd if that has not been done. Reads files, so on a worker. NULL: @err says why. */
const struct nbdc_lib *nbdc_lib_get(struct err *err);

#endif
