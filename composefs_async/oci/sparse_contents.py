"""The files that sparse members mean, as objects of their own, made of what their layers' streams refer to.

A stream holds the data of such a member as the archive has them, so that the archive comes back bit by bit; the image
refers to the file that they describe.  Owns making that file.  Does not own what a map says (`tar.sparse`) nor which
members there are (`tar.members`).

Everything here blocks.  Holes cost neither memory nor reading, and a file costs what its data cost.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from .. import fsverity
from .._repo import objects
from .._repo.state import RepoState
from ..digest import ObjectId
from ..errors import DigestMismatchError, IntegrityError
from .tar.header import INLINE_MAX
from .tar.sparse import MAX_MAP, Segment, SparseContent, stored_segments

__all__ = ["SparseContents"]

_PIECE = 512 << 10


class SparseContents:
    """Finds out what sparse files contain.

    Args:
        store: also store what is too large for an image, so that an image can refer to it; it has no name then, and
            is not durable before the image is.
    """

    def __init__(self, state: RepoState, *, store: bool) -> None:
        self._state, self._store = state, store

    def find(self, content: SparseContent) -> bytes | ObjectId:
        """The bytes of a file of at most 64 bytes, the object of a larger one.

        Raises:
            ValueError: the map that stands before the data makes no sense, or does not fit.
            ObjectNotFoundError, IntegrityError: the data are not what the stream says.
            OSError
        """
        size = content.form.size
        with _opened(self._state, content) as data:
            segments = _segments(content, data)
            if size <= INLINE_MAX:
                return _small(size, segments, data)
            with objects.object_errors(self._state):
                tmpfile = objects.create_object_tmpfile(self._state) if self._store else None
                try:
                    found = _large(self._state, size, segments, data, tmpfile.fd if tmpfile else None)
                    if tmpfile is not None:
                        objects.publish_object_tmpfile(self._state, tmpfile, size, found)
                    return found
                finally:
                    if tmpfile is not None:
                        tmpfile.discard()

    def write(self, content: SparseContent) -> int:
        """Make a file again; returns the descriptor of one without a name, and the caller closes it.

        Raises:
            As `find`.
        """
        size = content.form.size
        with _opened(self._state, content) as data, objects.object_errors(self._state):
            segments = _segments(content, data)
            tmpfile = objects.create_object_tmpfile(self._state)
            try:
                _large(self._state, size, segments, data, tmpfile.fd)
                return os.dup(tmpfile.fd)
            finally:
                tmpfile.discard()


def _large(state: RepoState, size: int, segments: list[Segment], data: _Data, fd: int | None) -> ObjectId:
    """Digest a file, and write it to *fd*, which is empty, if that is given."""
    hasher = fsverity.Hasher(state.algorithm)
    for hole, length in stored_segments(segments, size):
        hasher.update_zeros(hole)
        for piece in data.take(length):
            if fd is not None:
                _write(fd, piece, hasher.size)
            hasher.update(piece)
    data.verify()
    if fd is not None:
        os.ftruncate(fd, size)
    return hasher.id()


class _Data:
    """What a member has behind its header, read once, in order."""

    def __init__(self, state: RepoState, content: SparseContent, fd: int) -> None:
        self._fd, self._stored, self._at = fd, content.stored, 0
        self._hasher = None if state.secure or fd < 0 else fsverity.Hasher(state.algorithm)
        self._ahead = b""

    def read(self, size: int) -> bytes:
        """Read at most *size* bytes; none at the end."""
        if isinstance(self._stored, ObjectId):
            piece = os.pread(self._fd, size, self._at)
            if self._hasher is not None:
                self._hasher.update(piece)
        else:
            piece = self._stored[self._at : self._at + size]
        self._at += len(piece)
        return piece

    def head(self, more: int) -> bytes:
        """How the data begin, *more* bytes of it than the last time."""
        self._ahead += self.read(more)
        return self._ahead

    def skip(self, size: int) -> None:
        """Pass over the first *size* bytes, which `head` has shown."""
        self._ahead = self._ahead[size:]

    def take(self, size: int) -> Iterator[bytes]:
        while size:
            if not self._ahead:
                self._ahead = self.read(_PIECE)
                if not self._ahead:
                    raise IntegrityError("the data of a sparse member end too early")
            piece, self._ahead = self._ahead[:size], self._ahead[size:]
            size -= len(piece)
            yield piece

    def verify(self) -> None:
        """Compare what has been read, all of it, with the object's name."""
        if isinstance(self._stored, ObjectId) and self._hasher and (found := self._hasher.id()) != self._stored:
            raise DigestMismatchError(f"object {self._stored.hex()}", self._stored.hex(), found.hex())


@contextmanager
def _opened(state: RepoState, content: SparseContent) -> Iterator[_Data]:
    stored = content.stored
    if not isinstance(stored, ObjectId):
        yield _Data(state, content, -1)
        return
    with open(objects.open_object(state, stored), "rb", buffering=0) as file, objects.object_errors(state):
        size = os.fstat(file.fileno()).st_size
        if size != content.form.stored:
            raise IntegrityError(f"object {stored.hex()} has {size} bytes, not {content.form.stored}")
        yield _Data(state, content, file.fileno())


def _segments(content: SparseContent, data: _Data) -> list[Segment]:
    head = b""
    while (found := content.form.segments(head)) is None:
        longer = data.head(min(_PIECE, MAX_MAP - len(head)))
        if len(longer) == len(head):
            raise ValueError("a sparse member whose map does not end")
        head = longer
    segments, begin = found
    data.skip(begin)
    return segments


def _small(size: int, segments: list[Segment], data: _Data) -> bytes:
    made = bytearray()
    for hole, length in stored_segments(segments, size):
        made += bytes(hole)
        made += b"".join(data.take(length))
    data.verify()
    return bytes(made)


def _write(fd: int, piece: bytes, offset: int) -> None:
    view = memoryview(piece)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
