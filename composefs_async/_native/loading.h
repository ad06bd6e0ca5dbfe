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

/* The size of each object, or a negative errno; what is no regular file has -EINVAL. */
void loading_sizes(int objects, const uint8_t *ids, size_t count, size_t width, int64_t *sizes);

/* Reads objects one after another into the buffer, as many as fit, at least one: one that does not fit alone fails
 * with the step "large".  Returns how many were taken, or -1 for lack of memory. */
ptrdiff_t loading_run(struct loading *loading, const uint8_t *ids, size_t count);

#endif
