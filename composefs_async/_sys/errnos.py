"""What an error of the kernel says about the thing at a path.

Owns the three answers that decisions may rest on: it is not there, it is of another kind, or it could not be read.
Only the first two are knowledge.  Whatever moves, replaces or deletes something must not do so because of the third,
which a failing disk, a network file system, a missing permission and a lack of memory all give.
"""

from __future__ import annotations

import errno
import os

__all__ = ["BAD_BLOCKS", "exists", "is_absent", "is_unread"]

_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR})
_KIND = frozenset({errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO})
"""What open(2) and stat(2) answer for links, sockets and directories in the place of files."""

BAD_BLOCKS = frozenset({errno.EIO, errno.EBADMSG})
"""What reading a file answers where its blocks are bad, or not those that fs-verity guards; a disk that fails for a
moment answers the same."""


def _number(error: OSError | int) -> int:
    return error if isinstance(error, int) else error.errno or errno.EIO


def is_absent(error: OSError | int) -> bool:
    """Whether *error*, of a path, means that nothing is there."""
    return _number(error) in _ABSENT


def is_unread(error: OSError | int) -> bool:
    """Whether *error*, of a path, tells nothing about what is there, but only that it could not be read."""
    return _number(error) not in _ABSENT | _KIND


def exists(path: str, *, dir_fd: int, follow_symlinks: bool = True) -> bool:
    """Whether something is at *path*: what `os.access` answers with no for any error.

    Raises:
        OSError: it cannot be told.
    """
    if os.access(path, os.F_OK, dir_fd=dir_fd, follow_symlinks=follow_symlinks):  # costs half as much as an exception
        return True
    try:
        os.stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)
    except OSError as error:
        if is_unread(error):
            raise
        return False
    return True
