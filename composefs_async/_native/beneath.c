/* openat2(2) where the kernel has it, and one component after the other elsewhere. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "beneath.h"

#include "retry.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* linux/openat2.h, which older systems lack. */
#define OPENAT2 437
#define NO_SYMLINKS_BENEATH (0x04 | 0x08)

struct how {
    uint64_t flags, mode, resolve;
};

static atomic_bool missing; /* the kernel has no such call */

int beneath_require_directory(int directory, const char *name)
{
    struct stat st;

    if (fstatat(directory, name, &st, AT_SYMLINK_NOFOLLOW))
        return -1;
    errno = S_ISLNK(st.st_mode) ? ELOOP : ENOTDIR;
    return S_ISDIR(st.st_mode) ? 0 : -1;
}

static int open_one(int directory, const char *name, int flags, mode_t mode)
{
    int fd = RETRY(openat(directory, name, flags | O_NOFOLLOW | O_CLOEXEC, mode));

    if (fd < 0 && errno == ENOTDIR && beneath_require_directory(directory, name) && errno != ELOOP)
        errno = ENOTDIR;
    return fd;
}

static int open_by_steps(int directory, const char *path, int flags, mode_t mode)
{
    const char *slash = strchr(path, '/');
    char parent[3] = {0};
    int above, fd, error;

    if (!slash)
        return open_one(directory, path, flags, mode);
    if (slash - path > 2) {
        errno = EINVAL;
        return -1;
    }
    memcpy(parent, path, (size_t)(slash - path));
    above = open_one(directory, parent, O_PATH | O_DIRECTORY, 0);
    if (above < 0)
        return -1;
    fd = open_one(above, slash + 1, flags, mode);
    error = errno;
    close(above);
    errno = error;
    return fd;
}

int beneath_open(int directory, const char *path, int flags, mode_t mode)
{
    struct how how = {(uint64_t)(unsigned)((flags | O_CLOEXEC) & ~O_NOFOLLOW), mode, NO_SYMLINKS_BENEATH};
    long fd;

    if (atomic_load_explicit(&missing, memory_order_relaxed))
        return open_by_steps(directory, path, flags, mode);
    do
        fd = syscall(OPENAT2, directory, path, &how, sizeof how);
    while (fd < 0 && (errno == EAGAIN || errno == EINTR));
    if (fd < 0 && (errno == ENOSYS || errno == EPERM)) { /* EPERM: sandboxes from before the call */
        if (errno == ENOSYS)
            atomic_store_explicit(&missing, true, memory_order_relaxed);
        return open_by_steps(directory, path, flags, mode);
    }
    return (int)fd;
}
