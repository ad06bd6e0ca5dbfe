"""Locks of flock(2), and which processes hold one, as far as the kernel shows them (proc_locks(5)).

Who holds a lock is only for messages: locks come and go meanwhile, processes of other namespaces have no number here,
and a lock is listed under the process that took it, though others may have inherited it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import time
from collections.abc import Callable
from contextlib import suppress

from .files import path_of

__all__ = ["LOCK_POLL", "lock", "lock_holders", "unlock"]

LOCK_POLL = 0.005
"""Seconds between two tries to take a lock: whoever wants others to get in gives it up for longer."""
_libc = ctypes.CDLL(None, use_errno=True)
_LOCKS = "/proc/locks"
_MOST = 1 << 20
"""Bytes of that file that are read."""


def unlock(fd: int) -> None:
    """Give up the flock(2) of the open file *fd*, also for processes that have inherited it.  Never waits."""
    _libc.flock(fd, fcntl.LOCK_UN)


def lock(fd: int, *, exclusive: bool, timeout: float | None = None, check: Callable[[], object] | None = None) -> bool:
    """Take the flock(2) of the open file *fd*, or change the one it holds; False after *timeout* seconds.

    Changing is not atomic in the kernel: a try that fails has lost the lock held before, and the caller
    must take it again.

    Args:
        check: called now and then while waiting; what it raises ends the wait.
    """
    operation = (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(fd, operation)
        except BlockingIOError:
            if end is not None and time.monotonic() >= end:
                return False
            if check is not None:
                check()
            time.sleep(LOCK_POLL)
        except OSError as error:
            error.filename = path_of(fd)
            raise
        else:
            return True


def lock_holders(fd: int) -> tuple[str, ...]:
    """Other processes that hold a lock on what *fd* is of, each as ``NAME (PID)``; none if that cannot be told."""
    found: dict[int, str] = {}
    with suppress(OSError, ValueError):
        status = os.fstat(fd)
        wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        with open(_LOCKS, encoding="ascii", errors="replace") as file:
            for line in file.read(_MOST).splitlines():
                fields = line.split()
                # 1: FLOCK  ADVISORY  READ  4711 08:01:123 0 EOF; those who wait have an arrow behind the number.
                if len(fields) == 8 and fields[1] == "FLOCK" and fields[5] == wanted and int(fields[4]) > 0:
                    found[int(fields[4])] = ""
    found.pop(os.getpid(), None)
    return tuple(f"{_name(pid)} ({pid})" for pid in sorted(found))


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            name = file.read(64).rstrip("\n")
    except OSError:
        return "a process"
    return "".join(char if char.isprintable() else "?" for char in name)
