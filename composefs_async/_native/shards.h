/* Ids against the directories that objects are in: sorting, comparing, removing; no Python. */

#ifndef COMPOSEFS_SHARDS_H
#define COMPOSEFS_SHARDS_H

#include <stddef.h>
#include <stdint.h>

#define SHARDS_MAX_ID 64

struct shards_buffer {
    uint8_t *data;
    size_t size;
    size_t room;
};

/* What is in one directory. */
struct shards_listing {
    size_t matched;              /* objects that are in the table */
    struct shards_buffer dead;   /* ids of the others */
    struct shards_buffer sizes;  /* of those, in bytes: uint64_t each */
    struct shards_buffer young;  /* ids of those that were stored since */
    struct shards_buffer others; /* what is no object: uint32_t mode, name, NUL */
};

/* Sorts ids of *width* bytes in place and drops repeated ones.  Returns how many are left. */
size_t shards_sort(uint8_t *ids, size_t count, size_t width);

/* Compares the directory *shard* with the sorted table of ids; looks at each object that is not in it.  A directory
 * that is not there is empty.  Returns 0, an errno, or -1 for lack of memory; the listing is to be freed in any case. */
int shards_compare(struct shards_listing *listing, int objects, unsigned shard, const uint8_t *ids, size_t count,
                   size_t width, int64_t since);

void shards_free(struct shards_listing *listing);

/* Removes the objects in their order; *statuses* gets 1 for those that were there.  Stops at the first that cannot be
 * removed.  Returns how many are done, and 0 or an errno in *error*. */
size_t shards_remove(int objects, const uint8_t *ids, size_t count, size_t width, uint8_t *statuses, int *error);

#endif
