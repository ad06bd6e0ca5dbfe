/* One directory at a time, read with getdents64(2), whose names are compared with ids as they come. */

#include "shards.h"

#include "beneath.h"
#include "object.h"
#include "retry.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

struct entry { /* struct linux_dirent64 (getdents(2)) */
    uint64_t inode;
    int64_t offset;
    uint16_t size;
    uint8_t type;
    char name[];
};

/* -- ids ------------------------------------------------------------------------------------------------------ */

static int compare_32(const void *one, const void *other)
{
    return memcmp(one, other, 32);
}

static int compare_64(const void *one, const void *other)
{
    return memcmp(one, other, 64);
}

size_t shards_sort(uint8_t *ids, size_t count, size_t width)
{
    size_t kept = 0;

    qsort(ids, count, width, width == 32 ? compare_32 : compare_64);
    for (size_t i = 0; i < count; i++) {
        if (kept && !memcmp(ids + (kept - 1) * width, ids + i * width, width))
            continue;
        if (kept != i)
            memcpy(ids + kept * width, ids + i * width, width);
        kept++;
    }
    return kept;
}

/* One more than the value of each lower-case hexadecimal digit; 0 for what is none. */
static const uint8_t values[256] = {['0'] = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ['a'] = 11, 12, 13, 14, 15, 16};

/* Whether *name* is the rest of an id whose first byte is there. */
static bool parse_rest(const char *name, uint8_t *id, size_t width)
{
    const uint8_t *digits = (const uint8_t *)name;
    bool bad = false;

    if (strnlen(name, 2 * width) != 2 * (width - 1))
        return false;
    for (size_t i = 1; i < width; i++, digits += 2) {
        uint8_t high = values[digits[0]], low = values[digits[1]];
        bad |= !high || !low;
        id[i] = (uint8_t)((high - 1u) << 4 | (low - 1u));
    }
    return !bad;
}

static uint64_t prefix(const uint8_t *id)
{
    uint64_t number;

    memcpy(&number, id + 1, sizeof number); /* the first byte is the same in a whole directory */
    return be64toh(number);
}

static bool is_among(const uint8_t *id, const uint8_t *ids, size_t count, size_t width)
{
    uint64_t wanted = prefix(id);
    size_t low = 0, high = count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const uint8_t *other = ids + middle * width;
        uint64_t found = prefix(other);
        int order = found < wanted ? -1 : found > wanted ? 1 : memcmp(other, id, width);
        if (order == 0)
            return true;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return false;
}

/* -- one directory -------------------------------------------------------------------------------------------- */

static int append(struct shards_buffer *buffer, const void *data, size_t size)
{
    if (buffer->room - buffer->size < size) {
        size_t room = 2 * buffer->room + size + 4096;
        uint8_t *grown = realloc(buffer->data, room);
        if (!grown)
            return -1;
        buffer->data = grown;
        buffer->room = room;
    }
    memcpy(buffer->data + buffer->size, data, size);
    buffer->size += size;
    return 0;
}

struct table {
    const uint8_t *ids;
    size_t count;
    size_t width;
    int64_t since;
};

static int take_other(struct shards_listing *listing, uint32_t mode, const char *name)
{
    return append(&listing->others, &mode, sizeof mode) || append(&listing->others, name, strlen(name) + 1) ? -1 : 0;
}

static int take_object(struct shards_listing *listing, const struct table *table, const uint8_t *id,
                       const struct stat *status)
{
    uint64_t size = (uint64_t)status->st_size;

    if ((int64_t)status->st_ctim.tv_sec * 1000000000 + status->st_ctim.tv_nsec >= table->since)
        return append(&listing->young, id, table->width);
    return append(&listing->dead, id, table->width) || append(&listing->sizes, &size, sizeof size) ? -1 : 0;
}

/* Returns 0, an errno, or -1 for lack of memory. */
static int take(struct shards_listing *listing, const struct table *table, int fd, uint8_t *id, const char *name)
{
    bool is_object = parse_rest(name, id, table->width);
    struct stat status;

    if (is_object && is_among(id, table->ids, table->count, table->width)) {
        listing->matched++;
        return 0;
    }
    if (!strcmp(name, ".") || !strcmp(name, ".."))
        return 0;
    if (RETRY(fstatat(fd, name, &status, AT_SYMLINK_NOFOLLOW)))
        return errno == ENOENT ? 0 : errno;
    return is_object && S_ISREG(status.st_mode) ? take_object(listing, table, id, &status)
                                                : take_other(listing, status.st_mode, name);
}

static int take_all(struct shards_listing *listing, const struct table *table, int fd, uint8_t *id)
{
    _Alignas(struct entry) char buffer[32768];
    int status = 0;
    long got;

    while (status == 0 && (got = RETRY(syscall(SYS_getdents64, fd, buffer, sizeof buffer))) != 0) {
        if (got < 0)
            return errno;
        for (long at = 0; at < got && status == 0;) {
            const struct entry *entry = (const struct entry *)(buffer + at);
            status = take(listing, table, fd, id, entry->name);
            at += entry->size;
        }
    }
    return status;
}

int shards_compare(struct shards_listing *listing, int objects, unsigned shard, const uint8_t *ids, size_t count,
                   size_t width, int64_t since)
{
    const struct table table = {ids, count, width, since};
    uint8_t id[SHARDS_MAX_ID] = {(uint8_t)shard};
    char path[OBJECT_PATH_SIZE];
    int fd, status;

    *listing = (struct shards_listing){0};
    (void)object_path(id, 1, path);
    path[2] = 0; /* behind a slash a link would be followed */
    fd = beneath_open(objects, path, O_RDONLY | O_DIRECTORY, 0);
    if (fd < 0)
        return errno == ENOENT ? 0 : errno;
    status = take_all(listing, &table, fd, id);
    close(fd);
    return status;
}

void shards_free(struct shards_listing *listing)
{
    free(listing->dead.data);
    free(listing->sizes.data);
    free(listing->young.data);
    free(listing->others.data);
}

/* The directory of *id*, of which *shard* may be open already as *fd*.  Returns -1 with errno. */
static int open_shard(int objects, const uint8_t *id, int *shard, int fd)
{
    char path[OBJECT_PATH_SIZE];

    if (*shard == id[0])
        return fd;
    if (*shard >= 0)
        close(fd);
    (void)object_path(id, 1, path);
    path[2] = 0;
    fd = beneath_open(objects, path, O_PATH | O_DIRECTORY, 0);
    *shard = fd < 0 ? -1 : id[0];
    return fd;
}

size_t shards_remove(int objects, const uint8_t *ids, size_t count, size_t width, uint8_t *statuses, int *error)
{
    char path[OBJECT_PATH_SIZE];
    int shard = -1, fd = -1;
    size_t i;

    *error = 0;
    for (i = 0; i < count && !*error; i++) {
        (void)object_path(ids + i * width, width, path);
        fd = open_shard(objects, ids + i * width, &shard, fd);
        if (fd >= 0 && RETRY(unlinkat(fd, path + 3, 0)) == 0)
            statuses[i] = 1;
        else if (errno == ENOENT)
            statuses[i] = 0;
        else
            *error = errno;
    }
    if (shard >= 0)
        close(fd);
    return *error ? i - 1 : i;
}
