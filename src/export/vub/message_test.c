/* SPDX-License-Identifier: MIT */
/* What messages get through, against a second table written down from the specification. */
#include "export/vub/message.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/bits.h"

static const struct good {
	uint32_t request;
	uint32_t size;
	unsigned fds;
	int feature;                    /* -1: none */
	bool has_reply;
} good[] = {
	{ 1, 0, 0, -1, true }, { 2, 8, 0, -1, false }, { 3, 0, 0, -1, false },
	{ 4, 0, 0, -1, false }, { 5, 8, 0, -1, false }, { 6, 16, 1, 1, true },
	{ 7, 0, 1, -1, false }, { 8, 8, 0, -1, false }, { 9, 40, 0, -1, false },
	{ 10, 8, 0, -1, false }, { 11, 8, 0, -1, true }, { 12, 8, 1, -1, false },
	{ 13, 8, 1, -1, false }, { 14, 8, 1, -1, false }, { 15, 0, 0, -1, true },
	{ 16, 8, 0, -1, false }, { 17, 0, 0, 0, true }, { 18, 8, 0, -1, false },
	{ 21, 0, 1, 5, false }, { 24, 12, 0, 9, true }, { 25, 12, 0, 9, false },
	{ 31, 20, 0, 12, true }, { 32, 20, 1, 12, false }, { 34, 0, 0, 13, false },
	{ 36, 0, 0, 15, true }, { 37, 40, 1, 15, false }, { 38, 40, 0, 15, false },
};

static const struct good *good_of(uint32_t request)
{
	for (unsigned i = 0; i < ARRAY_SIZE(good); i++)
		if (good[i].request == request)
			return &good[i];
	return NULL;
}

static int check(uint32_t request, uint32_t size, unsigned fds, uint64_t features)
{
	struct vhost_user_msg m = { .head = { request, VHOST_USER_VERSION, size } };
	const char *why = NULL;
	int rc = vub_message_check(&m, fds, features, &why);

	assert_true(!rc == !why);
	return rc;
}

/* Every size and number of descriptors of every request, with a payload of zeros. */
static void v11_sizes_and_descriptors(void **state)
{
	for (uint32_t r = 0; r < 60; r++) {
		const struct good *g = good_of(r);

		if (!g) {
			assert_int_equal(check(r, 0, 0, UINT64_MAX), -EOPNOTSUPP);
			continue;
		}
		assert_int_equal(vub_message_has_reply(r), g->has_reply);
		for (uint32_t size = 0; size <= VHOST_USER_PAYLOAD_MAX; size++) {
			for (unsigned fds = 0; fds <= VHOST_USER_FDS_MAX; fds++) {
				bool is_size = size == g->size || (r == 7 && size == 8) ||
					       (r >= 31 && r <= 32 && size == 24);
				bool is_fds = fds == g->fds || (r == 38 && fds == 1);

				assert_int_equal(check(r, size, fds, UINT64_MAX),
						 is_size && is_fds ? 0 : -EPROTO);
			}
		}
	}
}

static void v11_numbers_in_the_payload(void **state)
{
	struct vhost_user_msg m = { .head = { VHOST_USER_SET_MEM_TABLE, VHOST_USER_VERSION, 0 } };
	const char *why;

	for (uint32_t n = 0; n < 12; n++) {
		m.head.size = 8 + 32 * n;
		m.table.nregions = n;
		assert_int_equal(vub_message_check(&m, n, 0, &why), n <= 8 ? 0 : -EPROTO);
		m.table.nregions = n + 1;
		assert_int_equal(vub_message_check(&m, n, 0, &why), -EPROTO);
	}
	m.head.request = VHOST_USER_SET_VRING_KICK;
	m.head.size = 8;
	m.u64 = VHOST_USER_VRING_NOFD;
	assert_int_equal(vub_message_check(&m, 0, 0, &why), 0);
	assert_int_equal(vub_message_check(&m, 1, 0, &why), -EPROTO);
	m.head.request = VHOST_USER_GET_CONFIG;
	m.config.offset = 250;
	m.config.size = 6;
	m.head.size = 12 + 6;
	assert_int_equal(vub_message_check(&m, 0, UINT64_MAX, &why), 0);
	m.config.offset = 251;
	assert_int_equal(vub_message_check(&m, 0, UINT64_MAX, &why), -EPROTO);
	m.config.offset = UINT32_MAX;
	assert_int_equal(vub_message_check(&m, 0, UINT64_MAX, &why), -EPROTO);
}

static void v11_heads(void **state)
{
	struct vhost_user_header h = { 1, VHOST_USER_VERSION, 0 };
	const char *why;

	assert_int_equal(vub_message_check_head(&h, &why), 0);
	h.size = VHOST_USER_PAYLOAD_MAX;
	assert_int_equal(vub_message_check_head(&h, &why), 0);
	h.size++;
	assert_int_equal(vub_message_check_head(&h, &why), -EPROTO);
	h = (struct vhost_user_header){ 1, VHOST_USER_VERSION | VHOST_USER_REPLY, 0 };
	assert_int_equal(vub_message_check_head(&h, &why), -EPROTO);
	h.flags = 2;
	assert_int_equal(vub_message_check_head(&h, &why), -EPROTO);
}

static void v12_features_are_needed(void **state)
{
	for (unsigned i = 0; i < ARRAY_SIZE(good); i++) {
		const struct good *g = &good[i];
		uint64_t bit = g->feature < 0 ? 0 : 1ULL << g->feature;

		assert_int_equal(check(g->request, g->size, g->fds, bit), 0);
		assert_int_equal(check(g->request, g->size, g->fds, ~bit), bit ? -EPROTO : 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(v11_sizes_and_descriptors),
		cmocka_unit_test(v11_numbers_in_the_payload),
		cmocka_unit_test(v11_heads),
		cmocka_unit_test(v12_features_are_needed),
	};

	return cmocka_run_group_tests_name("vub_message", tests, NULL, NULL);
}
