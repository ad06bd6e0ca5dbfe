"""Record locks of open file descriptions (fcntl(2), F_OFD_SETLK): they exclude, and are excluded by, POSIX locks.

Unlike those they belong to the descriptor: they do not vanish when the process closes another one of the same file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable
from typing import Final

__all__ = ["lock_for_reading"]

_OFD_SETLK: Final = 37  # asm-generic/fcntl.h
_FLOCK: Final = struct.Struct("hhqqi4x")  # l_type, l_whence, l_start, l_len, l_pid of 64-bit Linux
_POLL: Final = 0.02


def lock_for_reading(fd: int, timeout: float, check: Callable[[], object] | None = None) -> bool:
    """Lock the whole file against writers, for as long as *fd* is open; False after *timeout* seconds.

    Args:
        check: called now and then while waiting; what it raises ends the wait.
    """
    end = time.monotonic() + timeout
    while True:
        try:
            fcntl.fcntl(fd, _OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0))
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        else:
            return True
        if time.monotonic() >= end:
            return False
        if check is not None:
            check()
        time.sleep(_POLL)
