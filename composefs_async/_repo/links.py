"""Links in the place of a repository's own directories: which there are, whose, and whether they are followed."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from .._sys.beneath import opened_beneath, trusted_owners

__all__ = ["LinkedDirectory", "linked_directories"]

_NEVER = ("objects/", ".composefs-async")
"""Directories of objects, and what only upkeep knows, are not read through links, whoever made them."""


@dataclass(frozen=True, slots=True)
class LinkedDirectory:
    """A symbolic link where a directory should be."""

    path: str
    """Relative to the repository."""
    target: str
    owner: int
    """The user who made it."""
    followed: bool
    """Names and objects are looked for behind it; garbage is not collected while names are."""


def linked_directories(path: str) -> list[LinkedDirectory]:
    """All links in the place of directories of the repository at *path*, sorted; nothing if it is no repository."""
    found: list[LinkedDirectory] = []
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            owners = trusted_owners(fd)
            for name in _candidates(fd):
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISLNK(status.st_mode):
                    followed = status.st_uid in owners and not name.startswith(_NEVER)
                    found.append(LinkedDirectory(name, os.readlink(name, dir_fd=fd), status.st_uid, followed))
        finally:
            os.close(fd)
    return sorted(found, key=lambda each: each.path)


def _candidates(fd: int) -> Iterator[str]:
    """Paths that should be directories and are there."""
    for top in ("objects", "streams", "images", ".composefs-async"):
        if _exists(fd, top):
            yield top
    yield from (f"objects/{name}" for name in _listing(fd, "objects") if len(name) == 2)
    pending = [path for path in ("streams/refs", "images/refs") if _exists(fd, path)]
    while pending:
        path = pending.pop()
        yield path
        pending += (f"{path}/{name}" for name in _listing(fd, path) if _leads_to_directory(fd, f"{path}/{name}"))


def _exists(fd: int, path: str) -> bool:
    return os.access(path, os.F_OK, dir_fd=fd, follow_symlinks=False)


def _leads_to_directory(fd: int, path: str) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISDIR(os.stat(path, dir_fd=fd).st_mode)
    return False


def _listing(fd: int, path: str) -> list[str]:
    with contextlib.suppress(OSError), opened_beneath(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd) as directory:
        return os.listdir(directory)
    return []
