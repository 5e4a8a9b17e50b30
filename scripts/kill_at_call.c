/* Kills a process as it enters a certain fsync or rename: LD_PRELOAD of scripts/kill_test.py.

   KILL_PATTERN: of fnmatch, for the file that is made to last or the name that it is given.
   KILL_WHEN: at which of the calls that fit, counted over all threads, from 1 on.
   KILL_SAYS: file that gets a line with the call. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static atomic_int count;

static void enter(const char *call, const char *path) {
  const char *pattern = getenv("KILL_PATTERN"), *when = getenv("KILL_WHEN");
  if (!pattern || !when || fnmatch(pattern, path, 0)) return;
  if (atomic_fetch_add(&count, 1) + 1 != atoi(when)) return;
  int says = open(getenv("KILL_SAYS"), O_WRONLY | O_CREAT | O_APPEND, 0644);
  dprintf(says, "%s %s\n", call, path);
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

static void enter_file(const char *call, int file) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return;
  path[length] = 0;
  enter(call, path);
}

#define NEXT(name, ...) ((int (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))

int fsync(int file) {
  enter_file("fsync", file);
  return NEXT(fsync, int)(file);
}

int fdatasync(int file) {
  enter_file("fdatasync", file);
  return NEXT(fdatasync, int)(file);
}

int rename(const char *from, const char *to) {
  enter("rename", to);
  return NEXT(rename, const char *, const char *)(from, to);
}

int renameat(int a, const char *from, int b, const char *to) {
  enter("renameat", to);
  return NEXT(renameat, int, const char *, int, const char *)(a, from, b, to);
}
