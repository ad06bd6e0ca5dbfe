"""The mount table of this process's mount namespace, proc_pid_mountinfo(5).

Owns reading it.  Without /proc there is none, which is no error: what it is asked for must do without.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["MountEntry", "is_proc_mounted", "mount_table"]

_TABLE = "/proc/self/mountinfo"
_escaped = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One mount."""

    device: str
    """Major and minor number, ``8:1``."""
    kind: str
    """Type of the file system."""
    source: str
    """What is mounted, in the words of whoever mounted it."""


def is_proc_mounted() -> bool:
    """Whether there is a /proc that knows this process."""
    return os.path.exists("/proc/self/fd")


def mount_table() -> Iterator[MountEntry]:
    """Read all mounts, the earlier before the later; nothing where /proc is not mounted.

    Raises:
        OSError: it is mounted and cannot be read.
    """
    try:
        with open(_TABLE, "rb") as table:
            lines = table.read().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        before, _, after = line.partition(b" - ")
        first, last = before.split(b" "), after.split(b" ")
        if len(first) > 2 and len(last) > 1:
            yield MountEntry(*(_text(field) for field in (first[2], last[0], last[1])))


def _text(field: bytes) -> str:
    return os.fsdecode(_escaped.sub(lambda found: bytes([int(found[1], 8) & 0xFF]), field))
