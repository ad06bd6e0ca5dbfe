/* Preloaded into a Python process: one call of the kernel answers with an error, or all from one on; or the process is
 * killed before one of those that write.
 *
 * Calls count from `fault_arm` on, and only if they are about files below a directory, or of /proc; so what the event
 * loop and the import of modules do is left alone.  Sockets and pipes never count. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define CALLS(X)                                                                                                      \
    X(open) X(read) X(write) X(stat) X(access) X(readlink) X(link) X(symlink) X(rename) X(unlink) X(mkdir) X(ioctl)   \
        X(flock) X(fsync) X(syncfs) X(statvfs) X(listing) X(copy) X(thread) X(mount)

enum call {
#define X(name) CALL_##name,
    CALLS(X)
#undef X
        COUNT
};

static const char *const names[] = {
#define X(name) #name,
    CALLS(X)
#undef X
};

static char root[4096];
static atomic_bool armed;
static atomic_int counts[COUNT];
static int target, error_number, first;
static bool lasting;
static int trace_fd = -1;
static atomic_int writes, last_write;
static _Thread_local char where[8192];

void fault_arm(const char *directory, const char *call, int number, int at, int sticky)
{
    snprintf(root, sizeof root, "%s", directory);
    target = -1;
    for (int i = 0; i < COUNT; i++) {
        counts[i] = 0;
        if (!strcmp(names[i], call))
            target = i;
    }
    error_number = number;
    first = at;
    lasting = sticky;
    trace_fd = -1;
    armed = true;
}

/* Each call that writes is told to *fd* before it is made, with its path; the process is killed at the one numbered *at*,
 * if that is not 0. */
void fault_trace(const char *directory, int fd, int at)
{
    fault_arm(directory, "", 0, 0, 0);
    writes = 0;
    last_write = at;
    trace_fd = fd;
}

void fault_disarm(void)
{
    armed = false;
}

int fault_count(const char *call)
{
    for (int i = 0; i < COUNT; i++)
        if (!strcmp(names[i], call))
            return counts[i];
    return -1;
}

static bool is_below(const char *path)
{
    return !strncmp(path, root, strlen(root)) || !strncmp(path, "/proc/self/fd/", 14) ||
           !strncmp(path, "/proc/sys/kernel/", 17);
}

static bool about_fd(int fd)
{
    char link[64], path[4096];
    long size;

    if (!armed)
        return false;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    size = syscall(SYS_readlink, link, path, sizeof path - 1);
    if (size <= 0)
        return false;
    path[size] = 0;
    snprintf(where, sizeof where, "%s", path);
    return is_below(path);
}

static bool about(int directory, const char *path)
{
    size_t size;

    if (!armed || !path)
        return false;
    if (path[0] == '/') {
        snprintf(where, sizeof where, "%s", path);
        return is_below(path);
    }
    if (directory == AT_FDCWD || !about_fd(directory))
        return false;
    size = strlen(where);
    snprintf(where + size, sizeof where - size, "/%s", path);
    return true;
}

static void trace(enum call call)
{
    char line[8300];
    int size = snprintf(line, sizeof line, "%s %s\n", names[call], where);

    syscall(SYS_write, trace_fd, line, (size_t)size);
    if (atomic_fetch_add(&writes, 1) + 1 == last_write)
        syscall(SYS_kill, getpid(), 9);
}

static bool does_write(enum call call)
{
    return call == CALL_write || call == CALL_link || call == CALL_symlink || call == CALL_rename ||
           call == CALL_unlink || call == CALL_mkdir || call == CALL_fsync || call == CALL_syncfs;
}

static bool fails(enum call call, bool concerned)
{
    int now;

    if (!armed || !concerned)
        return false;
    if (trace_fd >= 0 && does_write(call))
        trace(call);
    now = atomic_fetch_add(&counts[call], 1) + 1;
    if ((int)call != target || now < first || (now > first && !lasting))
        return false;
    errno = error_number;
    return true;
}

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

/* -- opening ---------------------------------------------------------------------------------------------------- */

#define OPEN(function)                                                                                                \
    int function(const char *path, int flags, ...)                                                                    \
    {                                                                                                                 \
        va_list arguments;                                                                                            \
        mode_t mode;                                                                                                  \
        REAL(int, #function, const char *, int, mode_t);                                                              \
        va_start(arguments, flags);                                                                                   \
        mode = va_arg(arguments, mode_t);                                                                             \
        va_end(arguments);                                                                                            \
        return fails(CALL_open, about(AT_FDCWD, path)) ? -1 : real(path, flags, mode);                                \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(function)                                                                                              \
    int function(int directory, const char *path, int flags, ...)                                                     \
    {                                                                                                                 \
        va_list arguments;                                                                                            \
        mode_t mode;                                                                                                  \
        REAL(int, #function, int, const char *, int, mode_t);                                                         \
        va_start(arguments, flags);                                                                                   \
        mode = va_arg(arguments, mode_t);                                                                             \
        va_end(arguments);                                                                                            \
        return fails(CALL_open, about(directory, path)) ? -1 : real(directory, path, flags, mode);                    \
    }
OPENAT(openat)
OPENAT(openat64)

/* -- what goes through syscall(2), the mount interface among it --------------------------------------------------- */

static bool fails_raw(long number, long a, long b)
{
    switch (number) {
    case SYS_openat2:
        return fails(CALL_open, about((int)a, (const char *)b));
    case SYS_getdents64:
        return fails(CALL_listing, about_fd((int)a));
    case SYS_renameat2:
        return fails(CALL_rename, about((int)a, (const char *)b));
    case 428 ... 433: /* open_tree, move_mount, fsopen, fsconfig, fsmount, fspick */
    case 442:         /* mount_setattr */
        return fails(CALL_mount, true);
    default:
        return false;
    }
}

long syscall(long number, ...)
{
    va_list arguments;
    long a, b, c, d, e, f;
    static long (*real)(long, ...);

    if (!real)
        real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    va_start(arguments, number);
    a = va_arg(arguments, long), b = va_arg(arguments, long), c = va_arg(arguments, long);
    d = va_arg(arguments, long), e = va_arg(arguments, long), f = va_arg(arguments, long);
    va_end(arguments);
    return fails_raw(number, a, b) ? -1 : real(number, a, b, c, d, e, f);
}

/* -- everything else --------------------------------------------------------------------------------------------- */

#define WRAP(call, type, function, parameters, values, concerned)                                                     \
    type function parameters                                                                                          \
    {                                                                                                                 \
        static type(*real) parameters;                                                                                \
        if (!real)                                                                                                    \
            real = (type(*) parameters)dlsym(RTLD_NEXT, #function);                                                   \
        return fails(CALL_##call, concerned) ? (type)-1 : real values;                                                \
    }

WRAP(read, ssize_t, read, (int fd, void *to, size_t size), (fd, to, size), about_fd(fd))
WRAP(read, ssize_t, pread, (int fd, void *to, size_t size, off_t at), (fd, to, size, at), about_fd(fd))
WRAP(read, ssize_t, pread64, (int fd, void *to, size_t size, off64_t at), (fd, to, size, at), about_fd(fd))
WRAP(read, ssize_t, readv, (int fd, const struct iovec *to, int n), (fd, to, n), about_fd(fd))
WRAP(read, ssize_t, preadv, (int fd, const struct iovec *to, int n, off_t at), (fd, to, n, at), about_fd(fd))
WRAP(read, ssize_t, preadv64, (int fd, const struct iovec *to, int n, off64_t at), (fd, to, n, at), about_fd(fd))
WRAP(read, ssize_t, preadv2, (int fd, const struct iovec *to, int n, off_t at, int f), (fd, to, n, at, f), about_fd(fd))
WRAP(read, ssize_t, preadv64v2, (int fd, const struct iovec *to, int n, off64_t at, int f), (fd, to, n, at, f),
     about_fd(fd))
WRAP(write, ssize_t, write, (int fd, const void *from, size_t size), (fd, from, size), about_fd(fd))
WRAP(write, ssize_t, pwrite, (int fd, const void *from, size_t size, off_t at), (fd, from, size, at), about_fd(fd))
WRAP(write, ssize_t, pwrite64, (int fd, const void *from, size_t size, off64_t at), (fd, from, size, at), about_fd(fd))
WRAP(stat, int, fstat, (int fd, struct stat *to), (fd, to), about_fd(fd))
WRAP(stat, int, fstat64, (int fd, struct stat64 *to), (fd, to), about_fd(fd))
WRAP(stat, int, stat, (const char *path, struct stat *to), (path, to), about(AT_FDCWD, path))
WRAP(stat, int, stat64, (const char *path, struct stat64 *to), (path, to), about(AT_FDCWD, path))
WRAP(stat, int, lstat, (const char *path, struct stat *to), (path, to), about(AT_FDCWD, path))
WRAP(stat, int, lstat64, (const char *path, struct stat64 *to), (path, to), about(AT_FDCWD, path))
WRAP(stat, int, fstatat, (int fd, const char *path, struct stat *to, int flags), (fd, path, to, flags), about(fd, path))
WRAP(stat, int, fstatat64, (int fd, const char *path, struct stat64 *to, int flags), (fd, path, to, flags),
     about(fd, path))
WRAP(access, int, access, (const char *path, int mode), (path, mode), about(AT_FDCWD, path))
WRAP(access, int, faccessat, (int fd, const char *path, int mode, int flags), (fd, path, mode, flags), about(fd, path))
WRAP(readlink, ssize_t, readlink, (const char *path, char *to, size_t size), (path, to, size), about(AT_FDCWD, path))
WRAP(readlink, ssize_t, readlinkat, (int fd, const char *path, char *to, size_t size), (fd, path, to, size),
     about(fd, path))
WRAP(link, int, linkat, (int old, const char *from, int new, const char *to, int flags), (old, from, new, to, flags),
     about(new, to))
WRAP(link, int, link, (const char *from, const char *to), (from, to), about(AT_FDCWD, to))
WRAP(symlink, int, symlinkat, (const char *to, int fd, const char *path), (to, fd, path), about(fd, path))
WRAP(symlink, int, symlink, (const char *to, const char *path), (to, path), about(AT_FDCWD, path))
WRAP(rename, int, renameat, (int old, const char *from, int new, const char *to), (old, from, new, to), about(new, to))
WRAP(rename, int, rename, (const char *from, const char *to), (from, to), about(AT_FDCWD, to))
WRAP(unlink, int, unlinkat, (int fd, const char *path, int flags), (fd, path, flags), about(fd, path))
WRAP(unlink, int, unlink, (const char *path), (path), about(AT_FDCWD, path))
WRAP(unlink, int, rmdir, (const char *path), (path), about(AT_FDCWD, path))
WRAP(mkdir, int, mkdirat, (int fd, const char *path, mode_t mode), (fd, path, mode), about(fd, path))
WRAP(mkdir, int, mkdir, (const char *path, mode_t mode), (path, mode), about(AT_FDCWD, path))
WRAP(flock, int, flock, (int fd, int operation), (fd, operation), about_fd(fd))
WRAP(fsync, int, fsync, (int fd), (fd), about_fd(fd))
WRAP(syncfs, int, syncfs, (int fd), (fd), about_fd(fd))
WRAP(statvfs, int, fstatvfs, (int fd, struct statvfs *to), (fd, to), about_fd(fd))
WRAP(statvfs, int, fstatvfs64, (int fd, struct statvfs64 *to), (fd, to), about_fd(fd))
WRAP(copy, ssize_t, copy_file_range, (int from, off64_t *at, int to, off64_t *there, size_t size, unsigned flags),
     (from, at, to, there, size, flags), about_fd(to))

int ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;
    void *argument;
    static int (*real)(int, unsigned long, void *);

    if (!real)
        real = (int (*)(int, unsigned long, void *))dlsym(RTLD_NEXT, "ioctl");
    va_start(arguments, request);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    return fails(CALL_ioctl, about_fd(fd)) ? -1 : real(fd, request, argument);
}

struct dirent *readdir(DIR *directory)
{
    static struct dirent *(*real)(DIR *);
    if (!real)
        real = (struct dirent * (*)(DIR *)) dlsym(RTLD_NEXT, "readdir");
    return fails(CALL_listing, about_fd(dirfd(directory))) ? NULL : real(directory);
}

struct dirent64 *readdir64(DIR *directory)
{
    static struct dirent64 *(*real)(DIR *);
    if (!real)
        real = (struct dirent64 * (*)(DIR *)) dlsym(RTLD_NEXT, "readdir64");
    return fails(CALL_listing, about_fd(dirfd(directory))) ? NULL : real(directory);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument)
{
    static int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    if (!real)
        real = (int (*)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *))dlsym(RTLD_NEXT, "pthread_create");
    return fails(CALL_thread, armed) ? error_number : real(thread, attributes, start, argument);
}
