/* Objects are read into one buffer, and hashed side by side when it is full. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "loading.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATH_SIZE (2 * SHA2_MAX_DIGEST + 2)                     /* XX/REST and NUL */
#define MEASURE_VERITY _IOWR('f', 134, uint16_t[2])             /* FS_IOC_MEASURE_VERITY of linux/fsverity.h */
#define OPEN_FLAGS (O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC) /* a pipe in the place of an object must not hold us up */

struct measured { /* struct fsverity_digest */
    uint16_t algorithm, size;
    uint8_t digest[SHA2_MAX_DIGEST];
};

static const char *path_of(const uint8_t *id, size_t width, char path[PATH_SIZE])
{
    static const char digits[] = "0123456789abcdef";
    char *to = path;

    for (size_t i = 0; i < width; i++) {
        *to++ = digits[id[i] >> 4];
        *to++ = digits[id[i] & 15];
        if (i == 0)
            *to++ = '/';
    }
    *to = '\0';
    return path;
}

void loading_sizes(int objects, const uint8_t *ids, size_t count, size_t width, int64_t *sizes)
{
    char path[PATH_SIZE];
    struct stat st;

    for (size_t i = 0; i < count; i++) {
        if (fstatat(objects, path_of(ids + i * width, width, path), &st, AT_SYMLINK_NOFOLLOW))
            sizes[i] = -(int64_t)errno;
        else
            sizes[i] = S_ISREG(st.st_mode) ? (int64_t)st.st_size : -EINVAL;
    }
}

static void fail(struct loading *loading, size_t index, int error, const char *step, const uint8_t *digest)
{
    struct loading_failure *failure = &loading->failures[loading->failed++];

    *failure = (struct loading_failure){.index = index, .error = error, .step = step, .has_digest = digest != NULL};
    if (digest)
        memcpy(failure->digest, digest, loading->params.algorithm->digest_size);
}

static void check_measure(struct loading *loading, int fd, size_t index, const uint8_t *id)
{
    size_t width = loading->params.algorithm->digest_size;
    struct measured measured = {.size = SHA2_MAX_DIGEST};

    if (ioctl(fd, MEASURE_VERITY, &measured))
        fail(loading, index, errno, "measure", NULL);
    else if (measured.algorithm != loading->params.number || measured.size != width)
        fail(loading, index, 0, "measure", NULL);
    else if (memcmp(measured.digest, id, width) != 0)
        fail(loading, index, 0, "digest", measured.digest);
}

/* Returns the number of bytes, or -1 with errno. */
static ssize_t read_full(int fd, uint8_t *to, size_t size)
{
    size_t got = 0;

    while (got < size) {
        ssize_t now = read(fd, to + got, size - got);
        if (now < 0 && errno == EINTR)
            continue;
        if (now <= 0)
            return now < 0 ? -1 : (ssize_t)got;
        got += (size_t)now;
    }
    return (ssize_t)got;
}

enum taken { TAKEN, FAILED, FULL };

static enum taken take(struct loading *loading, int fd, size_t index, const uint8_t *id, size_t *filled)
{
    struct stat st;
    ssize_t got;

    if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
        fail(loading, index, 0, "type", NULL);
        return FAILED;
    }
    if ((uint64_t)st.st_size > loading->capacity - *filled) {
        if ((uint64_t)st.st_size <= loading->capacity)
            return FULL;
        fail(loading, index, 0, "large", NULL);
        return FAILED;
    }
    got = read_full(fd, loading->buffer + *filled, (size_t)st.st_size);
    if (got < 0) {
        fail(loading, index, errno, "read", NULL);
        return FAILED;
    }
    if (loading->measure)
        check_measure(loading, fd, index, id);
    loading->sizes[index] = got;
    *filled += (size_t)got;
    return TAKEN;
}

/* Compares what is in the buffer with its names. */
static int check(struct loading *loading, const uint8_t *ids, size_t count, size_t items_count)
{
    size_t width = loading->params.algorithm->digest_size, at = 0, item = 0;
    struct verity_item *items = calloc(items_count + 1, sizeof *items);
    uint8_t *digests = malloc((items_count + 1) * width);
    int status = items && digests ? 0 : -1;

    for (size_t i = 0; status == 0 && i < count; i++) {
        if (loading->sizes[i] < 0)
            continue;
        items[item++] = (struct verity_item){loading->buffer + at, (size_t)loading->sizes[i]};
        at += (size_t)loading->sizes[i];
    }
    if (status == 0)
        status = verity_digest_many(&loading->params, items, items_count, digests);
    for (size_t i = 0, n = 0; status == 0 && i < count; i++) {
        if (loading->sizes[i] < 0)
            continue;
        if (memcmp(digests + n * width, ids + i * width, width) != 0)
            fail(loading, i, 0, "digest", digests + n * width);
        n++;
    }
    free(items);
    free(digests);
    return status;
}

ptrdiff_t loading_run(struct loading *loading, const uint8_t *ids, size_t count)
{
    size_t width = loading->params.algorithm->digest_size, filled = 0, items = 0, i = 0;
    char path[PATH_SIZE];

    for (; i < count; i++) {
        const uint8_t *id = ids + i * width;
        int fd = openat(loading->objects, path_of(id, width, path), OPEN_FLAGS);
        enum taken taken;
        loading->sizes[i] = -1;
        if (fd < 0) {
            fail(loading, i, errno, "open", NULL);
            continue;
        }
        taken = take(loading, fd, i, id, &filled);
        close(fd);
        if (taken == FULL)
            break;
        items += taken == TAKEN;
    }
    return check(loading, ids, i, items) ? -1 : (ptrdiff_t)i;
}
