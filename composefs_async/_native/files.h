/* The fs-verity digest of what is behind file descriptors; no Python. */

#ifndef COMPOSEFS_FILES_H
#define COMPOSEFS_FILES_H

#include "verity.h"

#include <sys/types.h>

/* Reads *size* bytes from *at*, or what there is up to the end of the file.  Returns the number, or -1 with errno. */
ssize_t files_read(int fd, uint8_t *to, size_t size, off_t at);

/* Digests *count* files from their beginning to their end, without moving their offsets.  Each gets an errno, or 0
 * and a digest in *out*.  Returns 0, or -1 for lack of memory. */
int files_digest(const struct verity_params *params, const int *fds, size_t count, uint8_t *out, int *errors);

#endif
