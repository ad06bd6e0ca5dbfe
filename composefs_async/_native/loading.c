/* Objects are read into one buffer, and hashed side by side when it is full. */

#include "loading.h"

#include "beneath.h"
#include "files.h"
#include "object.h"
#include "retry.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define OPEN_FLAGS (O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC) /* a pipe in the place of an object must not hold us up */

#define READ_AT_ONCE 65536

void loading_sizes(int objects, const uint8_t *ids, size_t count, size_t width, int64_t *sizes)
{
    char path[OBJECT_PATH_SIZE];
    struct stat st;

    for (size_t i = 0; i < count; i++) {
        if (RETRY(fstatat(objects, object_path(ids + i * width, width, path), &st, AT_SYMLINK_NOFOLLOW)))
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
    uint8_t digest[SHA2_MAX_DIGEST];

    switch (object_measure(&loading->params, fd, id, digest)) {
    case OBJECT_SAME:
        break;
    case OBJECT_OTHER:
        fail(loading, index, 0, "digest", digest);
        break;
    case OBJECT_STRANGE:
        fail(loading, index, 0, "measure", NULL);
        break;
    case OBJECT_FAILED:
        fail(loading, index, errno, "measure", NULL);
        break;
    }
}

enum taken { TAKEN, FAILED, FULL };

static enum taken take_failed(struct loading *loading, size_t index, int error, const char *step)
{
    fail(loading, index, error, step, NULL);
    return FAILED;
}

/* Most files are smaller than READ_AT_ONCE, and a short read of a regular file ends where the file does.  That is
 * quicker than a look at its type and size before; what is no regular file has content that has another digest. */
static enum taken take(struct loading *loading, int fd, size_t index, const uint8_t *id, size_t *filled)
{
    uint8_t *to = loading->buffer + *filled;
    size_t room = loading->capacity - *filled, first = room < READ_AT_ONCE ? room : READ_AT_ONCE;
    ssize_t got = RETRY(read(fd, to, first));
    struct stat st;

    if (got <= 0 || (size_t)got == first) {
        int error = got < 0 ? errno : 0;
        if (fstat(fd, &st) || !S_ISREG(st.st_mode))
            return take_failed(loading, index, 0, "type");
        if (error)
            return take_failed(loading, index, error, "read");
        if ((uint64_t)st.st_size > room)
            return (uint64_t)st.st_size <= loading->capacity ? FULL : take_failed(loading, index, 0, "large");
        if (st.st_size > got) {
            ssize_t more = files_read(fd, to + got, (size_t)(st.st_size - got), got);
            if (more < 0)
                return take_failed(loading, index, errno, "read");
            got += more;
        }
    }
    if (loading->measure)
        check_measure(loading, fd, index, id);
    loading->sizes[index] = got;
    *filled += (size_t)got;
    return TAKEN;
}

/* Compares what is in the buffer with its names; *offsets* has where each object begins there. */
static int check(struct loading *loading, const uint8_t *ids, size_t count, const size_t *offsets)
{
    size_t width = loading->params.algorithm->digest_size, used = 0, n = 0;
    struct verity_item *items = calloc(count + 1, sizeof *items);
    uint8_t *digests = malloc((count + 1) * width);
    int status = items && digests ? 0 : -1;

    for (size_t i = 0; status == 0 && i < count; i++)
        if (loading->sizes[i] >= 0)
            items[used++] = (struct verity_item){loading->buffer + offsets[i], (size_t)loading->sizes[i]};
    if (status == 0)
        status = verity_digest_many(&loading->params, items, used, digests);
    for (size_t i = 0; status == 0 && i < count; i++) {
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

/* Opens and takes one object. */
static enum taken take_one(struct loading *loading, size_t index, const uint8_t *id, size_t *filled)
{
    char path[OBJECT_PATH_SIZE];
    int fd = beneath_open(loading->objects, object_path(id, loading->params.algorithm->digest_size, path), OPEN_FLAGS, 0);
    enum taken taken;

    loading->sizes[index] = -1;
    if (fd < 0) {
        fail(loading, index, errno, "open", NULL);
        return FAILED;
    }
    taken = take(loading, fd, index, id, filled);
    close(fd);
    return taken;
}

ptrdiff_t loading_run(struct loading *loading, const uint8_t *ids, size_t count)
{
    size_t width = loading->params.algorithm->digest_size, filled = 0, i = 0;
    size_t *offsets = calloc(count + 1, sizeof *offsets);
    int status;

    if (!offsets)
        return -1;
    for (; i < count; i++) {
        offsets[i] = filled;
        if (take_one(loading, i, ids + i * width, &filled) == FULL)
            break;
    }
    status = check(loading, ids, i, offsets);
    free(offsets);
    return status ? -1 : (ptrdiff_t)i;
}

/* -- splitstreams --------------------------------------------------------------------------------------------- */

static int64_t chunk_at(const struct merge *merge)
{
    uint64_t raw;

    memcpy(&raw, merge->piece + merge->at, sizeof raw);
    return (int64_t)le64toh(raw);
}

/* Reads the next chunk header if it is one of inline content.  False if it is anything else, with *status* if that
 * ends the run, and otherwise the index of an object in *value*. */
static bool inline_header(struct merge *merge, int *status)
{
    *status = -1;
    if (merge->size - merge->at < sizeof(int64_t)) {
        *status = MERGE_END;
        return false;
    }
    merge->value = chunk_at(merge);
    if (merge->value < 0 && merge->value != INT64_MIN) {
        merge->left = (uint64_t)-merge->value;
        merge->at += sizeof(int64_t);
        return true;
    }
    if (merge->value < 0 || (uint64_t)merge->value >= merge->count)
        *status = MERGE_INVALID;
    return false;
}

static size_t least(uint64_t left, size_t size)
{
    return left < size ? (size_t)left : size;
}

int merge_sizes(struct merge *merge, const int64_t *sizes, uint64_t *total)
{
    int status;

    for (;;) {
        size_t now = least(merge->left, merge->size - merge->at);
        merge->at += now;
        merge->left -= now;
        *total += now;
        if (merge->left)
            return MERGE_END;
        if (inline_header(merge, &status))
            continue;
        if (status >= 0)
            return status;
        *total += sizes[merge->value] > 0 ? (uint64_t)sizes[merge->value] : 0;
        merge->at += sizeof(int64_t);
    }
}

struct merged { /* the objects of a run */
    size_t count;
    size_t offsets[MERGE_ITEMS];
    size_t indices[MERGE_ITEMS];
    uint8_t ids[MERGE_ITEMS * SHA2_MAX_DIGEST];
};

static int merge_object(struct merge *merge, struct merged *merged)
{
    struct loading *loading = &merge->loading;
    size_t width = loading->params.algorithm->digest_size, n = merged->count;
    const uint8_t *id = merge->table + (size_t)merge->value * width;

    if (n == MERGE_ITEMS)
        return MERGE_FULL;
    merged->offsets[n] = merge->filled;
    switch (take_one(loading, n, id, &merge->filled)) {
    case FULL:
        return MERGE_FULL;
    case FAILED:
        if (strcmp(loading->failures[loading->failed - 1].step, "large") == 0) {
            loading->failed--;
            merge->used[merge->value] = 1;
            merge->at += sizeof(int64_t);
            return MERGE_LARGE;
        }
        break;
    case TAKEN:
        break;
    }
    merge->used[merge->value] = 1;
    merged->indices[n] = (size_t)merge->value;
    memcpy(merged->ids + n * width, id, width);
    merged->count++;
    merge->at += sizeof(int64_t);
    return -1;
}

static int merge_chunks(struct merge *merge, struct merged *merged)
{
    int status;

    for (;;) {
        size_t now = least(merge->left, merge->size - merge->at);
        now = least(now, merge->loading.capacity - merge->filled);
        memcpy(merge->loading.buffer + merge->filled, merge->piece + merge->at, now);
        merge->filled += now;
        merge->at += now;
        merge->left -= now;
        if (merge->left)
            return merge->at == merge->size ? MERGE_END : MERGE_FULL;
        if (inline_header(merge, &status))
            continue;
        if (status < 0)
            status = merge_object(merge, merged);
        if (status >= 0)
            return status;
    }
}

int merge_run(struct merge *merge)
{
    struct merged *merged = malloc(sizeof *merged);
    int status;

    if (!merged)
        return -1;
    merged->count = merge->filled = merge->loading.failed = 0;
    status = merge_chunks(merge, merged);
    if (check(&merge->loading, merged->ids, merged->count, merged->offsets))
        status = -1;
    for (size_t i = 0; i < merge->loading.failed; i++)
        merge->loading.failures[i].index = merged->indices[merge->loading.failures[i].index];
    free(merged);
    return status;
}
