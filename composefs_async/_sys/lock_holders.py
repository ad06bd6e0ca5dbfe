"""Which processes hold the lock of flock(2) on a file, as far as the kernel shows them (proc_locks(5)).

Only for messages: locks come and go meanwhile, processes of other namespaces have no number here, and a lock is listed
under the process that took it, though others may have inherited it.
"""

from __future__ import annotations

import os
from contextlib import suppress

__all__ = ["lock_holders"]

_LOCKS = "/proc/locks"
_MOST = 1 << 20
"""Bytes of that file that are read."""


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
