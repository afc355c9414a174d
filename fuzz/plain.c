/* SPDX-License-Identifier: MIT */
/* fuzz/plain.c - runs a target without libFuzzer: files, then seeded mutations of them.
 *
 * usage: fuzz-TARGET-plain [-n MUTATIONS] [-s SEED] [-t SECONDS] FILE|DIR...
 *
 * The input on which it dies is written to crash-TARGET in the current folder. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/bits.h"
#include "fuzz/fuzz.h"

struct input {
	uint8_t *data;                  /* owned */
	size_t size;
};

static struct input *inputs;            /* the files */
static size_t ninputs;
static struct input current;            /* what runs */
static char crash_name[64];

void __sanitizer_set_death_callback(void (*fn)(void)) __attribute__((weak));
int __sanitizer_install_malloc_and_free_hooks(void (*allocated)(const volatile void *, size_t),
					      void (*freed)(const volatile void *))
	__attribute__((weak));
size_t __sanitizer_get_current_allocated_bytes(void) __attribute__((weak));

size_t fuzz_mutate_bytes(uint8_t *data, size_t size, size_t max, struct prng *p)
{
	return fuzz_mutate_blindly(data, size, max, p);
}

/* ---- dying ---- */

static void keep_input(void)
{
	int fd = open(crash_name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

	if (fd < 0 || write(fd, current.data, current.size) < 0)
		_exit(3);
	close(fd);
}

static void on_signal(int sig)
{
	static const char hang[] = "takes too long\n";

	if (sig == SIGALRM && write(STDERR_FILENO, hang, sizeof(hang) - 1) < 0)
		_exit(3);
	keep_input();
	signal(sig, SIG_DFL);
	raise(sig == SIGALRM ? SIGABRT : sig);
}

static void on_malloc(const volatile void *p, size_t n)
{
	if (n > FUZZ_MEMORY_MAX || __sanitizer_get_current_allocated_bytes() > FUZZ_MEMORY_MAX)
		abort();
}

static void on_free(const volatile void *p)
{
}

static void prepare(void)
{
	static const int signals[] = { SIGABRT, SIGALRM, SIGFPE, SIGILL };

	snprintf(crash_name, sizeof(crash_name), "crash-%s", fuzz_target.name);
	for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
		signal(signals[i], on_signal);
	if (__sanitizer_set_death_callback) {
		__sanitizer_set_death_callback(keep_input);
		__sanitizer_install_malloc_and_free_hooks(on_malloc, on_free);
	} else {
		signal(SIGSEGV, on_signal);
		signal(SIGBUS, on_signal);
		setrlimit(RLIMIT_DATA, &(struct rlimit){ 2 * (rlim_t)FUZZ_MEMORY_MAX,
							 2 * (rlim_t)FUZZ_MEMORY_MAX });
	}
}

/* ---- files ---- */

static void fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(2);
}

static void load_file(const char *path, size_t size)
{
	FILE *f = fopen(path, "rb");
	struct input in = { malloc(MAX(size, (size_t)1)), size };

	inputs = realloc(inputs, (ninputs + 1) * sizeof(*inputs));
	if (!f || !in.data || !inputs || fread(in.data, 1, size, f) != size)
		fail(path);
	fclose(f);
	inputs[ninputs++] = in;
}

static void load(const char *path)
{
	struct dirent **names;
	struct stat st;

	if (stat(path, &st))
		fail(path);
	if (!S_ISDIR(st.st_mode)) {
		load_file(path, MIN((size_t)st.st_size, fuzz_target.max_size));
		return;
	}
	int n = scandir(path, &names, NULL, alphasort);

	if (n < 0)
		fail(path);
	for (int i = 0; i < n; i++) {
		char inner[4096];

		snprintf(inner, sizeof(inner), "%s/%s", path, names[i]->d_name);
		if (names[i]->d_name[0] != '.')
			load(inner);
		free(names[i]);
	}
	free(names);
}

/* ---- running ---- */

static void run_bytes(const uint8_t *data, size_t size)
{
	uint8_t *copy = malloc(MAX(size, (size_t)1));   /* of exactly this size, for ASan */

	if (!copy)
		fail("memory");
	memcpy(copy, data, size);
	current = (struct input){ copy, size };
	alarm(FUZZ_SECONDS_MAX);
	fuzz_target.run(copy, size);
	alarm(0);
	current = (struct input){ 0 };
	free(copy);
}

/* What mutation number @i of @seed is does not depend on those before it. */
static void run_mutation(uint64_t seed, uint64_t i, uint8_t *buf)
{
	struct prng p = { mix64(seed) ^ mix64(i + 1) };
	const struct input *in = &inputs[prng_below(&p, ninputs)];
	size_t size = in->size;

	memcpy(buf, in->data, size);
	for (uint64_t k = 1 + prng_below(&p, 4); k; k--)
		size = fuzz_target.mutate(buf, size, fuzz_target.max_size, &p);
	run_bytes(buf, size);
}

int main(int argc, char **argv)
{
	uint64_t mutations = 0, seed = 1, i;
	time_t end = 0;
	int c;

	while ((c = getopt(argc, argv, "n:s:t:")) != -1) {
		if (c == 'n')
			mutations = strtoull(optarg, NULL, 0);
		else if (c == 's')
			seed = strtoull(optarg, NULL, 0);
		else if (c == 't')
			end = time(NULL) + atoi(optarg);
		else
			return 2;
	}
	prepare();
	while (optind < argc)
		load(argv[optind++]);
	for (i = 0; i < ninputs; i++)
		run_bytes(inputs[i].data, inputs[i].size);
	uint8_t *buf = malloc(fuzz_target.max_size);

	if (!buf || !ninputs)
		fail("no inputs");
	for (i = 0; i < mutations && (!end || time(NULL) < end); i++)
		run_mutation(seed, i, buf);
	printf("%s: %zu files, %llu mutations of seed %llu\n", fuzz_target.name, ninputs,
	       (unsigned long long)i, (unsigned long long)seed);
	free(buf);
	for (i = 0; i < ninputs; i++)
		free(inputs[i].data);
	free(inputs);
	return 0;
}
