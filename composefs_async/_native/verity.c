/* Merkle trees, level by level over all items of a window, so that many small files fill the lanes together. */

#include "verity.h"

#include <stdlib.h>
#include <string.h>

#define DESCRIPTOR 256 /* bytes of struct fsverity_descriptor, linux/fsverity.h */

bool verity_params_init(struct verity_params *params, int number, const char *implementation)
{
    params->number = number;
    params->algorithm = sha2_by_number(number);
    params->implementation = params->algorithm ? sha2_choose(params->algorithm, implementation) : NULL;
    return params->implementation != NULL;
}

/* -- a queue that turns single blocks into full lanes --------------------------------------------------------- */

struct queue {
    const struct verity_params *params;
    size_t count;
    const uint8_t *in[SHA2_MAX_LANES];
    uint8_t *out[SHA2_MAX_LANES];
    uint8_t padded[SHA2_MAX_LANES][VERITY_BLOCK];
};

static void queue_flush(struct queue *queue, size_t length)
{
    sha2_many(queue->params->implementation, queue->in, queue->count, length, queue->out);
    queue->count = 0;
}

/* Runs as soon as there is a full set of lanes; results appear at the latest with queue_flush. */
static void queue_add(struct queue *queue, const uint8_t *block, size_t length, uint8_t *out)
{
    queue->in[queue->count] = block;
    queue->out[queue->count] = out;
    if (++queue->count == queue->params->implementation->groups[0].lanes)
        queue_flush(queue, length);
}

/* Copies what is not a whole block, and puts zeros after it. */
static void queue_add_padded(struct queue *queue, const uint8_t *data, size_t size, uint8_t *out)
{
    uint8_t *copy = queue->padded[queue->count];

    memcpy(copy, data, size);
    memset(copy + size, 0, VERITY_BLOCK - size);
    queue_add(queue, copy, VERITY_BLOCK, out);
}

static void queue_add_blocks(struct queue *queue, const uint8_t *data, size_t size, uint8_t *out)
{
    size_t step = queue->params->algorithm->digest_size;

    for (; size >= VERITY_BLOCK; data += VERITY_BLOCK, size -= VERITY_BLOCK, out += step)
        queue_add(queue, data, VERITY_BLOCK, out);
    if (size)
        queue_add_padded(queue, data, size, out);
}

void verity_hash_blocks(const struct verity_params *params, const uint8_t *data, size_t size, uint8_t *out)
{
    struct queue queue;

    queue.params = params;
    queue.count = 0;
    queue_add_blocks(&queue, data, size, out);
    queue_flush(&queue, VERITY_BLOCK);
}

static size_t blocks_of(size_t size)
{
    return size / VERITY_BLOCK + (size % VERITY_BLOCK != 0);
}

static void put_le64(uint8_t *to, uint64_t value)
{
    for (int i = 0; i < 8; i++)
        to[i] = (uint8_t)(value >> (8 * i));
}

/* struct fsverity_descriptor: version, hash_algorithm, log_blocksize, salt_size, …, data_size at 8, root at 16. */
static void make_descriptor(const struct verity_params *params, uint64_t size, const uint8_t *root, uint8_t *out)
{
    memset(out, 0, DESCRIPTOR);
    out[0] = 1;
    out[1] = (uint8_t)params->number;
    out[2] = 12;
    put_le64(out + 8, size);
    if (root) /* an empty file has none, and zeros in its place */
        memcpy(out + 16, root, params->algorithm->digest_size);
}

/* -- a window of whole items ---------------------------------------------------------------------------------- */

/* The hashes of the level that was made last, of one item. */
struct level {
    uint8_t *hashes;
    size_t count;
};

size_t verity_window(const struct verity_item *items, size_t count)
{
    size_t taken = 0, bytes = 0;

    while (taken < count && taken < VERITY_WINDOW_ITEMS) {
        if (taken && items[taken].size > VERITY_WINDOW - bytes)
            break;
        bytes += items[taken++].size;
        if (bytes >= VERITY_WINDOW)
            break;
    }
    return taken;
}

/* Makes the next level of every item that has more than one hash, at *to*.  Returns the end of what was made. */
static uint8_t *next_level(struct queue *queue, struct level *levels, size_t count, uint8_t *to)
{
    size_t digest = queue->params->algorithm->digest_size;

    for (size_t i = 0; i < count; i++) {
        size_t bytes = levels[i].count * digest;
        if (levels[i].count < 2)
            continue;
        queue_add_blocks(queue, levels[i].hashes, bytes, to);
        levels[i] = (struct level){to, blocks_of(bytes)};
        to += levels[i].count * digest;
    }
    queue_flush(queue, VERITY_BLOCK);
    return to;
}

static void descriptors(struct queue *queue, const struct verity_item *items, const struct level *levels,
                        size_t count, uint8_t *out)
{
    size_t digest = queue->params->algorithm->digest_size;

    for (size_t i = 0; i < count; i++) {
        uint8_t *descriptor = queue->padded[queue->count];
        make_descriptor(queue->params, items[i].size, levels[i].count ? levels[i].hashes : NULL, descriptor);
        queue_add(queue, descriptor, DESCRIPTOR, out + i * digest);
    }
    queue_flush(queue, DESCRIPTOR);
}

static int digest_window(const struct verity_params *params, const struct verity_item *items, size_t count,
                         uint8_t *out)
{
    struct level levels[VERITY_WINDOW_ITEMS];
    size_t digest = params->algorithm->digest_size, hashes = 0;
    struct queue queue;
    uint8_t *memory, *to;

    for (size_t i = 0; i < count; i++)
        hashes += blocks_of(items[i].size);
    /* All levels above the first one together have fewer hashes than it. */
    memory = malloc((2 * hashes + 1) * digest);
    if (!memory)
        return -1;
    queue.params = params;
    queue.count = 0;
    to = memory;
    for (size_t i = 0; i < count; i++) {
        levels[i] = (struct level){to, blocks_of(items[i].size)};
        queue_add_blocks(&queue, items[i].data, items[i].size, to);
        to += levels[i].count * digest;
    }
    queue_flush(&queue, VERITY_BLOCK);
    for (uint8_t *end; (end = next_level(&queue, levels, count, to)) != to;)
        to = end;
    descriptors(&queue, items, levels, count, out);
    free(memory);
    return 0;
}

static int digest_large(const struct verity_params *params, const struct verity_item *item, uint8_t *out)
{
    struct verity_tree *tree = verity_tree_new(params);
    int status = -1;

    if (tree && verity_tree_feed(tree, item->data, item->size) == 0)
        status = verity_tree_finish(tree, out);
    verity_tree_free(tree);
    return status;
}

int verity_digest_many(const struct verity_params *params, const struct verity_item *items, size_t count,
                       uint8_t *out)
{
    for (size_t at = 0; at < count;) {
        size_t taken = verity_window(items + at, count - at);
        uint8_t *to = out + at * params->algorithm->digest_size;
        int status = items[at].size > VERITY_WINDOW ? digest_large(params, items + at, to)
                                                    : digest_window(params, items + at, taken, to);
        if (status)
            return status;
        at += taken;
    }
    return 0;
}

/* -- a tree fed from the front -------------------------------------------------------------------------------- */

/* Each level above the content gathers this many blocks before they are hashed together; as many as there are lanes. */
#define TREE_BLOCKS SHA2_MAX_LANES
#define TREE_LEVEL ((size_t)TREE_BLOCKS * VERITY_BLOCK)
#define TREE_LEVELS 10 /* of 64 hashes a block: more than 2^64 bytes need */

struct verity_tree {
    struct verity_params params;
    uint64_t size;
    uint8_t *level[TREE_LEVELS];
    size_t filled[TREE_LEVELS]; /* bytes */
};

struct verity_tree *verity_tree_new(const struct verity_params *params)
{
    struct verity_tree *tree = calloc(1, sizeof *tree);

    if (tree)
        tree->params = *params;
    return tree;
}

void verity_tree_free(struct verity_tree *tree)
{
    if (!tree)
        return;
    for (int i = 0; i < TREE_LEVELS; i++)
        free(tree->level[i]);
    free(tree);
}

/* Hashes what a level has gathered into the next one, which is created by that. */
static int tree_fold(struct verity_tree *tree, int number)
{
    size_t made = blocks_of(tree->filled[number]) * tree->params.algorithm->digest_size;

    if (!tree->level[number + 1] && !(tree->level[number + 1] = malloc(TREE_LEVEL)))
        return -1;
    if (tree->filled[number + 1] == TREE_LEVEL && tree_fold(tree, number + 1))
        return -1;
    verity_hash_blocks(&tree->params, tree->level[number], tree->filled[number],
                       tree->level[number + 1] + tree->filled[number + 1]);
    tree->filled[number + 1] += made;
    tree->filled[number] = 0;
    return 0;
}

int verity_tree_feed(struct verity_tree *tree, const uint8_t *data, size_t size)
{
    size_t digest = tree->params.algorithm->digest_size;

    if (!tree->level[0] && !(tree->level[0] = malloc(TREE_LEVEL)))
        return -1;
    tree->size += size;
    while (size) {
        size_t room, now;
        /* Folded only when more comes: the top level of a tree may be exactly full. */
        if (tree->filled[0] == TREE_LEVEL && tree_fold(tree, 0))
            return -1;
        room = (TREE_LEVEL - tree->filled[0]) / digest * VERITY_BLOCK;
        now = size < room ? size : room;
        verity_hash_blocks(&tree->params, data, now, tree->level[0] + tree->filled[0]);
        tree->filled[0] += blocks_of(now) * digest;
        data += now;
        size -= now;
    }
    return 0;
}

int verity_tree_finish(struct verity_tree *tree, uint8_t *out)
{
    size_t digest = tree->params.algorithm->digest_size;
    uint8_t descriptor[DESCRIPTOR];
    const uint8_t *in[1] = {descriptor};
    int top = 0;

    while (top + 1 < TREE_LEVELS && (tree->level[top + 1] || tree->filled[top] > digest)) {
        if (tree_fold(tree, top))
            return -1;
        top++;
    }
    make_descriptor(&tree->params, tree->size, tree->size ? tree->level[top] : NULL, descriptor);
    sha2_many(tree->params.implementation, in, 1, DESCRIPTOR, &out);
    return 0;
}
