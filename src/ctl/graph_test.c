/* SPDX-License-Identifier: MIT */
/* Images are written here by hand: empty qcow2 images of DISK_BYTES that name what a test wants. */
#include <dirent.h>
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
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bits.h"
#include "base/endian.h"
#include "base/err.h"
#include "base/log.h"
#include "blk/blk.h"
#include "ctl/graph.h"
#include "loop/fiber.h"
#include "loop/work.h"

enum { CLUSTER = 65536, DISK_BYTES = 1 << 20, DEEP = 300 };

static char top[] = "/tmp/byre-graph-XXXXXX";
static struct workers *workers;
static struct loop *loop;
static struct err err;

static const char *at(const char *rel)
{
	static char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/%s", top, rel);
	return path;
}

static void write_file(const char *rel, const void *head, size_t n, uint64_t size)
{
	int fd = open(at(rel), O_CREAT | O_TRUNC | O_WRONLY, 0600);

	assert_true(fd >= 0);
	assert_int_equal(pwrite(fd, head, n, 0), (ssize_t)n);
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	close(fd);
}

static size_t put_extension(uint8_t *h, size_t pos, uint32_t type, const char *text)
{
	size_t len = text ? strlen(text) : 0;

	be32_store(h + pos, type);
	be32_store(h + pos + 4, (uint32_t)len);
	if (len)
		memcpy(h + pos + 8, text, len);
	return align_up(pos + 8 + len, 8);
}

/* An empty image. Any of the names may be NULL. */
static void write_qcow2(const char *rel, const char *backing, const char *format, const char *data)
{
	uint8_t h[4096] = "QFI\xfb";
	size_t pos = 104;

	be32_store(h + 4, 3);                           /* version */
	be32_store(h + 20, 16);                         /* cluster bits */
	be64_store(h + 24, DISK_BYTES);
	be32_store(h + 36, 1);                          /* L1 entries */
	be64_store(h + 40, 3 * CLUSTER);                /* L1 */
	be64_store(h + 48, 1 * CLUSTER);                /* refcount table */
	be32_store(h + 56, 1);                          /* its clusters */
	be64_store(h + 72, data ? 4 : 0);               /* incompatible: external data file */
	be32_store(h + 96, 4);                          /* refcounts of 16 bits */
	be32_store(h + 100, 104);                       /* header length */
	if (format)
		pos = put_extension(h, pos, 0xe2792aca, format);
	if (data)
		pos = put_extension(h, pos, 0x44415441, data);
	pos = put_extension(h, pos, 0, NULL);
	if (backing) {
		be64_store(h + 8, pos);
		be32_store(h + 16, (uint32_t)strlen(backing));
		memcpy(h + pos, backing, strlen(backing));
	}
	write_file(rel, h, sizeof(h), 4 * CLUSTER);
}

/* ---- calls into the loop ---- */

struct call {
	struct graph_opts opts;
	struct graph g;
	struct err *err;
	uint64_t off;
	char buf[16];
	bool is_write;
};

static int open_body(void *arg)
{
	struct call *c = arg;

	return graph_open_wait(&c->opts, loop, &c->g, c->err);
}

static int close_body(void *arg)
{
	struct call *c = arg;

	return graph_close_wait(&c->g, c->err);
}

static int io_body(void *arg)
{
	struct call *c = arg;
	struct chan *ch;
	int rc = chan_get_wait(c->g.top, &ch, c->err);

	if (rc)
		return rc;
	rc = c->is_write ? chan_write_wait(ch, c->off, c->buf, sizeof(c->buf)) :
			   chan_read_wait(ch, c->off, c->buf, sizeof(c->buf));
	chan_put_wait(ch);
	return rc;
}

/* Opens the image @rel as c->opts says. */
static int open_graph(struct call *c, const char *rel)
{
	static char path[PATH_MAX];

	strcpy(path, at(rel));
	c->opts.path = path;
	c->opts.cache_bytes = 1 * MiB;
	c->err = &err;
	err = (struct err) { 0 };
	return loop_call(loop, open_body, c);
}

static void must_open(struct call *c, const char *rel)
{
	int rc = open_graph(c, rel);

	if (rc)
		print_error("%s: %s\n", rel, err.text);
	assert_int_equal(rc, 0);
}

static void close_graph(struct call *c)
{
	assert_int_equal(loop_call(loop, close_body, c), 0);
	assert_null(c->g.top);
}

static unsigned open_descriptors(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

/* Nothing may be left open by an image that is refused. */
static void must_fail(struct call *c, const char *rel, int rc, const char *says)
{
	unsigned before = open_descriptors();

	assert_int_equal(open_graph(c, rel), rc);
	if (!strstr(err.text, says))
		fail_msg("'%s' does not say '%s'", err.text, says);
	assert_int_equal(open_descriptors(), before);
}

static void must_read(struct call *c, uint64_t off, const char *want)
{
	c->off = off;
	c->is_write = false;
	assert_int_equal(loop_call(loop, io_body, c), 0);
	assert_memory_equal(c->buf, want, strlen(want));
}

static int write_some(struct call *c, uint64_t off, const char *what)
{
	c->off = off;
	c->is_write = true;
	memset(c->buf, 0, sizeof(c->buf));
	memcpy(c->buf, what, strlen(what));
	return loop_call(loop, io_body, c);
}

/* ---- tests ---- */

static void expect_name(const char *asker, const char *name, const char *want)
{
	char *path = NULL;

	assert_int_equal(graph_resolve_name("backing file", asker, name, &path, &err), 0);
	assert_string_equal(path, want);
	free(path);
}

static void names_are_relative_to_who_says_them(void **state)
{
	expect_name("/vm/a.qcow2", "base", "/vm/base");
	expect_name("/vm/a.qcow2", "../t/base", "/vm/../t/base");
	expect_name("/vm/a.qcow2", "/t/base", "/t/base");
	expect_name("a.qcow2", "sub/base", "sub/base");
	expect_name("/a", "b", "/b");
	expect_name("d/a", "file:b", "d/b");
	expect_name("d/a", "file:/b", "/b");
	expect_name("d/a", "file:///b", "///b");
	expect_name("d/a", "./x:y", "d/./x:y");
	expect_name("d/a", "/x:y", "/x:y");
	expect_name("d/a", "nbd://h/x", "nbd://h/x");
	expect_name("nbd://h/x", "/b", "/b");
	expect_name("nbd://h/x", "nbd://h/y", "nbd://h/y");
}

static void names_that_are_no_files_are_refused(void **state)
{
	static const char *const names[] = {
		"nbd+x://host/x", "rbd:pool/image", "json:{\"driver\":\"file\"}", "ssh://h/x",
		"x:y",
	};
	char *path = NULL;

	for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
		err = (struct err) { 0 };
		assert_int_equal(graph_resolve_name("backing file", "top", names[i], &path, &err),
				 -ENOTSUP);
		assert_non_null(strstr(err.text, names[i]));
		assert_non_null(strstr(err.text, "'top'"));
	}
	assert_int_equal(graph_resolve_name("backing file", "top", "file:", &path, &err), -EINVAL);
	assert_int_equal(graph_resolve_name("backing file", "nbd://h/x", "a", &path, &err),
			 -EINVAL);
	assert_null(path);
}

static void a_chain_is_followed_through_folders(void **state)
{
	struct call c = { 0 };

	mkdir(at("sub"), 0700);
	write_file("sub/base.raw", "from the base", 13, DISK_BYTES);
	write_qcow2("sub/mid.qcow2", "base.raw", "raw", NULL);
	write_qcow2("top.qcow2", "sub/mid.qcow2", "qcow2", NULL);
	must_open(&c, "top.qcow2");
	assert_int_equal(c.g.layers, 3);
	assert_string_equal(c.g.top->ops->name, "qcow2");
	assert_int_equal(c.g.top->size, DISK_BYTES);
	must_read(&c, 0, "from the base");
	close_graph(&c);

	write_qcow2("unsaid.qcow2", "sub/mid.qcow2", NULL, NULL);       /* format probed */
	must_open(&c, "unsaid.qcow2");
	assert_int_equal(c.g.layers, 3);
	must_read(&c, 0, "from the base");
	close_graph(&c);
}

static void the_format_that_is_said_counts(void **state)
{
	struct call c = { 0 };

	write_qcow2("inner.qcow2", NULL, NULL, NULL);
	write_qcow2("outer.qcow2", "inner.qcow2", "raw", NULL);
	must_open(&c, "outer.qcow2");
	must_read(&c, 0, "QFI\xfb");
	close_graph(&c);

	c.opts.format = "raw";
	must_open(&c, "inner.qcow2");
	assert_int_equal(c.g.top->size, 4 * CLUSTER);
	close_graph(&c);
	c.opts.format = NULL;

	write_qcow2("vmdk.qcow2", "inner.qcow2", "vmdk", NULL);
	must_fail(&c, "vmdk.qcow2", -ENOTSUP, "'vmdk'");
	write_file("real.vmdk", "KDMV\1\0\0\0", 8, DISK_BYTES);
	must_fail(&c, "real.vmdk", -ENOTSUP, "vmdk");
	assert_non_null(strstr(err.hint, "-f raw"));
}

static void g1_a_chain_that_returns_is_an_error(void **state)
{
	struct call c = { 0 };

	write_qcow2("self.qcow2", "self.qcow2", "qcow2", NULL);
	must_fail(&c, "self.qcow2", -ELOOP, "self.qcow2");
	write_qcow2("one.qcow2", "two.qcow2", "qcow2", NULL);
	write_qcow2("two.qcow2", "three.qcow2", "qcow2", NULL);
	write_qcow2("three.qcow2", "alias.qcow2", "qcow2", NULL);
	assert_int_equal(symlink("two.qcow2", at("alias.qcow2")), 0);
	must_fail(&c, "one.qcow2", -ELOOP, "alias.qcow2");
}

static void a_deep_chain_opens_and_closes(void **state)
{
	struct rlimit rl;
	struct call c = { 0 };
	char name[32], below[32];

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &rl), 0);
	rl.rlim_cur = rl.rlim_max;
	setrlimit(RLIMIT_NOFILE, &rl);
	write_file("d0", "bottom", 6, DISK_BYTES);
	for (int i = 1; i < DEEP; i++) {
		snprintf(name, sizeof(name), "d%d", i);
		snprintf(below, sizeof(below), "d%d", i - 1);
		write_qcow2(name, below, i == 1 ? "raw" : "qcow2", NULL);
	}
	must_open(&c, name);
	assert_int_equal(c.g.layers, DEEP);
	must_read(&c, 0, "bottom");
	close_graph(&c);
}

static void failures_in_the_middle_leave_nothing_behind(void **state)
{
	struct call c = { 0 };

	write_qcow2("m2", "gone", NULL, NULL);
	write_qcow2("m1", "m2", NULL, NULL);
	write_qcow2("m0", "m1", NULL, NULL);
	must_fail(&c, "m0", -ENOENT, "gone");
	assert_non_null(strstr(err.text, "m2"));
	write_file("m2", "QFI\xfb", 4, 512);
	assert_true(open_graph(&c, "m0") < 0);
	assert_non_null(strstr(err.text, "m1"));
	write_qcow2("m2", "/etc/passwd", "raw", NULL);
	must_fail(&c, "m0", -EPERM, "/etc/passwd");
	write_qcow2("m2", "json:{}", NULL, NULL);
	must_fail(&c, "m0", -ENOTSUP, "json:");
	must_fail(&c, "none", -ENOENT, "none");
	must_fail(&c, "sub", -EISDIR, "sub");
}

static void g2_what_an_image_names_is_not_written(void **state)
{
	struct call c = { 0 };

	write_file("data", "DATA", 4, DISK_BYTES);
	write_qcow2("with-data", NULL, NULL, "data");
	write_file("b", "B", 1, DISK_BYTES);
	write_qcow2("over", "b", "raw", NULL);
	must_open(&c, "over");
	assert_false(c.g.top->read_only);
	assert_true(c.g.top->child[CHILD_BACKING]->read_only);
	assert_true(c.g.top->child[CHILD_BACKING]->child[CHILD_FILE]->read_only);
	close_graph(&c);

	write_qcow2("with-both", "b", "raw", "data");
	must_open(&c, "with-both");
	assert_false(c.g.top->child[CHILD_DATA]->read_only);
	assert_true(c.g.top->child[CHILD_BACKING]->read_only);
	close_graph(&c);
	c.opts.read_only = true;
	must_open(&c, "with-both");
	assert_true(c.g.top->read_only);
	assert_true(c.g.top->child[CHILD_DATA]->read_only);
	assert_true(c.g.top->child[CHILD_BACKING]->read_only);
	assert_true(c.g.top->child[CHILD_BACKING]->child[CHILD_FILE]->read_only);
	must_read(&c, 0, "B");
	assert_int_equal(c.g.layers, 2);
	close_graph(&c);
	write_qcow2("no-data", NULL, NULL, "gone");
	must_fail(&c, "no-data", -ENOENT, "data file");
}

/* The image is what it was; a port holds what lies over it. */
static void writes_of_zeros_are_found_where_asked_for(void **state)
{
	struct call c = { .opts.detect_zeroes = GRAPH_ZEROES_UNMAP };

	write_file("disk.raw", "plain", 5, DISK_BYTES);
	must_open(&c, "disk.raw");
	assert_string_equal(c.g.top->ops->name, "raw");
	assert_string_equal(graph_head(&c.g)->ops->name, "detect-zeroes");
	close_graph(&c);
	c.opts.read_only = true;
	must_open(&c, "disk.raw");
	assert_ptr_equal(graph_head(&c.g), c.g.top);
	close_graph(&c);
}

static void g3_a_probed_raw_image_stays_raw(void **state)
{
	struct call c = { 0 };

	write_file("disk.raw", "plain", 5, DISK_BYTES);
	must_open(&c, "disk.raw");
	assert_string_equal(c.g.top->ops->name, "raw");
	assert_false(c.g.top->read_only);
	assert_int_equal(write_some(&c, 512, "QFI\xfb"), 0);
	assert_int_equal(write_some(&c, 0, "QFI\xfb"), -EPERM);
	close_graph(&c);

	c.opts.format = "raw";
	must_open(&c, "disk.raw");
	assert_int_equal(write_some(&c, 0, "QFI\xfb"), 0);
	close_graph(&c);

	c.opts.format = NULL;
	write_file("disk.raw", "plain", 5, DISK_BYTES);
	c.opts.read_only = true;
	must_open(&c, "disk.raw");
	assert_true(c.g.top->read_only);
	close_graph(&c);
	c.opts.snapshot = "s";
	must_fail(&c, "disk.raw", -EINVAL, "snapshots");
}

static void ignore_line(enum log_level level, const char *line)
{
}

static int set_up(void **state)
{
	struct loop_opts lo = { .backend = LOOP_AUTO };

	log_set_sink(ignore_line);
	if (!mkdtemp(top) || workers_new(2, &workers, &err))
		return -1;
	lo.workers = workers;
	return loop_new(&lo, &loop, &err);
}

static int tear_down(void **state)
{
	char command[PATH_MAX];

	loop_free(loop);
	workers_free(workers);
	log_set_sink(NULL);
	snprintf(command, sizeof(command), "rm -r '%s'", top);
	return system(command);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(names_are_relative_to_who_says_them),
		cmocka_unit_test(names_that_are_no_files_are_refused),
		cmocka_unit_test(a_chain_is_followed_through_folders),
		cmocka_unit_test(the_format_that_is_said_counts),
		cmocka_unit_test(g1_a_chain_that_returns_is_an_error),
		cmocka_unit_test(a_deep_chain_opens_and_closes),
		cmocka_unit_test(failures_in_the_middle_leave_nothing_behind),
		cmocka_unit_test(g2_what_an_image_names_is_not_written),
		cmocka_unit_test(writes_of_zeros_are_found_where_asked_for),
		cmocka_unit_test(g3_a_probed_raw_image_stays_raw),
	};

	return cmocka_run_group_tests_name("graph", tests, set_up, tear_down);
}
