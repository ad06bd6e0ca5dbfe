/* Looking at many files by their names: metadata, attributes and content in one go; no Python. */

#ifndef COMPOSEFS_SCANNING_H
#define COMPOSEFS_SCANNING_H

#include "store.h"

enum scan_outcome {
    SCAN_DONE = 0,
    SCAN_LEFT = 1,    /* large, unusual, or impossible to read: the caller looks for itself, and meets the same error */
    SCAN_CHANGED = 2, /* while it was read */
};

/* What Python sees of each file, as it lies here. */
struct scanned {
    uint64_t device, inode;
    int64_t size, seconds;
    uint32_t nanoseconds, mode, links, uid, gid;
    uint32_t attributes; /* bytes of its extended attributes */
    uint32_t outcome;    /* if it is not SCAN_DONE, nothing else counts */
    uint32_t unused;
};

struct scanning {
    struct verity_params params;
    struct store_batch *store; /* NULL: only digests are wanted */
    size_t inline_max;         /* content of up to so many bytes is handed out and has no digest */
    bool read_attributes;

    struct scanned *records; /* out: one for each file */
    uint8_t *ids;            /* out: of the other files in their order; has room for one for each */
    size_t digested;         /* out: how many these are */
    uint8_t *contents;       /* out: one after another; has room for inline_max bytes for each file */
    size_t contents_size;
    uint8_t *attributes; /* out: for each: uint32_t length of the name, uint32_t length of the value, both */
    size_t attributes_size, attributes_room;
    struct store_failure failure; /* out: the first file that could not be stored, as index of ids; error 0: none */
};

/* Looks at *count* regular files in the directories; one descriptor is open at a time.  Ends after a failure to store.
 * Returns 0, or -1 for lack of memory. */
int scanning_run(struct scanning *scanning, const int *directories, const char *const *names, size_t count);

#endif
