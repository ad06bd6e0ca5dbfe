"""The content of streams: every chunk is looked at, and where it matters read and hashed.

Owns the reading in the course of which objects are compared with their names, too, so that each is read once for both.
Does not own what is made of a digest (`streams`), nor of failures to read objects (`objects`).
"""

from __future__ import annotations

import errno
import hashlib
from array import array
from collections.abc import Iterable

from ...digest import ObjectId
from ...splitstream import SplitstreamReader
from .chunks import Merged, Status, merge, merged_size
from .context import Run
from .object_reader import Failure, load_large, sizes
from .objects import object_failed, object_not_found

__all__ = ["HashedContent", "measure"]

_TAIL_STEP = 512  # of a tar
_END_MARKER = 2 * _TAIL_STEP
_MAX_TAIL = 4 << 20
"""Zeros that are tried as the lost tail of a tar: the largest record that GNU tar writes is of this order."""


def measure(run: Run, path: str, reader: SplitstreamReader) -> int | None:
    """The size of the content, without reading any object; None if some are missing, which are findings then.

    Raises:
        SplitstreamError
    """
    table = bytes(reader.object_refs)
    known = sizes(run.state, table)
    whole = not _missing(run, path, reader, known)
    rest, left, offset, total = b"", 0, 0, 0
    for piece in reader.unpacked():
        chunks = rest + piece
        merged = merged_size(run.state, table, chunks, 0, left, known)
        _refuse(reader, merged, offset)
        left, total, rest = merged.left, total + merged.size, chunks[merged.at :]
        offset += merged.at
    if left or rest:
        raise reader.cut_short(left, offset)
    return total if whole else None


def _missing(run: Run, path: str, reader: SplitstreamReader, known: array[int]) -> bool:
    """Report the objects that are missing."""
    if min(known, default=0) >= 0:
        return False
    _not_found(run, path, reader.object_refs, known)
    return True


def _not_found(run: Run, path: str, ids: Iterable[ObjectId], known: array[int]) -> None:
    for object_id, size in zip(ids, known, strict=True):
        if size < 0:
            object_not_found(run, "missing-object-ref", path, object_id)


def _refuse(reader: SplitstreamReader, merged: Merged, offset: int) -> None:
    if merged.status is Status.INVALID:
        raise reader.bad_chunk(merged.value, offset + merged.at)


class HashedContent:
    """The content of one stream: `read` it, then ask for the rest."""

    def __init__(self, run: Run, path: str, reader: SplitstreamReader, algorithm: str) -> None:
        self._run, self._path, self._reader, self._algorithm = run, path, reader, algorithm
        self._table = bytes(reader.object_refs)
        self._used = bytearray(len(reader.object_refs))
        self._hasher = hashlib.new(algorithm)
        self._size = 0
        self._tail = b""
        self._sized = True
        self.whole = True
        """Whether all objects are there and what they are called: otherwise it is them that are wrong."""

    def read(self) -> int | None:
        """The size of the content; None if it has objects that could not be read.  What is wrong with objects is found.

        Raises:
            SplitstreamError
        """
        rest, left, offset = b"", 0, 0
        for piece in self._reader.unpacked():
            chunks, at, status = rest + piece, 0, Status.FULL
            while status is not Status.END:
                merged = self._take(chunks, at, left)
                _refuse(self._reader, merged, offset)
                status, at, left = merged.status, merged.at, merged.left
            rest = chunks[at:]
            offset += at
        if left or rest:
            raise self._reader.cut_short(left, offset)
        self._finish()
        return self._size if self._sized else None

    def digest(self) -> str:
        return f"{self._algorithm}:{self._hasher.hexdigest()}"

    def lost_tail(self, expected: str) -> int:
        """How many zeros would make the digest the *expected* one; 0 if none do.

        composefs-rs of March to May 2026 dropped what follows the end marker of a tar, in practice zeros.
        """
        if self._tail != bytes(_END_MARKER):
            return 0
        hasher, zeros = self._hasher.copy(), bytes(_TAIL_STEP)
        wanted = bytes.fromhex(expected.partition(":")[2])
        for size in range(_TAIL_STEP, _MAX_TAIL + 1, _TAIL_STEP):
            hasher.update(zeros)
            if hasher.digest() == wanted:
                return size
        return 0

    def _take(self, chunks: bytes, at: int, left: int) -> Merged:
        run = self._run
        with run.buffer() as buffer:
            merged = merge(run.state, self._table, self._used, chunks, at, left, buffer)
            # One call for many chunks: each gives the interpreter lock away and takes it again.
            self._update(memoryview(buffer)[: merged.size])
        for failure in merged.failures:
            self._failed(self._id(failure.at), failure)
        if merged.status is Status.LARGE:
            object_id = self._id(merged.value)
            if later := load_large(run.state, object_id, self._update):
                self._failed(object_id, later)
        return merged

    def _update(self, piece: memoryview) -> None:
        self._hasher.update(piece)
        self._size += len(piece)
        self._tail = (self._tail + bytes(piece[-_END_MARKER:]))[-_END_MARKER:]
        self._run.pace(len(piece))

    def _id(self, index: int) -> ObjectId:
        width = self._run.state.algorithm.digest_size
        return ObjectId(self._table[index * width : (index + 1) * width])

    def _failed(self, object_id: ObjectId, failure: Failure) -> None:
        self.whole = False
        self._sized = self._sized and failure.step in ("digest", "measure")
        if failure.step in ("open", "type"):
            object_not_found(self._run, "missing-object-ref", self._path, object_id)
        if not (failure.step == "open" and failure.error in (errno.ENOENT, errno.ENOTDIR)):
            object_failed(self._run, object_id, failure)

    def _finish(self) -> None:
        """Look for objects that only the table has, and note those that have been read."""
        if 0 not in self._used:
            self._run.looked(self._table)
            return
        ids = ObjectId.unpack(self._table, self._run.state.algorithm)
        unused = [object_id for object_id, used in zip(ids, self._used, strict=True) if not used]
        self._run.looked(b"".join(object_id for object_id, used in zip(ids, self._used, strict=True) if used))
        _not_found(self._run, self._path, unused, sizes(self._run.state, b"".join(unused)))
