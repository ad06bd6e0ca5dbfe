"""The content of files that a tree refers to: from the directory it was scanned from, or from objects.

Owns reading a few small files safely.  Does not own scanning directories (`_repo.scan`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from .. import fsverity
from .._repo import objects
from .._repo.state import RepoState
from ..digest import ObjectId
from ..errors import IntegrityError, ObjectNotFoundError
from ..tree.inodes import ExternalFile
from ..tree.walk import split_path
from .labels import ReadFile

__all__ = ["directory_reader", "object_reader", "open_below"]

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def directory_reader(top: str | os.PathLike[str]) -> ReadFile:
    """What reads files of a tree that `scan_directory` made of the directory *top*.

    No symbolic link below *top* is followed, and what is read must be what was scanned.

    Raises:
        IntegrityError: a file has changed since.
        OSError
    """

    def read(path: bytes, inode: ExternalFile) -> bytes:
        with open_below(top, path) as fd, open(fd, "rb", buffering=0, closefd=False) as file:
            content = file.read(inode.size + 1) or b""
            while 0 < len(content) <= inode.size and (more := file.read(inode.size + 1 - len(content))):
                content += more
        digest = inode.digest
        if digest is None or fsverity.digest(content, ObjectId(digest).algorithm) != digest:
            raise IntegrityError(f"{os.fsdecode(path)} changed while it was read; try again")
        return content

    return read


@contextmanager
def open_below(top: str | os.PathLike[str], path: bytes) -> Iterator[int]:
    """A descriptor of the file *path* inside the directory *top*; the block's end closes it.  Follows no links."""
    *directories, name = split_path(path)
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for each in directories:
            below = os.open(each, _DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
        found = os.open(name, _FILE, dir_fd=fd)
    except OSError as error:
        error.filename = os.path.join(os.fspath(top), os.fsdecode(path).lstrip("/"))
        raise
    finally:
        os.close(fd)
    try:
        yield found
    finally:
        os.close(found)


def object_reader(state: RepoState) -> ReadFile:
    """What reads files of a tree from the objects of a repository.

    Raises:
        ObjectNotFoundError, IntegrityError
    """

    def read(path: bytes, inode: ExternalFile) -> bytes:
        if inode.digest is None:
            raise ObjectNotFoundError(os.fsdecode(path))
        return objects.read_object(state, ObjectId(inode.digest), max_size=inode.size)

    return read
