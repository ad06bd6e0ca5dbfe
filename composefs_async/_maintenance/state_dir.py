"""``.composefs-async/``: what upkeep remembers in a repository, beside what composefs-rs knows.

Owns how files there are read and written.  Does not own what is in them.  composefs-rs never looks into it, and all of
it can be deleted at any time: that costs time, or the leases of imports that were interrupted, but no content.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator

from .._repo.state import DIRECTORY_MODE, FILE_MODE, RepoState
from .._sys import files
from .._sys.beneath import IN_THE_WAY, make_directories, opened_beneath, opened_parent

__all__ = ["DIRECTORY", "listing", "read", "remove", "timestamp", "write"]

DIRECTORY = ".composefs-async"

_ATTEMPTS = 8


def read(state: RepoState, name: str, limit: int) -> bytes | None:
    """The content of a file; None if it is not there, is no regular file, or is longer than *limit* bytes."""
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK
        with files.naming(state.path), opened_beneath(f"{DIRECTORY}/{name}", flags, dir_fd=state.fd) as fd:
            content = os.read(fd, limit + 1)
    except OSError as error:
        if error.errno not in (*IN_THE_WAY, errno.ENOENT, errno.EISDIR):
            raise
        return None
    return content if len(content) <= limit else None


def write(state: RepoState, name: str, content: bytes | Callable[[int], object]) -> None:
    """Put a file in the place of *name*, atomically; not durable.

    A crash leaves the old file, the new one, or after a power loss perhaps one that is cut: whoever reads it checks.

    Args:
        name: may stand in a directory below, which is made.
        content: or what writes it to the descriptor that it is given.
    """
    path = f"{DIRECTORY}/{name}"
    with files.naming(state.path), _tmpfile(state, os.path.dirname(path)) as tmpfile:
        if callable(content):
            content(tmpfile.fd)
        else:
            files.write_all(tmpfile.fd, content)
        try:
            tmpfile.replace(path, dir_fd=state.fd)
        except FileNotFoundError:  # `remove` has taken the directory away
            _make_directories(state, os.path.dirname(path))
            tmpfile.replace(path, dir_fd=state.fd)


@contextlib.contextmanager
def _tmpfile(state: RepoState, directory: str) -> Iterator[files.Tmpfile]:
    for attempt in range(_ATTEMPTS):
        _make_directories(state, directory)
        try:
            tmpfile = files.Tmpfile.create(directory, FILE_MODE, dir_fd=state.fd)
            break
        except FileNotFoundError:  # the same
            if attempt == _ATTEMPTS - 1:
                raise
    try:
        yield tmpfile
    finally:
        tmpfile.discard()


def _make_directories(state: RepoState, directory: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # `remove` has taken one away
        make_directories(directory, DIRECTORY_MODE, dir_fd=state.fd)


def timestamp(state: RepoState) -> int:
    """Now, in nanoseconds, by the clock that gives files their times, which may be another machine's."""
    with files.naming(state.path), _tmpfile(state, DIRECTORY) as tmpfile:
        return os.fstat(tmpfile.fd).st_ctime_ns


def remove(state: RepoState, name: str) -> bool:
    """Remove a file, and the directories that are empty then; False if it was not there."""
    path = f"{DIRECTORY}/{name}"
    try:
        with files.naming(state.path), opened_parent(path, dir_fd=state.fd) as (fd, last):
            os.unlink(last, dir_fd=fd)
    except OSError as error:
        if error.errno not in (*IN_THE_WAY, errno.ENOENT):
            raise
        return False
    with contextlib.suppress(OSError):
        while path := os.path.dirname(path):
            with opened_parent(path, dir_fd=state.fd) as (fd, last):
                os.rmdir(last, dir_fd=fd)
    return True


def listing(state: RepoState, directory: str) -> list[str]:
    """Sorted names of what is in a directory below, without those that begin with a dot."""
    try:
        flags = os.O_RDONLY | os.O_DIRECTORY
        with files.naming(state.path), opened_beneath(f"{DIRECTORY}/{directory}", flags, dir_fd=state.fd) as fd:
            return sorted(name for name in os.listdir(fd) if not name.startswith("."))
    except OSError as error:
        if error.errno not in (*IN_THE_WAY, errno.ENOENT):
            raise
        return []
