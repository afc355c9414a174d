/* SPDX-License-Identifier: MIT */
/* cmd/cmd_serve.c - `byre serve`: from the command line to a clean end.
 *
 * The main thread is the control thread: it starts all, then sleeps until a signal comes or
 * statistics are due. SIGTERM and SIGINT end the daemon cleanly, a second SIGINT at once; SIGHUP
 * asks for the sizes of the disks again. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/err.h"
#include "base/log.h"
#include "base/size.h"
#include "cmd/cmd.h"
#include "cmd/serve.h"
#include "cmd/serve_idle.h"
#include "cmd/serve_stats.h"
#include "ctl/systemd.h"

static void print_help(void)
{
	puts("usage: byre serve [OPTION]... [IMAGE_OPTION]... IMAGE [[IMAGE_OPTION]... IMAGE]...\n"
	     "\nServes disk images over NBD, or to virtual machines over vhost-user, until\n"
	     "SIGTERM or Ctrl-C.\n");
	serve_opts_print();
	puts("\nExit status: 0 ended by a signal, all written back; 1 an error;\n"
	     "2 a wrong command line.");
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_SEC + (uint64_t)ts.tv_nsec;
}

/* Signals become a descriptor before there are threads, which all inherit the mask. */
static int take_signals(int *ret_fd, struct err *err)
{
	sigset_t set;
	int fd;

	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	fd = signalfd(-1, &set, SFD_CLOEXEC);
	if (fd < 0)
		return err_set_errno(err, errno, "cannot wait for signals");
	*ret_fd = fd;
	return 0;
}

/* Long chains and many clients need descriptors; nothing here uses select(2). */
static void raise_file_limit(void)
{
	struct rlimit rl;

	if (getrlimit(RLIMIT_NOFILE, &rl) < 0 || rl.rlim_cur == rl.rlim_max)
		return;
	rl.rlim_cur = rl.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &rl) < 0)
		log_debug("file limit not raised: %s", strerror(errno));
}

static int write_pid_file(const char *path, struct err *err)
{
	char text[32];
	int n = snprintf(text, sizeof(text), "%d\n", (int)getpid());
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644), rc = 0;
	ssize_t done;

	if (fd < 0)
		return err_set_errno(err, errno, "cannot write '%s'", path);
	done = write(fd, text, (size_t)n);
	if (done != n)
		rc = err_set_errno(err, done < 0 ? errno : ENOSPC, "cannot write '%s'", path);
	close(fd);
	if (rc)
		unlink(path);
	return rc;
}

/* A line a disk: what is served where. */
static void announce(const struct serve *s)
{
	for (unsigned i = 0; i < s->opts->nimages; i++) {
		const struct serve_disk *d = &s->disks[i];
		bool by_default = s->opts->nimages == 1 && !d->image->has_name;
		char size[16], uri[1024];

		printf("%s: %s, %s, %s", d->image->path, d->graph.top->ops->name,
		       size_format(port_size(d->port), size, sizeof(size)),
		       d->port->read_only ? "read-only" : "writable");
		if (d->graph.layers > 1)
			printf(", %u layers", d->graph.layers);
		if (d->vub)
			printf(", for virtual machines at %s", d->image->vhost_user);
		for (unsigned j = 0; !d->vub && j < s->listen.n; j++)
			printf("%s %s", j ? "" : ", at",
			       serve_listen_uri(s->listen.fds[j],
						by_default ? "" : d->image->name, uri,
						sizeof(uri)));
		putchar('\n');
	}
	fflush(stdout);
}

/* Takes a signal. True: it is one to end by. */
static bool is_end(struct serve *s, int signal_fd)
{
	struct signalfd_siginfo si;
	struct err err = { 0 };

	if (read(signal_fd, &si, sizeof(si)) != (ssize_t)sizeof(si))
		return false;
	log_debug("signal %u", si.ssi_signo);
	if (si.ssi_signo != SIGHUP)
		return true;
	if (serve_reload(s, &err))
		log_error("cannot ask for sizes again: %s", err.text);
	return false;
}

/* Sleeps until a signal comes to end by; meanwhile shows statistics, and gives memory back. */
static int wait_for_end(struct serve *s, int signal_fd, struct err *err)
{
	struct pollfd p = { .fd = signal_fd, .events = POLLIN };
	struct serve_stats st = { 0 };
	uint64_t next = now_ns() + NS_PER_SEC, wake;
	struct serve_idle idle;
	int n = 0;

	serve_idle_init(&idle, now_ns());
	if (s->opts->stats && serve_stats_init(&st, s, now_ns()))
		return err_set_errno(err, ENOMEM, "statistics");
	for (;;) {
		uint64_t now = now_ns();

		if (s->opts->stats && now >= next) {
			serve_stats_show(&st, s, now);
			next = MAX(next + NS_PER_SEC, now);
		}
		serve_idle_look(&idle, s, now);
		wake = s->opts->stats ? MIN(next, idle.next_ns) : idle.next_ns;
		n = poll(&p, 1, wake <= now ? 0 : (int)div_round_up(wake - now, NS_PER_MS));
		if ((n > 0 && is_end(s, signal_fd)) || (n < 0 && errno != EINTR))
			break;
	}
	serve_stats_fini(&st);
	return n < 0 ? err_set_errno(err, errno, "cannot wait for signals") : 0;
}

/* The end is under way: who presses Ctrl-C again does not want to wait for it. */
static void let_second_interrupt_kill(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
}

static int serve_until_signal(const struct serve_opts *opts, const struct notify *notify,
			      int signal_fd, struct err *err)
{
	struct serve s = { 0 };
	int rc = serve_start(&s, opts, err), stop_rc;

	if (rc)
		return rc;
	if (opts->pid_file)
		rc = write_pid_file(opts->pid_file, err);
	if (!rc) {
		announce(&s);
		notify_send(notify, "READY=1\nSTATUS=serving %u disk%s", opts->nimages,
			    opts->nimages == 1 ? "" : "s");
		rc = wait_for_end(&s, signal_fd, err);
		if (!rc)
			let_second_interrupt_kill();
		notify_send(notify, "STOPPING=1\nSTATUS=writing back");
		if (opts->pid_file)
			unlink(opts->pid_file);
	}
	stop_rc = serve_stop(&s, rc ? NULL : err);
	return rc ? rc : stop_rc;
}

/* What can be wrong with the addresses before anything is opened. */
static int check_addresses(const struct serve_opts *opts, struct err *err)
{
	struct listen_address ignored;
	int rc = 0;

	if (!opts->nlisten && !getenv("LISTEN_FDS") && serve_opts_need_nbd(opts)) {
		err_set(err, EINVAL, "nowhere to listen");
		err_hint(err, "say where: --nbd unix:PATH, --nbd tcp:HOST:PORT, or --vhost-user "
			 "PATH before an image");
		return -EINVAL;
	}
	for (unsigned i = 0; i < opts->nlisten && !rc; i++)
		rc = listen_address_parse(opts->listen[i], &ignored, err);
	return rc;
}

int cmd_serve(int argc, char **argv)
{
	struct serve_opts opts;
	struct err err = { 0 };
	struct notify notify;
	int signal_fd = -1, rc;

	rc = serve_opts_parse(argc, argv, &opts, &err);
	if (rc)
		return cmd_fail_usage("serve", &err);
	if (opts.help) {
		print_help();
		serve_opts_fini(&opts);
		return EXIT_OK;
	}
	rc = check_addresses(&opts, &err);
	if (rc) {
		serve_opts_fini(&opts);
		return cmd_fail_usage("serve", &err);
	}
	rc = take_signals(&signal_fd, &err);
	if (!rc) {
		raise_file_limit();
		notify_init(&notify);
		rc = serve_until_signal(&opts, &notify, signal_fd, &err);
		notify_fini(&notify);
		close(signal_fd);
	}
	serve_opts_fini(&opts);
	return rc ? cmd_fail(&err) : EXIT_OK;
}
