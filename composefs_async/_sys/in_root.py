"""Opening files below a directory as a process does whose root that directory is: links in it stay in it.

openat2(2) does so where the kernel has it; without that call, components are opened one after the other.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from typing import Final

from .beneath import openat2

__all__ = ["open_in_root"]

_RESOLVE: Final = 0x02 | 0x10  # linux/openat2.h, RESOLVE_NO_MAGICLINKS | RESOLVE_IN_ROOT
_MISSING: Final = (errno.ENOSYS, errno.EPERM)
_MAX_LINKS: Final = 40
_PATH_FLAGS: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def open_in_root(path: bytes, flags: int, *, root_fd: int) -> int:
    """Open *path*, whose components may be links within *root_fd*, but for the last; the caller closes it.

    Raises:
        OSError: ELOOP, the last component is a link, or there are too many.
    """
    try:
        return openat2(os.fsdecode(path), flags | os.O_NOFOLLOW, 0, root_fd, _RESOLVE)
    except OSError as error:
        if error.errno not in _MISSING:
            raise
    return _open_by_steps(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, root_fd)


def _open_by_steps(path: bytes, flags: int, root_fd: int) -> int:
    opened: list[int] = []  # the directories from the root to where it stands
    left, links = deque(path.split(b"/")), 0
    try:
        while left:
            name = left.popleft()
            here = opened[-1] if opened else root_fd
            if name in (b"", b"."):
                continue
            if name == b"..":
                if opened:
                    os.close(opened.pop())
                continue
            if not any(part not in (b"", b".") for part in left):
                return os.open(name, flags, dir_fd=here)
            fd = os.open(name, _PATH_FLAGS, dir_fd=here)
            opened.append(fd)
            if stat.S_ISLNK(os.fstat(fd).st_mode):
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                target = os.fsencode(os.readlink("", dir_fd=fd))
                os.close(opened.pop())
                if target.startswith(b"/"):
                    while opened:
                        os.close(opened.pop())
                left.extendleft(reversed(target.split(b"/")))
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    finally:
        for fd in opened:
            os.close(fd)
