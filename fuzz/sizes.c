/* SPDX-License-Identifier: MIT */
/* fuzz/sizes.c - what people write: sizes, numbers, lists of options, --image-opts, json: names, -o
 * of measure. An input is a digit for the parser, then the text.
 *
 * Also held: the same text means the same twice; a refusal has a word about why; what is shown of
 * an image's name, where that is JSON, is a name that is understood. */
#include <errno.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"
#include "base/size.h"
#include "cmd/measure_target.h"
#include "cmd/opts.h"
#include "cmd/tool.h"
#include "ctl/image_name.h"
#include "ctl/option_list.h"
#include "fuzz/fuzz.h"

enum { PARSERS = 10 };

static void note_result(uint64_t *h, int rc, const struct err *err)
{
	FUZZ_CHECK(!rc || err->text[0], "error %d without a word", rc);
	*h = fuzz_hash(*h, &rc, sizeof(rc));
	if (rc)
		*h = fuzz_hash(*h, err->text, strlen(err->text));
}

static void note_name(uint64_t *h, const struct image_name *n)
{
	FUZZ_CHECK(n->path, "no path");
	for (unsigned i = 0; n; n = n->backing, i++) {
		FUZZ_CHECK(i <= IMAGE_NAME_DEPTH_MAX, "deep");
		if (n->path)
			*h = fuzz_hash(*h, n->path, strlen(n->path));
		if (n->format)
			*h = fuzz_hash(*h, n->format, strlen(n->format));
	}
}

/* What stands for an image in listings can be given as its name again. */
static void check_shown(const struct image_name *n)
{
	struct image_name again = { 0 };
	struct err err = { 0 };

	if (!n->shown || strncmp(n->shown, "json:", 5))
		return;
	FUZZ_CHECK(!image_name_parse(n->shown, &again, &err), "%s: %s", n->shown, err.text);
	/* What is no UTF-8 cannot be shown as it is. */
	FUZZ_CHECK(strstr(again.path, "\xef\xbf\xbd") || !strcmp(again.path, n->path),
		   "'%s' is '%s'", again.path, n->path);
	image_name_fini(&again);
}

static void image_name(uint64_t *h, const char *text, int is_options)
{
	struct image_name n = { 0 };
	struct err err = { 0 };
	char *warning = NULL;
	int rc = is_options ? image_name_parse_options(text, &n, &warning, &err)
			    : image_name_parse(text, &n, &err);

	note_result(h, rc, &err);
	if (!rc) {
		note_name(h, &n);
		check_shown(&n);
	}
	free(warning);
	image_name_fini(&n);
}

static void option_list(uint64_t *h, const char *text, int is_json)
{
	struct option_list l = { 0 };
	struct err err = { 0 };
	int rc = is_json ? option_list_parse_json(text, &l, &err)
			 : option_list_parse(text, "driver", &l, &err);

	note_result(h, rc, &err);
	FUZZ_CHECK(l.n <= OPTIONS_MAX && (!rc || !l.n), "%u options", l.n);
	for (unsigned i = 0; i < l.n; i++) {
		bool b = false;
		uint64_t v = 0;

		err = (struct err){ 0 };
		rc = option_size(&l.items[i], "", &v, &err);
		FUZZ_CHECK(!rc || err.text[0], "without a word");
		err = (struct err){ 0 };
		rc = option_bool(&l.items[i], "", &b, &err);
		FUZZ_CHECK(!rc || err.text[0], "without a word");
		*h = fuzz_hash(*h, l.items[i].key, strlen(l.items[i].key));
		*h = fuzz_hash(*h, &v, sizeof(v));
	}
	option_list_fini(&l);
}

static void number(uint64_t *h, const char *text)
{
	struct err err = { 0 };
	char shown[16];
	uint64_t v = 0;
	int rc = size_parse(text, "size", &v, &err);

	note_result(h, rc, &err);
	FUZZ_CHECK(rc || v <= INT64_MAX, "%llu", (unsigned long long)v);
	size_format(v, shown, sizeof(shown));
	FUZZ_CHECK(memchr(shown, 0, sizeof(shown)), "too long");
	err = (struct err){ 0 };
	rc = number_parse(text, "number", 3, 1 << 20, &v, &err);
	note_result(h, rc, &err);
	FUZZ_CHECK(rc || (v >= 3 && v <= 1 << 20), "%llu", (unsigned long long)v);
	rc = tool_size(text, &v);
	*h = fuzz_hash(*h, &rc, sizeof(rc));
}

/* Tools print what they refuse; nobody wants to read it here. */
static FILE *silence(void)
{
	static FILE *nowhere;
	FILE *real = stderr;

	if (!nowhere)
		nowhere = fopen("/dev/null", "we");
	FUZZ_CHECK(nowhere, "/dev/null");
	stderr = nowhere;
	return real;
}

static void measure(uint64_t *h, const char *text, const char *format)
{
	struct measure_target t = { 0 };
	FILE *real = silence();
	int rc = tool_options_valid(text) ? measure_target_parse(format, text, &t) : 0;

	stderr = real;
	*h = fuzz_hash(*h, &rc, sizeof(rc));
	*h = fuzz_hash(*h, &t.layout.cluster, sizeof(t.layout.cluster));
}

static uint64_t parse(char which, const char *text)
{
	static const char *const words[] = { "format", "image-opts", "snapshot", "output", "" };
	uint64_t h = 0;

	switch ((unsigned)which % PARSERS) {
	case 0: number(&h, text); break;
	case 1: image_name(&h, text, 0); break;
	case 2: image_name(&h, text, 1); break;
	case 3: option_list(&h, text, 0); break;
	case 4: option_list(&h, text, 1); break;
	case 5: measure(&h, text, "qcow2"); break;
	case 6: measure(&h, text, "raw"); break;
	case 7: measure(&h, "size=1", text); break;
	case 8: opts_suggest(text, words, ARRAY_SIZE(words)); break;
	default:
		FUZZ_CHECK(image_name_protocol_len(text) <= strlen(text), "longer than it is");
		image_name_check_format(text, NULL);
	}
	return h;
}

static void run(const uint8_t *data, size_t size)
{
	char *text;
	uint64_t h;

	if (!size)
		return;
	text = malloc(size);
	FUZZ_CHECK(text, "no memory");
	memcpy(text, data + 1, size - 1);
	text[size - 1] = 0;
	h = parse((char)data[0], text);
	FUZZ_CHECK(parse((char)data[0], text) == h, "another answer");
	free(text);
}

/* ---- mutations ---- */

static const char *const tokens[] = {
	"json:", "{", "}", "[", "]", ":", ",", ",,", "=", "\"", "\\u0041", "\\ud800", "\\\\", "'",
	"null", "true", "false", "-1", "1e400", "0x", "9223372036854775807",
	"9223372036854775808", "18446744073709551616", "1.5", "1.99999999999999999999k", "k", "E",
	"driver", "driver=qcow2", "file.filename=", "filename", "file", "backing", "data-file",
	"\"driver\":\"qcow2\"", "\"file\":{\"driver\":\"file\",\"filename\":\"a\"}",
	"\"backing\":{", "backing.backing.file.filename=", "offset=512", "size=1M",
	"cache.direct=on", "read-only=off", "force-share=on", "locking=auto", "nbd://", "file:",
	"cluster_size=", "extended_l2=on", "preallocation=", "compat=0.10", "refcount_bits=",
	"l2-cache-size=", ".", "..", "[0]", ".0.", " ", "\t", "\n",
};

static size_t mutate(uint8_t *data, size_t size, size_t max, struct prng *p)
{
	const char *token = tokens[prng_below(p, ARRAY_SIZE(tokens))];
	size_t n = strlen(token), at;

	if (size < 2 || prng_below(p, 2) || size + n > max)
		return fuzz_mutate_bytes(data, size, max, p);
	if (prng_below(p, 16) == 0)
		data[0] = (uint8_t)('0' + prng_below(p, PARSERS));
	at = 1 + prng_below(p, size);
	memmove(data + at + n, data + at, size - at);
	memcpy(data + at, token, n);
	return size + n;
}

const struct fuzz_target fuzz_target = { "sizes", 4096, run, mutate };
