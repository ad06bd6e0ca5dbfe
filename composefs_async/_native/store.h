/* Storing a batch of objects, from buffers to linked files; no Python. */

#ifndef COMPOSEFS_STORE_H
#define COMPOSEFS_STORE_H

#include "verity.h"

/* Values that Python sees. */
enum store_outcome { STORE_STORED = 0, STORE_PRESENT = 1, STORE_REPLACED = 2, STORE_FAILED = 255 };
enum store_verity { STORE_VERITY_NEVER = 0, STORE_VERITY_TRY = 1, STORE_VERITY_REQUIRE = 2 };
enum store_support { STORE_SUPPORT_UNKNOWN = -1, STORE_SUPPORT_NO = 0, STORE_SUPPORT_YES = 1 };

struct store_failure {
    size_t index;
    int error;
    const char *step; /* a literal */
};

struct store_batch {
    struct verity_params params;
    int objects;              /* the directory objects/; stays the caller's */
    enum store_verity verity;
    bool tmpfile;             /* may use O_TMPFILE */
    enum store_support support; /* out: whether the file system can do fs-verity */
    bool empty_path;          /* may link by AT_EMPTY_PATH */
    uint8_t shards[32];       /* bits of the directories XX that were looked at */
};

/* Stores *count* items: ids one after another to *ids*, an outcome each to *outcomes*, failures to *failures*, which
 * has room for *count*.  Returns the number of failures, or -1 for lack of memory. */
ptrdiff_t store_batch_run(struct store_batch *batch, const struct verity_item *items, size_t count, uint8_t *ids,
                          uint8_t *outcomes, struct store_failure *failures);

#endif
