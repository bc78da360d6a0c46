/* Sees, numbers and disturbs the calls by which a process changes files below one folder.
 *
 * Loaded by LD_PRELOAD. tests/faults/inject.py builds it, states the rules and reads the log; the
 * names of calls, rules and environment variables are explained there. The surprising thing: calls
 * below the folder run one at a time, under a lock. So "killed at call K" means that exactly the
 * calls before K have happened, in C++ threads as in Python.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { PATH_BYTES = 4096, RULES = 8 };

struct rule {
  char calls[256];      /* ",write,sync," or "" for every call that changes something */
  char path[PATH_BYTES];  /* fnmatch pattern of the path below the root, "" = any */
  char after[PATH_BYTES]; /* counts from the first call on a path like this, "" = from the start */
  long at, times;       /* the at-th such call and the times - 1 next ones; times 0 = all */
  char action[16];      /* kill, term, error, short, sleep, ask */
  long value;           /* errno, milliseconds */
  int armed;
  long seen;
};

struct verdict {
  int error; /* 0 = make the call */
  int half;  /* write half of it */
};

static char root[PATH_BYTES];
static size_t root_length;
static int log_handle = -1, ask_handle = -1, answer_handle = -1;
static pid_t home; /* a forked child is let through: it may have inherited a held lock */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long number;
static struct rule rules[RULES];
static int rule_count;

#define NEXT(name)                                            \
  static __typeof__(&name) next;                              \
  if (!next) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static void copy(char *to, const char *from, size_t bytes) {
  if (strlen(from) >= bytes) {
    fprintf(stderr, "inject: too long: %s\n", from);
    _exit(97);
  }
  strcpy(to, from);
}

static void read_rule(struct rule *rule, char *text) {
  char *rest;
  rule->at = rule->times = 1;
  for (char *field = strtok_r(text, ";", &rest); field; field = strtok_r(NULL, ";", &rest)) {
    char *value = strchr(field, '=');
    if (!value) continue;
    *value++ = 0;
    if (!strcmp(field, "calls")) copy(rule->calls, value, sizeof rule->calls);
    if (!strcmp(field, "path")) copy(rule->path, value, sizeof rule->path);
    if (!strcmp(field, "after")) copy(rule->after, value, sizeof rule->after);
    if (!strcmp(field, "at")) rule->at = atol(value);
    if (!strcmp(field, "times")) rule->times = atol(value);
    if (!strcmp(field, "do")) copy(rule->action, value, sizeof rule->action);
    if (!strcmp(field, "value")) rule->value = atol(value);
  }
  rule->armed = !rule->after[0];
}

__attribute__((constructor)) static void load(void) {
  const char *folder = getenv("FAULT_ROOT"), *file = getenv("FAULT_LOG");
  const char *stated = getenv("FAULT_RULES"), *pipes = getenv("FAULT_PIPES");
  unsetenv("LD_PRELOAD"); /* what this process starts is not watched */
  if (!folder || !file) return;
  copy(root, folder, sizeof root);
  root_length = strlen(root);
  int handle = syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  log_handle = fcntl(handle, F_DUPFD_CLOEXEC, 700); /* out of the way of numbers reused */
  syscall(SYS_close, handle);
  if (log_handle < 0) {
    fprintf(stderr, "inject: cannot open %s\n", file);
    _exit(97);
  }
  if (pipes && sscanf(pipes, "%d,%d", &ask_handle, &answer_handle) != 2) _exit(97);
  if (stated) {
    char text[2 * PATH_BYTES], *rest;
    copy(text, stated, sizeof text);
    for (char *one = strtok_r(text, "\n", &rest); one; one = strtok_r(NULL, "\n", &rest)) {
      if (rule_count == RULES) _exit(97);
      read_rule(&rules[rule_count++], one);
    }
  }
  home = getpid();
}

/* The path below the root, or NULL if it is elsewhere. */
static const char *below(const char *path) {
  if (strncmp(path, root, root_length)) return NULL;
  if (path[root_length] == '/') return path + root_length + 1;
  return path[root_length] ? NULL : ".";
}

static int watching(void) { return log_handle >= 0 && home == getpid(); }

/* Each of the next two fills `absolute`; NULL if this call is not to be watched. */
static const char *of_handle(int handle, char *absolute) {
  char link[64];
  int saved = errno;
  if (!watching()) return NULL;
  snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
  ssize_t length = readlink(link, absolute, PATH_BYTES - 1);
  errno = saved;
  if (length < 0) return NULL;
  absolute[length] = 0;
  return below(absolute);
}

static const char *of_path(int folder, const char *path, char *absolute) {
  int saved = errno;
  if (!watching() || !path) return NULL;
  if (path[0] == '/') {
    if (strlen(path) >= PATH_BYTES) return NULL;
    strcpy(absolute, path);
    return below(absolute);
  }
  char link[64];
  ssize_t length;
  if (folder == AT_FDCWD) {
    length = getcwd(absolute, PATH_BYTES - 1) ? (ssize_t)strlen(absolute) : -1;
  } else {
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    length = readlink(link, absolute, PATH_BYTES - 1);
  }
  errno = saved;
  if (length < 0 || length + strlen(path) + 2 > PATH_BYTES) return NULL;
  snprintf(absolute + length, PATH_BYTES - length, "/%s", path);
  return below(absolute);
}

static void write_log(const char *call, const char *path, const char *other, const char *action) {
  char line[3 * PATH_BYTES];
  int length = snprintf(line, sizeof line, "%ld\t%s\t%s\t%s\t%s\n", number, call, path, other, action);
  if (syscall(SYS_write, log_handle, line, length) != length) _exit(97);
}

static int matches(struct rule *rule, const char *call, const char *path, int changes) {
  char wanted[64];
  if (!rule->armed && (changes && !fnmatch(rule->after, path, 0))) rule->armed = 1;
  if (!rule->armed) return 0;
  if (rule->calls[0]) {
    snprintf(wanted, sizeof wanted, ",%s,", call);
    if (!strstr(rule->calls, wanted)) return 0;
  } else if (!changes) {
    return 0;
  }
  if (rule->path[0] && fnmatch(rule->path, path, 0)) return 0;
  rule->seen++;
  return rule->seen >= rule->at && (!rule->times || rule->seen < rule->at + rule->times);
}

/* Takes the lock, numbers and logs the call, and does what the rules say. leave() must follow. */
static struct verdict enter(const char *call, const char *path, const char *other, int changes) {
  struct verdict verdict = {0, 0};
  struct rule *fired = NULL;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < rule_count; i++)
    if (matches(&rules[i], call, path, changes) && !fired) fired = &rules[i];
  if (changes) number++;
  if (changes || fired) write_log(call, path, other, fired ? fired->action : "");
  if (!fired) return verdict;
  if (!strcmp(fired->action, "kill")) {
    kill(getpid(), SIGKILL);
    pause();
  } else if (!strcmp(fired->action, "term")) {
    kill(getpid(), SIGTERM);
  } else if (!strcmp(fired->action, "error")) {
    verdict.error = fired->value;
  } else if (!strcmp(fired->action, "short")) {
    verdict.half = 1;
  } else if (!strcmp(fired->action, "sleep")) {
    struct timespec left = {fired->value / 1000, fired->value % 1000 * 1000000};
    pthread_mutex_unlock(&lock); /* one slow call does not stop the others */
    while (nanosleep(&left, &left)) continue;
    pthread_mutex_lock(&lock);
  } else if (!strcmp(fired->action, "ask")) {
    char answer = 0, line[32];
    int length = snprintf(line, sizeof line, "%ld\n", number);
    if (syscall(SYS_write, ask_handle, line, length) != length) _exit(97);
    if (syscall(SYS_read, answer_handle, &answer, 1) != 1) _exit(97);
    if (answer == 'k') {
      kill(getpid(), SIGKILL);
      pause();
    }
  } else {
    _exit(97);
  }
  return verdict;
}

static void leave(void) {
  int saved = errno;
  pthread_mutex_unlock(&lock);
  errno = saved;
}

static long fail(int error) {
  errno = error;
  return -1;
}

/* `real` runs, or fails, between enter and leave. */
#define WATCHED(type, call, path, other, changes, real)              \
  do {                                                               \
    struct verdict verdict = enter(call, path, other, changes);      \
    type result = verdict.error ? (type)fail(verdict.error) : (real); \
    leave();                                                         \
    return result;                                                   \
  } while (0)

/* --- opening ------------------------------------------------------------------------------- */

static int opened(int folder, const char *path, int flags, mode_t mode,
                  int (*next)(int, const char *, int, ...)) {
  char absolute[PATH_BYTES];
  const char *name = of_path(folder, path, absolute);
  if (!name) return next(folder, path, flags, mode);
  int changes = (flags & (O_CREAT | O_TRUNC)) || (flags & O_ACCMODE) != O_RDONLY;
  int saved = errno;
  const char *call = !changes ? "look" : "open";
  if ((flags & O_CREAT) && faccessat(folder, path, F_OK, AT_SYMLINK_NOFOLLOW)) call = "create";
  errno = saved;
  WATCHED(int, call, name, "", changes, next(folder, path, flags, mode));
}

#define MODE(flags)                              \
  mode_t mode = 0;                               \
  if ((flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE) { \
    va_list list;                                \
    va_start(list, flags);                       \
    mode = va_arg(list, int);                    \
    va_end(list);                                \
  }

static int real_openat(int folder, const char *path, int flags, ...) {
  NEXT(openat);
  va_list list;
  va_start(list, flags);
  mode_t mode = va_arg(list, int);
  va_end(list);
  return next(folder, path, flags, mode);
}

int open(const char *path, int flags, ...) {
  MODE(flags);
  return opened(AT_FDCWD, path, flags, mode, real_openat);
}
int open64(const char *path, int flags, ...) {
  MODE(flags);
  return opened(AT_FDCWD, path, flags | O_LARGEFILE, mode, real_openat);
}
int openat(int folder, const char *path, int flags, ...) {
  MODE(flags);
  return opened(folder, path, flags, mode, real_openat);
}
int openat64(int folder, const char *path, int flags, ...) {
  MODE(flags);
  return opened(folder, path, flags | O_LARGEFILE, mode, real_openat);
}
int __open_2(const char *path, int flags) {
  return opened(AT_FDCWD, path, flags, 0, real_openat);
}
int __open64_2(const char *path, int flags) {
  return opened(AT_FDCWD, path, flags | O_LARGEFILE, 0, real_openat);
}
int __openat_2(int folder, const char *path, int flags) {
  return opened(folder, path, flags, 0, real_openat);
}
int __openat64_2(int folder, const char *path, int flags) {
  return opened(folder, path, flags | O_LARGEFILE, 0, real_openat);
}
int creat(const char *path, mode_t mode) {
  return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode, real_openat);
}
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

/* --- descriptors --------------------------------------------------------------------------- */

#define ON_HANDLE(type, name, call, changes, parameters, arguments)  \
  type name parameters {                                             \
    NEXT(name);                                                      \
    char absolute[PATH_BYTES];                                       \
    const char *path = of_handle(handle, absolute);                  \
    if (!path) return next arguments;                                \
    WATCHED(type, call, path, "", changes, next arguments);          \
  }

#define WRITING(name, parameters, arguments, shorter)                                      \
  ssize_t name parameters {                                                                \
    NEXT(name);                                                                            \
    char absolute[PATH_BYTES];                                                             \
    const char *path = of_handle(handle, absolute);                                        \
    if (!path) return next arguments;                                                      \
    struct verdict verdict = enter("write", path, "", 1);                                  \
    ssize_t result = verdict.error ? fail(verdict.error) : verdict.half ? shorter : next arguments; \
    leave();                                                                               \
    return result;                                                                         \
  }

#define HALF(bytes) ((bytes) > 1 ? (bytes) / 2 : (bytes))

/* A short vectored write: half of the first part that is not empty. */
static ssize_t half_of(int handle, const struct iovec *parts, int count, off_t offset) {
  for (int i = 0; i < count; i++)
    if (parts[i].iov_len) {
      size_t bytes = HALF(parts[i].iov_len);
      return offset < 0 ? syscall(SYS_write, handle, parts[i].iov_base, bytes)
                        : syscall(SYS_pwrite64, handle, parts[i].iov_base, bytes, offset);
    }
  return 0;
}

WRITING(write, (int handle, const void *data, size_t bytes), (handle, data, bytes),
        next(handle, data, HALF(bytes)))
WRITING(pwrite, (int handle, const void *data, size_t bytes, off_t offset),
        (handle, data, bytes, offset), next(handle, data, HALF(bytes), offset))
WRITING(pwrite64, (int handle, const void *data, size_t bytes, off64_t offset),
        (handle, data, bytes, offset), next(handle, data, HALF(bytes), offset))
WRITING(writev, (int handle, const struct iovec *parts, int count), (handle, parts, count),
        half_of(handle, parts, count, -1))
WRITING(pwritev, (int handle, const struct iovec *parts, int count, off_t offset),
        (handle, parts, count, offset), half_of(handle, parts, count, offset))
WRITING(pwritev64, (int handle, const struct iovec *parts, int count, off64_t offset),
        (handle, parts, count, offset), half_of(handle, parts, count, offset))

ON_HANDLE(int, fsync, "sync", 1, (int handle), (handle))
ON_HANDLE(int, fdatasync, "sync", 1, (int handle), (handle))
ON_HANDLE(int, syncfs, "sync", 1, (int handle), (handle))
ON_HANDLE(int, ftruncate, "truncate", 1, (int handle, off_t size), (handle, size))
ON_HANDLE(int, ftruncate64, "truncate", 1, (int handle, off64_t size), (handle, size))
ON_HANDLE(int, fallocate, "truncate", 1, (int handle, int mode, off_t from, off_t bytes),
          (handle, mode, from, bytes))
ON_HANDLE(int, fallocate64, "truncate", 1, (int handle, int mode, off64_t from, off64_t bytes),
          (handle, mode, from, bytes))
ON_HANDLE(int, fchmod, "attribute", 1, (int handle, mode_t mode), (handle, mode))
ON_HANDLE(int, futimens, "attribute", 1, (int handle, const struct timespec times[2]),
          (handle, times))
ON_HANDLE(int, flock, "lock", 1, (int handle, int operation), (handle, operation))
ON_HANDLE(ssize_t, read, "read", 0, (int handle, void *data, size_t bytes), (handle, data, bytes))
ON_HANDLE(ssize_t, pread, "read", 0, (int handle, void *data, size_t bytes, off_t offset),
          (handle, data, bytes, offset))
ON_HANDLE(ssize_t, pread64, "read", 0, (int handle, void *data, size_t bytes, off64_t offset),
          (handle, data, bytes, offset))
ON_HANDLE(ssize_t, readv, "read", 0, (int handle, const struct iovec *parts, int count),
          (handle, parts, count))

ssize_t sendfile(int handle, int from, off_t *offset, size_t bytes) {
  NEXT(sendfile);
  char absolute[PATH_BYTES];
  const char *path = of_handle(handle, absolute);
  if (!path) return next(handle, from, offset, bytes);
  WATCHED(ssize_t, "write", path, "", 1, next(handle, from, offset, bytes));
}
ssize_t sendfile64(int handle, int from, off64_t *offset, size_t bytes) {
  NEXT(sendfile64);
  char absolute[PATH_BYTES];
  const char *path = of_handle(handle, absolute);
  if (!path) return next(handle, from, offset, bytes);
  WATCHED(ssize_t, "write", path, "", 1, next(handle, from, offset, bytes));
}
ssize_t copy_file_range(int from, off64_t *start, int handle, off64_t *offset, size_t bytes,
                        unsigned flags) {
  NEXT(copy_file_range);
  char absolute[PATH_BYTES];
  const char *path = of_handle(handle, absolute);
  if (!path) return next(from, start, handle, offset, bytes, flags);
  WATCHED(ssize_t, "write", path, "", 1, next(from, start, handle, offset, bytes, flags));
}

/* Closing what was open for writing can tell of a late error; the descriptor is gone all the same. */
int close(int handle) {
  NEXT(close);
  char absolute[PATH_BYTES];
  if (handle == log_handle && watching()) return 0;
  const char *path = of_handle(handle, absolute);
  if (!path || (fcntl(handle, F_GETFL) & O_ACCMODE) == O_RDONLY) return next(handle);
  struct verdict verdict = enter("close", path, "", 1);
  int result = next(handle);
  if (verdict.error) result = fail(verdict.error);
  leave();
  return result;
}

/* --- names --------------------------------------------------------------------------------- */

#define ON_PATH(type, name, call, folder, path, parameters, arguments) \
  type name parameters {                                               \
    NEXT(name);                                                        \
    char absolute[PATH_BYTES];                                         \
    const char *found = of_path(folder, path, absolute);               \
    if (!found) return next arguments;                                 \
    WATCHED(type, call, found, "", 1, next arguments);                 \
  }

/* Two names: watched by the first below the root, else by the second. */
#define ON_PATHS(name, call, folder, path, to_folder, to, parameters, arguments)            \
  int name parameters {                                                                     \
    NEXT(name);                                                                             \
    char absolute[PATH_BYTES], other[PATH_BYTES];                                           \
    const char *found = of_path(folder, path, absolute);                                    \
    const char *target = of_path(to_folder, to, other);                                     \
    if (!found && !target) return next arguments;                                           \
    WATCHED(int, call, found ? found : target, found && target ? target : "", 1, next arguments); \
  }

ON_PATHS(rename, "rename", AT_FDCWD, a, AT_FDCWD, b, (const char *a, const char *b), (a, b))
ON_PATHS(renameat, "rename", x, a, y, b, (int x, const char *a, int y, const char *b), (x, a, y, b))
ON_PATHS(renameat2, "rename", x, a, y, b,
         (int x, const char *a, int y, const char *b, unsigned flags), (x, a, y, b, flags))
ON_PATHS(link, "link", AT_FDCWD, b, AT_FDCWD, a, (const char *a, const char *b), (a, b))
ON_PATHS(linkat, "link", y, b, x, a, (int x, const char *a, int y, const char *b, int flags),
         (x, a, y, b, flags))
ON_PATH(int, symlink, "link", AT_FDCWD, b, (const char *a, const char *b), (a, b))
ON_PATH(int, symlinkat, "link", x, b, (const char *a, int x, const char *b), (a, x, b))
ON_PATH(int, unlink, "unlink", AT_FDCWD, a, (const char *a), (a))
ON_PATH(int, unlinkat, flags & AT_REMOVEDIR ? "rmdir" : "unlink", x, a,
        (int x, const char *a, int flags), (x, a, flags))
ON_PATH(int, remove, "unlink", AT_FDCWD, a, (const char *a), (a))
ON_PATH(int, rmdir, "rmdir", AT_FDCWD, a, (const char *a), (a))
ON_PATH(int, mkdir, "mkdir", AT_FDCWD, a, (const char *a, mode_t mode), (a, mode))
ON_PATH(int, mkdirat, "mkdir", x, a, (int x, const char *a, mode_t mode), (x, a, mode))
ON_PATH(int, truncate, "truncate", AT_FDCWD, a, (const char *a, off_t size), (a, size))
ON_PATH(int, truncate64, "truncate", AT_FDCWD, a, (const char *a, off64_t size), (a, size))
ON_PATH(int, chmod, "attribute", AT_FDCWD, a, (const char *a, mode_t mode), (a, mode))
ON_PATH(int, fchmodat, "attribute", x, a, (int x, const char *a, mode_t mode, int flags),
        (x, a, mode, flags))
ON_PATH(int, utimensat, "attribute", x, a,
        (int x, const char *a, const struct timespec times[2], int flags), (x, a, times, flags))
