/* The fs-verity digest of many files at once; no Python. */

#ifndef COMPOSEFS_VERITY_H
#define COMPOSEFS_VERITY_H

#include "sha2.h"

#define VERITY_BLOCK 4096

/* A batch is cut into windows of about this many bytes, so that content is still in the cache when it is used again,
 * and the hashes of a window take little memory. */
#define VERITY_WINDOW ((size_t)1 << 19)
#define VERITY_WINDOW_ITEMS 256

struct verity_params {
    const struct sha2_algorithm *algorithm;
    const struct sha2_implementation *implementation;
    int number; /* in the descriptor */
};

struct verity_item {
    const uint8_t *data;
    size_t size;
};

/* False if there is no such algorithm or this processor cannot run the implementation. */
bool verity_params_init(struct verity_params *params, int number, const char *implementation);

/* How many of the items, at least one, make the next window. */
size_t verity_window(const struct verity_item *items, size_t count);

/* Hashes the 4096-byte blocks of *data*, the last one as if zeros followed. */
void verity_hash_blocks(const struct verity_params *params, const uint8_t *data, size_t size, uint8_t *out);

/* Digests of *count* items one after another to *out*.  0, or -1 for lack of memory. */
int verity_digest_many(const struct verity_params *params, const struct verity_item *items, size_t count,
                       uint8_t *out);

/* A tree that is fed from the front, for content that is not in memory as a whole. */
struct verity_tree;

struct verity_tree *verity_tree_new(const struct verity_params *params); /* NULL for lack of memory */
void verity_tree_free(struct verity_tree *tree);

/* *size* is a multiple of VERITY_BLOCK except in the last call.  0, or -1 for lack of memory. */
int verity_tree_feed(struct verity_tree *tree, const uint8_t *data, size_t size);

/* Ends the tree.  0, or -1 for lack of memory. */
int verity_tree_finish(struct verity_tree *tree, uint8_t *out);

#endif
