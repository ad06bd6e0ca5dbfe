/* Two SHA-256 streams of any length, hashed in step where both have input; no Python, no system calls. */

#ifndef COMPOSEFS_SHA256_PAIR_H
#define COMPOSEFS_SHA256_PAIR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct sha256_stream {
    uint32_t state[8];
    uint64_t bytes;   /* so far */
    uint8_t tail[64]; /* the last of them, which are no whole block */
};

struct sha256_piece {
    const uint8_t *data;
    size_t size;
};

/* Only where this holds is anything else here to be called. */
bool sha256_pair_usable(void);

void sha256_pair_begin(struct sha256_stream streams[2]);

/* The first stream goes on by all *pieces*, the second by *other*. */
void sha256_pair_update(struct sha256_stream streams[2], const struct sha256_piece *pieces, size_t count,
                        struct sha256_piece other);

void sha256_stream_digest(const struct sha256_stream *stream, uint8_t digest[32]);

/* Whole blocks on one stream, or on two. */
void sha256_blocks1(uint32_t *const state[], const uint8_t *const in[], size_t blocks);
void sha256_blocks2(uint32_t *const state[], const uint8_t *const in[], size_t blocks);

#endif
