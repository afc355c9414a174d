/* SPDX-License-Identifier: MIT */
/* Each test runs with openat2(2) and without. The tree:
 *	home/img        home/sub/base       home/in -> sub/base     home/out -> ../other/secret
 *	home/dots -> ../home/sub            home/pipe               other/secret
 *	home-twin/file                                                                          */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/err.h"
#include "ctl/confine.h"

static char top[] = "/tmp/byre-confine-XXXXXX";
static struct confine *c;
static struct err err;

static const char *at(const char *rel)
{
	static char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/%s", top, rel);
	return path;
}

static void make_file(const char *rel)
{
	int fd = open(at(rel), O_CREAT | O_WRONLY, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, rel, strlen(rel)), (ssize_t)strlen(rel));
	close(fd);
}

static int make_tree(void **state)
{
	assert_non_null(mkdtemp(top));
	mkdir(at("home"), 0700);
	mkdir(at("home/sub"), 0700);
	mkdir(at("other"), 0700);
	mkdir(at("home-twin"), 0700);
	make_file("home/img");
	make_file("home/sub/base");
	make_file("other/secret");
	make_file("home-twin/file");
	assert_int_equal(symlink("sub/base", at("home/in")), 0);
	assert_int_equal(symlink("../other/secret", at("home/out")), 0);
	assert_int_equal(symlink("../home/sub", at("home/dots")), 0);
	assert_int_equal(mkfifo(at("home/pipe"), 0600), 0);
	return 0;
}

static int remove_tree(void **state)
{
	static const char *const all[] = {
		"home/pipe", "home/dots", "home/out", "home/in", "home-twin/file", "other/secret",
		"home/sub/base", "home/img", "home/sub", "home", "other", "home-twin",
	};

	for (unsigned i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		remove(at(all[i]));
	return rmdir(top);
}

static int set_up(void **state)
{
	err = (struct err) { 0 };
	c = confine_new();
	return confine_allow(c, at("home"), &err);
}

static int tear_down(void **state)
{
	confine_free(c);
	confine_without_openat2(false);
	return 0;
}

static int open_it(const char *rel)
{
	return confine_open(c, at(rel), O_RDONLY, "backing file", "top.qcow2", &err);
}

static void must_open(const char *rel, const char *is)
{
	char text[64] = "";
	int fd = open_it(rel);

	if (fd < 0)
		print_error("%s\n", err.text);
	assert_true(fd >= 0);
	assert_true(read(fd, text, sizeof(text) - 1) > 0);
	assert_string_equal(text, is);
	assert_false(fcntl(fd, F_GETFL) & O_NONBLOCK);
	assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	close(fd);
}

static void a1_what_lies_below_opens(void **state)
{
	for (int without = 0; without < 2; without++) {
		confine_without_openat2(without);
		must_open("home/img", "home/img");
		must_open("home/sub/base", "home/sub/base");
		must_open("home/in", "home/sub/base");
		must_open("home/dots/base", "home/sub/base");
		must_open("home/sub/../img", "home/img");
		must_open("other/../home/./img", "home/img");
	}
}

static void a1_what_lies_elsewhere_does_not(void **state)
{
	static const char *const elsewhere[] = {
		"other/secret", "home/../other/secret", "home/out", "home-twin/file", "home",
	};

	for (int without = 0; without < 2; without++) {
		confine_without_openat2(without);
		for (unsigned i = 0; i < sizeof(elsewhere) / sizeof(elsewhere[0]); i++)
			assert_int_equal(open_it(elsewhere[i]), -EPERM);
	}
	assert_int_equal(open_it("home/out"), -EPERM);
	assert_non_null(strstr(err.text, "home/out"));
	assert_non_null(strstr(err.text, "'top.qcow2'"));
	assert_non_null(strstr(err.text, "other/secret"));
	assert_non_null(strstr(err.hint, "use --allow DIR to permit it"));
	assert_non_null(strstr(err.hint, "/other'"));
}

static void a1_an_allowed_folder_opens(void **state)
{
	assert_int_equal(confine_allow(c, at("other"), &err), 0);
	for (int without = 0; without < 2; without++) {
		confine_without_openat2(without);
		must_open("other/secret", "other/secret");
		must_open("home/out", "other/secret");
		must_open("home/img", "home/img");
		assert_int_equal(open_it("home-twin/file"), -EPERM);
	}
}

static void a1_the_root_folder_allows_all(void **state)
{
	assert_int_equal(confine_allow(c, "/", &err), 0);
	for (int without = 0; without < 2; without++) {
		confine_without_openat2(without);
		must_open("home-twin/file", "home-twin/file");
	}
}

static void what_is_missing_or_no_file_is_an_error(void **state)
{
	for (int without = 0; without < 2; without++) {
		confine_without_openat2(without);
		assert_int_equal(open_it("home/none"), -ENOENT);
		assert_int_equal(open_it("home/sub"), -EINVAL);
		assert_int_equal(open_it("home/pipe"), -EINVAL);        /* and does not hang */
	}
	assert_int_equal(confine_allow(c, at("none"), &err), -ENOENT);
	assert_int_equal(confine_allow(c, at("home/img"), &err), -ENOTDIR);
}

static void move(const char *from, const char *to)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/%s", top, from);
	assert_int_equal(rename(path, at(to)), 0);
}

/* Between check and opening, a folder on the way becomes a link. Here the two see different
 * trees: the check walks the path, the opening starts from the root's descriptor, which is
 * "moved" by then. */
static void a2_no_link_is_followed_after_the_check(void **state)
{
	make_file("other/base");
	for (int without = 0; without < 2; without++) {
		confine_without_openat2(without);
		move("home", "moved");
		mkdir(at("home"), 0700);
		mkdir(at("home/sub"), 0700);
		make_file("home/sub/base");
		make_file("home/last");
		move("moved/sub", "moved/sub2");
		assert_int_equal(symlink("../other", at("moved/sub")), 0);
		assert_int_equal(symlink("../other/base", at("moved/last")), 0);

		assert_int_equal(open_it("home/sub/base"), without ? -ENOTDIR : -ELOOP);
		assert_int_equal(open_it("home/last"), -ELOOP);

		remove(at("moved/last"));
		remove(at("moved/sub"));
		move("moved/sub2", "moved/sub");
		remove(at("home/last"));
		remove(at("home/sub/base"));
		remove(at("home/sub"));
		remove(at("home"));
		move("moved", "home");
	}
	remove(at("other/base"));
}

static void a3_a_root_stays_what_it_was(void **state)
{
	for (int without = 0; without < 2; without++) {
		confine_without_openat2(without);
		/* Another folder takes the name: what is opened still comes from the first. */
		move("home", "moved");
		mkdir(at("home"), 0700);
		make_file("home/fresh");
		make_file("home/img");
		must_open("home/img", "home/img");
		assert_int_equal(open_it("home/fresh"), -ENOENT);
		remove(at("home/fresh"));
		remove(at("home/img"));
		remove(at("home"));
		move("moved", "home");
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a1_what_lies_below_opens, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a1_what_lies_elsewhere_does_not, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a1_an_allowed_folder_opens, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a1_the_root_folder_allows_all, set_up, tear_down),
		cmocka_unit_test_setup_teardown(what_is_missing_or_no_file_is_an_error, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(a2_no_link_is_followed_after_the_check, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(a3_a_root_stays_what_it_was, set_up, tear_down),
	};

	return cmocka_run_group_tests_name("confine", tests, make_tree, remove_tree);
}
