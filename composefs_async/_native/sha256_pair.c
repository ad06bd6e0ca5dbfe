#include "sha256_pair.h"

#include <string.h>

#include "sha2.h"

#define BLOCK 64

static void pass(struct sha256_piece *piece, size_t size)
{
    piece->data += size;
    piece->size -= size;
}

static void blocks(struct sha256_stream *stream, const uint8_t *data, size_t count)
{
    uint32_t *const states[] = {stream->state};
    const uint8_t *const in[] = {data};

    sha256_blocks1(states, in, count);
}

/* Completes the block that was begun, if there is one, and there is enough for it. */
static void align(struct sha256_stream *stream, struct sha256_piece *piece)
{
    const size_t begun = (size_t)(stream->bytes % BLOCK);
    size_t taken = begun ? BLOCK - begun : 0;

    if (taken > piece->size)
        taken = piece->size;
    if (!taken)
        return;
    memcpy(stream->tail + begun, piece->data, taken);
    stream->bytes += taken;
    pass(piece, taken);
    if (begun + taken == BLOCK)
        blocks(stream, stream->tail, 1);
}

/* The rest of a piece, on this stream alone. */
static void finish(struct sha256_stream *stream, struct sha256_piece piece)
{
    align(stream, &piece);
    if (piece.size >= BLOCK) {
        const size_t whole = piece.size / BLOCK;
        blocks(stream, piece.data, whole);
        stream->bytes += whole * BLOCK;
        pass(&piece, whole * BLOCK);
    }
    if (piece.size) { /* so that the stream is at the beginning of a block */
        memcpy(stream->tail, piece.data, piece.size);
        stream->bytes += piece.size;
    }
}

void sha256_pair_begin(struct sha256_stream streams[2])
{
    memset(streams, 0, 2 * sizeof *streams);
    for (int i = 0; i < 2; i++)
        memcpy(streams[i].state, sha256_iv, sizeof streams[i].state);
}

void sha256_pair_update(struct sha256_stream streams[2], const struct sha256_piece *pieces, size_t count,
                        struct sha256_piece other)
{
    uint32_t *const states[] = {streams[0].state, streams[1].state};

    align(&streams[1], &other);
    for (size_t i = 0; i < count; i++) {
        struct sha256_piece piece = pieces[i];
        size_t together;

        align(&streams[0], &piece);
        together = (piece.size < other.size ? piece.size : other.size) / BLOCK;
        if (together) {
            const uint8_t *const in[] = {piece.data, other.data};
            sha256_blocks2(states, in, together);
            streams[0].bytes += together * BLOCK;
            streams[1].bytes += together * BLOCK;
            pass(&piece, together * BLOCK);
            pass(&other, together * BLOCK);
        }
        finish(&streams[0], piece);
    }
    finish(&streams[1], other);
}

void sha256_stream_digest(const struct sha256_stream *stream, uint8_t digest[32])
{
    struct sha256_stream copy = *stream;
    uint8_t padding[BLOCK + 8 + 1] = {0x80};
    const size_t begun = (size_t)(stream->bytes % BLOCK), zeros = (2 * BLOCK - 9 - begun) % BLOCK;

    /* FIPS 180-4: a one, zeros, and the length in bits. */
    for (size_t i = 0; i < 8; i++)
        padding[1 + zeros + i] = (uint8_t)(stream->bytes * 8 >> (56 - 8 * i));
    finish(&copy, (struct sha256_piece){padding, 1 + zeros + 8});
    for (size_t i = 0; i < 32; i++)
        digest[i] = (uint8_t)(copy.state[i / 4] >> (24 - 8 * (i % 4)));
}
