/* Small files are read into one buffer and hashed together; a large file goes through the buffer piece by piece. */

#include "files.h"

#include "retry.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BUFFER ((size_t)1 << 20) /* a multiple of VERITY_BLOCK */

struct reader {
    const struct verity_params *params;
    uint8_t *buffer;
    size_t filled;
    size_t count; /* small files in the buffer, not yet hashed */
    struct verity_item items[VERITY_WINDOW_ITEMS];
    uint8_t *outs[VERITY_WINDOW_ITEMS];
    uint8_t digests[VERITY_WINDOW_ITEMS * SHA2_MAX_DIGEST];
};

ssize_t files_read(int fd, uint8_t *to, size_t size, off_t at)
{
    size_t got = 0;

    while (got < size) {
        ssize_t now = RETRY(pread(fd, to + got, size - got, at + (off_t)got));
        if (now < 0)
            return -1;
        if (now == 0)
            break;
        got += (size_t)now;
    }
    return (ssize_t)got;
}

static int flush(struct reader *reader)
{
    size_t digest = reader->params->algorithm->digest_size;

    if (verity_digest_many(reader->params, reader->items, reader->count, reader->digests))
        return -1;
    for (size_t i = 0; i < reader->count; i++)
        memcpy(reader->outs[i], reader->digests + i * digest, digest);
    reader->count = reader->filled = 0;
    return 0;
}

/* The buffer is full of the beginning of the file.  Returns 0, an errno, or -1 for lack of memory. */
static int digest_large(struct reader *reader, int fd, uint8_t *out)
{
    struct verity_tree *tree = verity_tree_new(reader->params);
    ssize_t got = (ssize_t)BUFFER;
    off_t at = 0;
    int status = tree ? 0 : -1;

    while (status == 0 && got > 0) {
        status = verity_tree_feed(tree, reader->buffer, (size_t)got);
        at += got;
        /* Only the last piece may be short, so a file that grows meanwhile is taken as it was found at that moment. */
        got = (size_t)got < BUFFER || status ? 0 : files_read(fd, reader->buffer, BUFFER, at);
        if (got < 0)
            status = errno;
    }
    if (status == 0)
        status = verity_tree_finish(tree, out);
    verity_tree_free(tree);
    return status;
}

/* Whether the rest of the buffer looks large enough; reading finds out. */
static bool seems_to_fit(const struct reader *reader, int fd)
{
    struct stat st;

    return reader->filled == 0 || (fstat(fd, &st) == 0 && st.st_size >= 0 &&
                                   (uint64_t)st.st_size < (uint64_t)(BUFFER - reader->filled));
}

/* Returns 0, an errno, or -1 for lack of memory. */
static int digest_one(struct reader *reader, int fd, uint8_t *out)
{
    ssize_t got;

    if ((reader->count == VERITY_WINDOW_ITEMS || !seems_to_fit(reader, fd)) && flush(reader))
        return -1;
    got = files_read(fd, reader->buffer + reader->filled, BUFFER - reader->filled, 0);
    if (got >= 0 && (size_t)got == BUFFER - reader->filled && reader->filled) {
        if (flush(reader))
            return -1;
        got = files_read(fd, reader->buffer, BUFFER, 0);
    }
    if (got < 0)
        return errno;
    if ((size_t)got == BUFFER)
        return digest_large(reader, fd, out);
    reader->items[reader->count] = (struct verity_item){reader->buffer + reader->filled, (size_t)got};
    reader->outs[reader->count++] = out;
    /* The next one begins on a cache line; a buffer filled to the end is no room for another. */
    reader->filled = (reader->filled + (size_t)got + 63) & ~(size_t)63;
    return reader->filled == BUFFER ? flush(reader) : 0;
}

int files_digest(const struct verity_params *params, const int *fds, size_t count, uint8_t *out, int *errors)
{
    struct reader *reader = malloc(sizeof *reader);
    int status = -1;

    if (reader && (reader->buffer = malloc(BUFFER))) {
        reader->params = params;
        reader->filled = reader->count = 0;
        status = 0;
        for (size_t i = 0; i < count && status == 0; i++) {
            int error = digest_one(reader, fds[i], out + i * params->algorithm->digest_size);
            errors[i] = error;
            status = error < 0 ? -1 : 0;
        }
        if (status == 0)
            status = flush(reader);
        free(reader->buffer);
    }
    free(reader);
    return status;
}
