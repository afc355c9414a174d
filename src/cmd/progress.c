/* SPDX-License-Identifier: MIT */
/* cmd/progress.c - how far a tool is (tool.h): qemu-img's percentage, or a bar on a terminal. A
 * tool that shows nothing says it when SIGUSR1 asks, as qemu-img's do. */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/size.h"
#include "cmd/tool.h"

enum { BAR_WIDTH = 30, BAR_INTERVAL_MS = 100 };

static volatile sig_atomic_t is_asked;

static void on_ask(int sig)
{
	is_asked = 1;
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * NS_PER_SEC + (uint64_t)t.tv_nsec;
}

static void show_percent(double percent)
{
	printf("    (%3.2f/100%%)\r", percent);
	fflush(stdout);
}

static void show_bar(struct progress *p, double percent, uint64_t done, uint64_t total,
		     uint64_t now)
{
	unsigned filled = (unsigned)(percent * BAR_WIDTH / 100);
	char bar[BAR_WIDTH + 1], amount[16], rate[16], left[40] = "";
	uint64_t elapsed = MAX(now - p->start_ns, 1ULL), rest_s = 0;

	memset(bar, '.', BAR_WIDTH);
	memset(bar, '#', MIN(filled, (unsigned)BAR_WIDTH));
	bar[BAR_WIDTH] = '\0';
	size_format(done, amount, sizeof(amount));
	size_format((uint64_t)((double)done * (double)NS_PER_SEC / (double)elapsed), rate,
		    sizeof(rate));
	if (done && done < total && elapsed > NS_PER_SEC) {
		rest_s = (uint64_t)((double)(total - done) / (double)done * (double)elapsed /
				    (double)NS_PER_SEC) + 1;
		snprintf(left, sizeof(left), ", %" PRIu64 ":%02u left", rest_s / 60,
			 (unsigned)(rest_s % 60));
	}
	printf("  [%s] %5.1f %%  %s, %s/s%s   \r", bar, percent, amount, rate, left);
	fflush(stdout);
	p->shown_ns = now;
}

void progress_start(struct progress *p, bool is_shown, double step)
{
	*p = (struct progress) {
		.is_shown = is_shown,
		.is_bar = is_shown && !tool_is_qemu_img() && isatty(STDOUT_FILENO),
		.step = step,
		.start_ns = now_ns(),
	};
	if (is_shown && !p->is_bar)
		show_percent(0);
	signal(SIGUSR1, on_ask);
}

void progress_set(struct progress *p, uint64_t done, uint64_t total)
{
	double percent = total ? (double)done * 100 / (double)total : 100;
	uint64_t now;

	if (is_asked && !p->is_shown)
		fprintf(stderr, "    (%3.2f/100%%)\n", percent);
	is_asked = 0;
	if (!p->is_shown)
		return;
	if (!p->is_bar) {
		if (percent - p->shown < p->step && percent < 100)
			return;
		show_percent(percent);
		p->shown = percent;
		return;
	}
	now = now_ns();
	p->shown = percent;
	p->total = total;
	if (now - p->shown_ns >= BAR_INTERVAL_MS * NS_PER_MS)
		show_bar(p, percent, done, total, now);
}

void progress_end(struct progress *p, bool is_complete)
{
	if (!p->is_shown)
		return;
	if (is_complete && p->is_bar)
		show_bar(p, 100, p->total, p->total, now_ns());
	else if (is_complete)
		show_percent(100);
	putchar('\n');
	fflush(stdout);
	p->is_shown = false;
}
