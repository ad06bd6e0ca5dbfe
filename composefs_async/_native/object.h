/* What is known of an object by its id: its path, and what the kernel measures; no Python. */

#ifndef COMPOSEFS_OBJECT_H
#define COMPOSEFS_OBJECT_H

#include "verity.h"

#define OBJECT_PATH_SIZE (2 * SHA2_MAX_DIGEST + 2) /* XX/REST and NUL */

enum object_measured {
    OBJECT_SAME,    /* as the id */
    OBJECT_OTHER,   /* as another digest of the same kind */
    OBJECT_STRANGE, /* by another algorithm */
    OBJECT_FAILED,  /* errno says why */
};

/* Writes the path below objects/, and returns it.  With a width of 1 that is the directory, and a slash. */
const char *object_path(const uint8_t *id, size_t width, char path[OBJECT_PATH_SIZE]);

/* Compares what fs-verity measures *fd* as with *id*.  *digest*, unless it is NULL, has what OBJECT_OTHER is. */
enum object_measured object_measure(const struct verity_params *params, int fd, const uint8_t *id, uint8_t *digest);

#endif
