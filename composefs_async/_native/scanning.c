/* A file is taken as it was between two looks at it, and closed; digests are made of many at a time, later. */

#include "scanning.h"

#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#define BUFFER ((size_t)1 << 20)
#define NAMES 4096 /* bytes of the names of a file's attributes; more is unusual */
/* What has several names may come again, and reading it each time is quicker than asking, up to about this size. */
#define LINKED_MAX ((size_t)1 << 16)
#define OPEN_FLAGS (O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC) /* what was a file may be a pipe now */

_Static_assert(sizeof(struct scanned) == 64, "Python takes it apart");

/* Files that have been read and have no digest yet. */
struct gathered {
    uint8_t *buffer;
    size_t filled, count;
    struct verity_item items[VERITY_WINDOW_ITEMS];
};

/* -- digests -------------------------------------------------------------------------------------------------- */

static int store(struct scanning *scanning, const struct gathered *gathered, uint8_t *ids)
{
    uint8_t outcomes[VERITY_WINDOW_ITEMS];
    struct store_failure failures[VERITY_WINDOW_ITEMS];
    enum store_support known = scanning->store->support;
    ptrdiff_t failed =
        store_batch_run(scanning->store, gathered->items, gathered->count, ids, outcomes, failures);

    if (scanning->store->support == STORE_SUPPORT_UNKNOWN)
        scanning->store->support = known;
    if (failed > 0) {
        scanning->failure = failures[0];
        scanning->failure.index += scanning->digested;
    }
    return failed < 0 ? -1 : 0;
}

static int flush(struct scanning *scanning, struct gathered *gathered)
{
    uint8_t *ids = scanning->ids + scanning->digested * scanning->params.algorithm->digest_size;
    int status = scanning->store ? store(scanning, gathered, ids)
                                 : verity_digest_many(&scanning->params, gathered->items, gathered->count, ids);

    scanning->digested += gathered->count;
    gathered->count = gathered->filled = 0;
    return status;
}

/* -- one file ------------------------------------------------------------------------------------------------- */

static int take_attribute(struct scanning *scanning, int fd, const char *name)
{
    size_t length = strlen(name), room = scanning->attributes_room - scanning->attributes_size;
    uint8_t *to = scanning->attributes + scanning->attributes_size;
    uint32_t lengths[2] = {(uint32_t)length};
    ssize_t got;

    if (room <= sizeof lengths + length) /* no room at all for the value would be a question for its length */
        return -1;
    got = fgetxattr(fd, name, to + sizeof lengths + length, room - sizeof lengths - length);
    if (got < 0)
        return -1;
    lengths[1] = (uint32_t)got;
    memcpy(to, lengths, sizeof lengths);
    memcpy(to + sizeof lengths, name, length);
    scanning->attributes_size += sizeof lengths + length + (size_t)got;
    return 0;
}

/* -1 if there is something about them that the caller must see for itself. */
static int take_attributes(struct scanning *scanning, int fd)
{
    char names[NAMES];
    ssize_t size = flistxattr(fd, names, sizeof names);

    if (size < 0)
        return errno == EOPNOTSUPP ? 0 : -1;
    for (const char *name = names; name < names + size; name += strlen(name) + 1)
        if (take_attribute(scanning, fd, name))
            return -1;
    return 0;
}

static bool same_time(struct timespec one, struct timespec other)
{
    return one.tv_sec == other.tv_sec && one.tv_nsec == other.tv_nsec;
}

static bool is_unchanged(int fd, const struct stat *before)
{
    struct stat now;

    return fstat(fd, &now) == 0 && now.st_size == before->st_size && same_time(now.st_mtim, before->st_mtim) &&
           same_time(now.st_ctim, before->st_ctim);
}

static void keep(struct scanning *scanning, struct gathered *gathered, const uint8_t *content, size_t size)
{
    if (size <= scanning->inline_max) {
        memcpy(scanning->contents + scanning->contents_size, content, size);
        scanning->contents_size += size;
        return;
    }
    gathered->items[gathered->count++] = (struct verity_item){content, size};
    gathered->filled = (gathered->filled + size + 63) & ~(size_t)63; /* to the next cache line */
}

/* There is room for the file and one more byte, which would show that it grew. */
static enum scan_outcome take(struct scanning *scanning, struct gathered *gathered, int fd, const struct stat *status,
                              struct scanned *record)
{
    size_t size = (size_t)status->st_size, attributes = scanning->attributes_size;
    uint8_t *to = gathered->buffer + gathered->filled;
    ssize_t got;

    if (scanning->read_attributes && take_attributes(scanning, fd))
        return SCAN_LEFT;
    got = files_read(fd, to, size + 1, 0);
    if (got < 0)
        return SCAN_LEFT;
    if ((size_t)got != size || !is_unchanged(fd, status))
        return SCAN_CHANGED;
    *record = (struct scanned){
        .device = status->st_dev,
        .inode = status->st_ino,
        .size = status->st_size,
        .seconds = status->st_mtim.tv_sec,
        .nanoseconds = (uint32_t)status->st_mtim.tv_nsec,
        .mode = status->st_mode,
        .links = (uint32_t)status->st_nlink,
        .uid = status->st_uid,
        .gid = status->st_gid,
        .attributes = (uint32_t)(scanning->attributes_size - attributes),
    };
    keep(scanning, gathered, to, size);
    return SCAN_DONE;
}

static bool is_large(const struct stat *status)
{
    return status->st_size < 0 || (size_t)status->st_size >= BUFFER ||
           (status->st_nlink > 1 && (size_t)status->st_size > LINKED_MAX);
}

/* Returns -1 for lack of memory. */
static int look(struct scanning *scanning, struct gathered *gathered, int fd, struct scanned *record)
{
    size_t attributes = scanning->attributes_size;
    struct stat status;

    *record = (struct scanned){.outcome = SCAN_LEFT};
    if (fstat(fd, &status) || !S_ISREG(status.st_mode) || is_large(&status))
        return 0;
    if ((gathered->count == VERITY_WINDOW_ITEMS || (size_t)status.st_size >= BUFFER - gathered->filled) &&
        flush(scanning, gathered))
        return -1;
    record->outcome = take(scanning, gathered, fd, &status, record);
    if (record->outcome != SCAN_DONE)
        scanning->attributes_size = attributes;
    return 0;
}

/* -- the batch ------------------------------------------------------------------------------------------------ */

static int look_at(struct scanning *scanning, struct gathered *gathered, int directory, const char *name,
                   struct scanned *record)
{
    int fd = openat(directory, name, OPEN_FLAGS), status;

    if (fd < 0) {
        *record = (struct scanned){.outcome = SCAN_LEFT};
        return 0;
    }
    status = look(scanning, gathered, fd, record);
    close(fd);
    return status;
}

int scanning_run(struct scanning *scanning, const int *directories, const char *const *names, size_t count)
{
    struct gathered *gathered = malloc(sizeof *gathered);
    int status = -1;

    scanning->digested = scanning->contents_size = scanning->attributes_size = 0;
    scanning->failure = (struct store_failure){0};
    if (scanning->store)
        scanning->store->support = STORE_SUPPORT_UNKNOWN;
    if (gathered && (gathered->buffer = malloc(BUFFER))) {
        gathered->count = gathered->filled = 0;
        status = 0;
        for (size_t i = 0; i < count && status == 0 && !scanning->failure.error; i++)
            status = look_at(scanning, gathered, directories[i], names[i], &scanning->records[i]);
        if (status == 0 && !scanning->failure.error)
            status = flush(scanning, gathered);
        free(gathered->buffer);
    }
    free(gathered);
    return status;
}
