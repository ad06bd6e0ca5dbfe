/* Reading many objects at once, with a comparison of what they are and what they are called; no Python. */

#ifndef COMPOSEFS_LOADING_H
#define COMPOSEFS_LOADING_H

#include "verity.h"

struct loading_failure {
    size_t index;
    int error; /* an errno, or 0 for what Python tells by the step */
    const char *step; /* a literal */
    bool has_digest;
    uint8_t digest[SHA2_MAX_DIGEST]; /* what the object is instead, or was measured as */
};

struct loading {
    struct verity_params params;
    int objects;  /* the directory objects/; stays the caller's */
    bool measure; /* every object must be guarded by the kernel under its name */
    uint8_t *buffer;
    size_t capacity;
    int64_t *sizes;                   /* out: for each object that was taken, -1 if it is not in the buffer */
    struct loading_failure *failures; /* out: has room for two an object */
    size_t failed;
};

enum merge_status { MERGE_END = 0, MERGE_FULL = 1, MERGE_LARGE = 2, MERGE_INVALID = 3 };

/* The chunks of a splitstream, taken apart. */
struct merge {
    struct loading loading; /* all but sizes, failures and failed is the caller's to set */
    const uint8_t *table;   /* ids of the objects that chunks refer to */
    size_t count;
    uint8_t *used; /* out: a 1 for each of these that was read */
    const uint8_t *piece; /* unpacked chunks */
    size_t size;
    size_t at;     /* in the piece; only ever grows */
    uint64_t left; /* of the inline content that comes first */
    size_t filled; /* out: of the buffer */
    int64_t value; /* out: of the object that is too large, or of the chunk that cannot be */
};

#define MERGE_ITEMS 1024 /* failures that a call has at most, twice */

/* The size of each object, or a negative errno; what is no regular file has -EINVAL. */
void loading_sizes(int objects, const uint8_t *ids, size_t count, size_t width, int64_t *sizes);

/* Reads objects one after another into the buffer, as many as fit, at least one: one that does not fit alone fails
 * with the step "large".  Returns how many were taken, or -1 for lack of memory. */
ptrdiff_t loading_run(struct loading *loading, const uint8_t *ids, size_t count);

/* Writes inline content and objects to the buffer in their order, up to the end of the last whole chunk header of the
 * piece (MERGE_END), until no more fits (MERGE_FULL), or up to an object that does not fit alone and is left out
 * (MERGE_LARGE).  Failures have indices of the table.  Returns a merge_status, or -1 for lack of memory. */
int merge_run(struct merge *merge);

/* The same without content: adds sizes, those of objects being given.  Negative ones count as nothing. */
int merge_sizes(struct merge *merge, const int64_t *sizes, uint64_t *total);

#endif
