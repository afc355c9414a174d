/* SPDX-License-Identifier: MIT */
/* export/nbd/proto.h - the NBD protocol's numbers and messages, as they stand on the wire.
 *
 * Names are those of the specification (doc/proto.md of the NetworkBlockDevice project). */
#ifndef EXPORT_NBD_PROTO_H
#define EXPORT_NBD_PROTO_H

#include <assert.h>

#include "base/endian.h"

#define NBD_INIT_PASSWD 0x4e42444d41474943ULL           /* "NBDMAGIC" */
#define NBD_IHAVEOPT 0x49484156454f5054ULL              /* "IHAVEOPT" */
#define NBD_REP_MAGIC 0x0003e889045565a9ULL

#define NBD_REQUEST_MAGIC 0x25609513u
#define NBD_SIMPLE_REPLY_MAGIC 0x67446698u
#define NBD_STRUCTURED_REPLY_MAGIC 0x668e33efu

enum nbd_handshake_flags {              /* the client's flags have the same bits */
	NBD_FLAG_FIXED_NEWSTYLE = 1 << 0,
	NBD_FLAG_NO_ZEROES = 1 << 1,
};

enum nbd_transmission_flags {
	NBD_FLAG_HAS_FLAGS = 1 << 0,
	NBD_FLAG_READ_ONLY = 1 << 1,
	NBD_FLAG_SEND_FLUSH = 1 << 2,
	NBD_FLAG_SEND_FUA = 1 << 3,
	NBD_FLAG_SEND_TRIM = 1 << 5,
	NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6,
	NBD_FLAG_SEND_DF = 1 << 7,
	NBD_FLAG_CAN_MULTI_CONN = 1 << 8,
	NBD_FLAG_SEND_CACHE = 1 << 10,
	NBD_FLAG_SEND_FAST_ZERO = 1 << 11,
};

enum nbd_opt {
	NBD_OPT_EXPORT_NAME = 1,
	NBD_OPT_ABORT = 2,
	NBD_OPT_LIST = 3,
	NBD_OPT_STARTTLS = 5,
	NBD_OPT_INFO = 6,
	NBD_OPT_GO = 7,
	NBD_OPT_STRUCTURED_REPLY = 8,
	NBD_OPT_LIST_META_CONTEXT = 9,
	NBD_OPT_SET_META_CONTEXT = 10,
};

#define NBD_REP_ERR(n) (0x80000000u + (n))
#define NBD_REP_ACK 1u
#define NBD_REP_SERVER 2u
#define NBD_REP_INFO 3u
#define NBD_REP_META_CONTEXT 4u
#define NBD_REP_ERR_UNSUP NBD_REP_ERR(1u)
#define NBD_REP_ERR_INVALID NBD_REP_ERR(3u)
#define NBD_REP_ERR_UNKNOWN NBD_REP_ERR(6u)
#define NBD_REP_ERR_TOO_BIG NBD_REP_ERR(9u)

enum nbd_info {
	NBD_INFO_EXPORT = 0,
	NBD_INFO_NAME = 1,
	NBD_INFO_DESCRIPTION = 2,
	NBD_INFO_BLOCK_SIZE = 3,
};

enum nbd_cmd {
	NBD_CMD_READ = 0,
	NBD_CMD_WRITE = 1,
	NBD_CMD_DISC = 2,
	NBD_CMD_FLUSH = 3,
	NBD_CMD_TRIM = 4,
	NBD_CMD_CACHE = 5,
	NBD_CMD_WRITE_ZEROES = 6,
	NBD_CMD_BLOCK_STATUS = 7,
};

enum nbd_cmd_flags {
	NBD_CMD_FLAG_FUA = 1 << 0,
	NBD_CMD_FLAG_NO_HOLE = 1 << 1,
	NBD_CMD_FLAG_DF = 1 << 2,
	NBD_CMD_FLAG_REQ_ONE = 1 << 3,
	NBD_CMD_FLAG_FAST_ZERO = 1 << 4,
};

enum nbd_reply_flags { NBD_REPLY_FLAG_DONE = 1 };

enum nbd_reply_type {
	NBD_REPLY_TYPE_NONE = 0,
	NBD_REPLY_TYPE_OFFSET_DATA = 1,
	NBD_REPLY_TYPE_BLOCK_STATUS = 5,
	NBD_REPLY_TYPE_ERROR = 0x8001,
};

enum nbd_error {
	NBD_OK = 0,
	NBD_EPERM = 1,
	NBD_EIO = 5,
	NBD_ENOMEM = 12,
	NBD_EINVAL = 22,
	NBD_ENOSPC = 28,
	NBD_EOVERFLOW = 75,
	NBD_ENOTSUP = 95,
	NBD_ESHUTDOWN = 108,
};

enum nbd_state {                        /* of base:allocation */
	NBD_STATE_HOLE = 1 << 0,
	NBD_STATE_ZERO = 1 << 1,
};

#define NBD_BASE_ALLOCATION "base:allocation"
enum { NBD_CONTEXT_ALLOCATION = 1 };    /* the id that this server gives it */

/* ---- messages ---- */

struct nbd_greeting {
	be64_t passwd;
	be64_t magic;
	be16_t flags;
};

struct nbd_option {
	be64_t magic;
	be32_t option;
	be32_t len;
};

struct nbd_option_reply {
	be64_t magic;
	be32_t option;
	be32_t type;
	be32_t len;
};

struct nbd_export_reply {               /* to NBD_OPT_EXPORT_NAME; 124 zeros may follow */
	be64_t size;
	be16_t flags;
};

struct nbd_info_export {
	be16_t type;
	be64_t size;
	be16_t flags;
};

struct nbd_info_block_size {
	be16_t type;
	be32_t minimum;
	be32_t preferred;
	be32_t maximum;
};

struct nbd_request {
	be32_t magic;
	be16_t flags;
	be16_t type;
	be64_t cookie;
	be64_t off;
	be32_t len;
};

struct nbd_simple_reply {
	be32_t magic;
	be32_t error;
	be64_t cookie;
};

struct nbd_chunk {
	be32_t magic;
	be16_t flags;
	be16_t type;
	be64_t cookie;
	be32_t len;                     /* of what follows */
};

struct nbd_chunk_data {
	struct nbd_chunk head;
	be64_t off;
};

struct nbd_chunk_error {
	struct nbd_chunk head;
	be32_t error;
	be16_t text_len;
};

struct nbd_chunk_status {
	struct nbd_chunk head;
	be32_t context;
};

struct nbd_extent {
	be32_t len;
	be32_t flags;
};

static_assert(sizeof(struct nbd_greeting) == 18, "as in the specification");
static_assert(sizeof(struct nbd_option) == 16, "as in the specification");
static_assert(sizeof(struct nbd_option_reply) == 20, "as in the specification");
static_assert(sizeof(struct nbd_info_export) == 12, "as in the specification");
static_assert(sizeof(struct nbd_info_block_size) == 14, "as in the specification");
static_assert(sizeof(struct nbd_request) == 28, "as in the specification");
static_assert(sizeof(struct nbd_simple_reply) == 16, "as in the specification");
static_assert(sizeof(struct nbd_chunk) == 20, "as in the specification");

#endif
