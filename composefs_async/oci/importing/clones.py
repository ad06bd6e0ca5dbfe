"""Content that is shared with the files of a source instead of being written: clones, where the file system has them.

Owns clones from the moment a source offers a file until the object has its name.  A file is cloned first and read from
the clone, which nobody else has: what is hashed is what is stored, whatever becomes of the source's file meanwhile.

Everything here blocks, and is called by one thread at a time for each layer.
"""

from __future__ import annotations

import errno
import os
from typing import Final, Literal

from ..._repo import objects
from ..._repo.state import RepoState
from ..._sys import files
from ..sources.base import Blob, BlockingBlob

__all__ = ["CLONE_FROM", "Clones", "Link", "offered_clones"]

Link = Literal["auto", "require", "none"]
"""Share content where that is possible, everywhere or not at all."""

CLONE_FROM: Final = 64 << 10
"""Bytes of a file that is worth it: a clone takes some system calls more than writing a small file."""
_TOO_MANY: Final = (errno.EMFILE, errno.ENFILE)


class Clones:
    """The clones of one layer on their way: at most as many as there are files in the chunks under way."""

    def __init__(self, state: RepoState, link: Link) -> None:
        self._state, self._required = state, link == "require"
        self._possible = link != "none"
        self._waiting: dict[int, tuple[int, files.Tmpfile]] = {}
        self._open: set[files.Tmpfile] = set()

    def clone(self, fd: int, offset: int, size: int) -> int | None:
        """Clone the file *fd*, whose content stands at *offset* of the tar; returns what to read in its place.

        Args:
            fd: open for reading; stays open.
            size: of the content, in bytes; a file of another size is none that can be shared.

        Returns:
            A descriptor that the caller closes; None if the file itself is to be read, and written.

        Raises:
            OSError: it cannot be shared, and that was required.
        """
        if not self._possible or size < CLONE_FROM:
            return None
        tmpfile = None
        try:
            tmpfile = objects.create_object_tmpfile(self._state)
            with files.naming_descriptor(tmpfile.fd):
                is_clone = files.clone_content(fd, tmpfile.fd)
                fits = is_clone and os.fstat(tmpfile.fd).st_size == size
            if fits:
                reader = os.dup(tmpfile.fd)
                self._waiting[offset] = size, tmpfile
                self._open.add(tmpfile)
                tmpfile = None
                return reader
            if self._required:
                reason = "content cannot be shared: the store and the repository need one file system with reflinks"
                raise OSError(errno.EOPNOTSUPP, reason, self._state.path)
            self._possible = is_clone  # but of another size: the next file may be shared
        except OSError as error:
            if error.errno not in _TOO_MANY or self._required:
                raise
        finally:
            if tmpfile is not None:
                tmpfile.discard()
        return None

    def take(self, offset: int, size: int) -> files.Tmpfile | None:
        """The clone with the *size* bytes at *offset* of the tar, if there is one; give it back by `done`."""
        found = self._waiting.pop(offset, None)
        if found is None:
            return None
        if found[0] == size:
            return found[1]
        self.done(found[1])
        return None

    def give_up(self, tmpfile: files.Tmpfile) -> None:
        """Leave closing a clone to the caller."""
        self._open.discard(tmpfile)

    def done(self, tmpfile: files.Tmpfile) -> None:
        """Close a clone, whether it has got a name or not."""
        self.give_up(tmpfile)
        tmpfile.discard()

    def close(self) -> None:
        """Close all that are left."""
        while self._open:
            self._open.pop().discard()


def offered_clones(state: RepoState, blob: Blob, link: Link) -> Clones | None:
    """The clones of a layer that is about to be read from *blob*; None if nothing is shared.

    Raises:
        OSError: sharing is required, and the source has no files to share.
    """
    if link == "none":
        return None
    if isinstance(blob, BlockingBlob) and blob.offer is not None:
        clones = Clones(state, link)
        blob.offer(clones)
        return clones
    if link == "require":
        reason = "content cannot be shared: the source has no files of its own, as containers-storage has"
        raise OSError(errno.EOPNOTSUPP, reason, state.path)
    return None
