/* A kernel with fs-verity, for one process: preloaded, it answers the two ioctls and refuses what it is told to.
 *
 * A protected file carries its digest in an extended attribute.  Behaves as Linux does on ext4: no enabling while the
 * descriptor can write, EEXIST the second time, ENODATA before the first.  FAKE_BUSY=N lets the first N attempts fail
 * with ETXTBSY; FAKE_RACE is the content of a file that somebody else puts in place of the first object just before
 * it gets its name; FAKE_REFUSE names calls that fail, as "tmpfile", "empty_path" and "noreplace"; FAKE_WRONG spoils what
 * is measured. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "files.h"

#define ENABLE 0x40806685UL
#define MEASURE 0xc0046686UL
#define ATTRIBUTE "user.fake.verity"

static int fail(int error)
{
    errno = error;
    return -1;
}

static int refuses(const char *what)
{
    const char *list = getenv("FAKE_REFUSE");
    return list && strstr(list, what);
}

/* Somebody was faster. */
static void race(int directory, const char *path)
{
    static int done;
    const char *content = getenv("FAKE_RACE");
    int fd;

    if (!content || done++)
        return;
    fd = (int)syscall(SYS_openat, directory, path, O_CREAT | O_EXCL | O_WRONLY, 0644);
    if (fd < 0 || write(fd, content, strlen(content)) < 0)
        abort();
    close(fd);
}

static int enable(int fd, const uint32_t *arg)
{
    static int attempts;
    const char *busy = getenv("FAKE_BUSY");
    struct verity_params params;
    uint8_t value[1 + SHA2_MAX_DIGEST];
    int error;

    if (arg[0] != 1 || arg[2] != 4096 || !verity_params_init(&params, (int)arg[1], "c"))
        return fail(EINVAL);
    if ((fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY || (busy && attempts++ < atoi(busy)))
        return fail(ETXTBSY);
    if (fgetxattr(fd, ATTRIBUTE, NULL, 0) >= 0)
        return fail(EEXIST);
    value[0] = (uint8_t)arg[1];
    if (files_digest(&params, &fd, 1, value + 1, &error) || error)
        return fail(EIO);
    if (getenv("FAKE_WRONG"))
        value[1] ^= 1;
    return fsetxattr(fd, ATTRIBUTE, value, 1 + params.algorithm->digest_size, XATTR_CREATE);
}

static int measure(int fd, uint16_t *arg)
{
    uint8_t value[1 + SHA2_MAX_DIGEST];
    ssize_t size = fgetxattr(fd, ATTRIBUTE, value, sizeof value);

    if (size < 0)
        return fail(ENODATA);
    if (arg[1] < size - 1)
        return fail(EOVERFLOW);
    arg[0] = value[0];
    arg[1] = (uint16_t)(size - 1);
    memcpy(arg + 2, value + 1, (size_t)size - 1);
    return 0;
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list rest;
    void *arg;

    va_start(rest, request);
    arg = va_arg(rest, void *);
    va_end(rest);
    if (request == ENABLE)
        return enable(fd, arg);
    if (request == MEASURE)
        return measure(fd, arg);
    return (int)syscall(SYS_ioctl, fd, request, arg);
}

int openat(int directory, const char *path, int flags, ...)
{
    va_list rest;
    int mode;

    va_start(rest, flags);
    mode = va_arg(rest, int);
    va_end(rest);
    if ((flags & O_TMPFILE) == O_TMPFILE && refuses("tmpfile"))
        return fail(EOPNOTSUPP);
    return (int)syscall(SYS_openat, directory, path, flags, mode);
}

int linkat(int from, const char *old, int to, const char *new, int flags)
{
    if (flags & AT_EMPTY_PATH && refuses("empty_path"))
        return fail(ENOENT);
    race(to, new);
    return (int)syscall(SYS_linkat, from, old, to, new, flags);
}

long syscall(long number, ...)
{
    static long (*real)(long, ...);
    long a[6];
    va_list rest;

    if (!real)
        real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    va_start(rest, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(rest, long);
    va_end(rest);
    if (number == SYS_renameat2 && refuses("noreplace"))
        return fail(EINVAL);
    if (number == SYS_renameat2)
        race((int)a[2], (const char *)a[3]);
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
