/* Opening what is below a directory without following a link; no Python. */

#ifndef COMPOSEFS_BENEATH_H
#define COMPOSEFS_BENEATH_H

#include <sys/types.h>

/* Opens the relative *path*, of at most two components.  Returns a descriptor, or -1 with errno: ELOOP where a
 * component is a symbolic link, ENOTDIR where it is something else that is no directory. */
int beneath_open(int directory, const char *path, int flags, mode_t mode);

/* 0 if *name* is a directory itself, or -1 with errno: ELOOP or ENOTDIR where it is a link or something else. */
int beneath_require_directory(int directory, const char *name);

#endif
