/* SPDX-License-Identifier: MIT */
#include "fmt/raw/probe.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bits.h"
#include "base/prng.h"

static void expect(const char *format, const void *bytes, size_t len, size_t at)
{
	char head[PROBE_BYTES] = { 0 };

	memcpy(head + at, bytes, len);
	assert_string_equal(probe_format(head, sizeof(head)), format);
	/* Not in what is not there. */
	assert_string_equal(probe_format(head, at + len - 1), "raw");
}

#define EXPECT(format, text) expect(format, text, sizeof(text) - 1, 0)

static void formats_are_known_by_their_magic(void **state)
{
	EXPECT("qcow2", "QFI\xfb\0\0\0\2");
	EXPECT("qcow2", "QFI\xfb\0\0\0\3");
	EXPECT("qcow2", "QFI\xfb\0\0\0\x63");
	EXPECT("qcow", "QFI\xfb\0\0\0\1");
	expect("qed", "QED\0", 4, 0);
	EXPECT("vmdk", "KDMV");
	EXPECT("vmdk", "COWD");
	EXPECT("vmdk", "# Disk DescriptorFile");
	EXPECT("vmdk", "# anything\n\n  \nversion=");
	expect("vdi", "\x7f\x10\xda\xbe", 4, 64);
	EXPECT("vhdx", "vhdxfile");
	EXPECT("vpc", "conectix");
	EXPECT("luks", "LUKS\xba\xbe");
	EXPECT("parallels", "WithoutFreeSpace");
	EXPECT("parallels", "WithouFreSpacExt");
	EXPECT("bochs", "Bochs Virtual HD Image");
	EXPECT("raw", "#!/bin/sh\necho version=1\n");
	EXPECT("raw", "");
}

static void any_bytes_give_an_answer(void **state)
{
	struct prng p = { 1 };
	char head[PROBE_BYTES];

	for (unsigned i = 0; i < 20000; i++) {
		size_t len = prng_below(&p, sizeof(head) + 1);

		for (size_t k = 0; k < len; k++)
			head[k] = "#\n \0vQ"[prng_below(&p, 6)];
		char *exact = malloc(len + 1);  /* a byte more would be seen by ASan */

		memcpy(exact + 1, head, len);
		assert_non_null(probe_format(exact + 1, len));
		free(exact);
	}
}

/* What qemu-img makes is found as what qemu-img was asked for. */
static void qemu_img_agrees(void **state)
{
	static const char *const formats[] = { "qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx", "vpc",
					       "parallels" };

	char dir[] = "/tmp/probe_test.XXXXXX", path[64];

	if (system("qemu-img --version >/dev/null 2>&1"))
		skip();
	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/img", dir);
	for (unsigned i = 0; i < ARRAY_SIZE(formats); i++) {
		char cmd[256], head[PROBE_BYTES] = { 0 };
		FILE *f;

		snprintf(cmd, sizeof(cmd), "qemu-img create -q -f %s %s 1M 2>/dev/null", formats[i],
			 path);
		if (system(cmd))
			continue;
		f = fopen(path, "rb");
		assert_non_null(f);
		size_t len = fread(head, 1, sizeof(head), f);

		fclose(f);
		unlink(path);
		assert_string_equal(probe_format(head, len), formats[i]);
	}
	rmdir(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(formats_are_known_by_their_magic),
		cmocka_unit_test(any_bytes_give_an_answer),
		cmocka_unit_test(qemu_img_agrees),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
