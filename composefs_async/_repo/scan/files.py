"""Regular files by their names, many at a time: metadata, attributes and content in one native call.

Owns batches of names, the descriptors of the directories that they are in, and the native calls.  Does not own what
becomes of the answers (`scan`), nor the content of files that are large or unusual, or of all without the native code
(`scan_content`).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from io import BytesIO
from typing import Final, Generic, NamedTuple, TypeVar

from ...digest import Algorithm, ObjectId
from ...tree.inodes import Xattrs
from .. import batch
from ..state import RepoState
from .workers import Batched, Workers

__all__ = ["CHANGED", "RECORD", "Answers", "Group", "Look", "Names", "digest_names", "store_names", "unpack_xattrs"]

_MAX_NAMES: Final = 512
"""In a batch: a few milliseconds for files of common sizes."""
_MAX_DIRECTORIES: Final = 32
"""In a batch, or fewer (`Workers.share`); with the limit of running batches this bounds the open descriptors."""

RECORD: Final = struct.Struct("=QQqqIIIIIII4x")
"""``struct scanned``: device, inode number, size, seconds and nanoseconds of the mtime, mode, links, uid, gid, bytes of
attributes, outcome."""
CHANGED: Final = 2
"""The outcome for a file that changed while it was read.  0: all is said; 1: large, unusual, or impossible to read, so
look for yourself."""
_LENGTHS: Final = struct.Struct("=II")

P = TypeVar("P")


class Group(NamedTuple, Generic[P]):
    """Names of files in one directory."""

    place: P
    """Whatever the caller knows the directory by."""
    fd: int
    """Of the directory; closed after the answers were taken."""
    names: Sequence[bytes]


class Found(NamedTuple):
    """What the native code says, one answer behind the other."""

    records: bytes
    ids: bytes
    contents: bytes
    attributes: bytes


class Answers(NamedTuple, Generic[P]):
    """What has been found of files, to be read in the order of their names."""

    groups: Sequence[Group[P]]
    records: bytes
    """A `RECORD` for each name."""
    ids: Sequence[ObjectId]
    """Of the files whose outcome is 0, as in what follows, and that are not inline."""
    contents: BytesIO
    """Of the others."""
    attributes: BytesIO
    """Of all; `unpack_xattrs` understands those of one file."""


class Look(NamedTuple):
    """How to look at files."""

    algorithm: Algorithm
    call: Callable[[list[int], list[bytes], int, bool], Found]
    """Takes a directory and a name for each, how large inline files are at most, and whether attributes are wanted.
    Called from several threads."""


def digest_names(algorithm: Algorithm) -> Look:
    """Only compute digests."""

    def call(fds: list[int], names: list[bytes], inline_max: int, attributes: bool) -> Found:
        from ..._native._core import scan_files

        return Found(*scan_files(fds, names, algorithm.number, inline_max, attributes, -1, 0)[:4])

    return Look(algorithm, call)


def store_names(state: RepoState) -> Look:
    """Store the files as objects.  Not durable before a flush of the file system."""

    def call(fds: list[int], names: list[bytes], inline_max: int, attributes: bool) -> Found:
        from ..._native._core import scan_files

        number, mode = state.algorithm.number, batch.verity_mode(state)
        *found, failure, works = scan_files(fds, names, number, inline_max, attributes, state.objects_fd, mode)
        batch.learn_support(state, works)
        answers = Found(*found)
        if failure:
            index, error, step = failure
            raise batch.native_failure(state, ObjectId.unpack(answers.ids, state.algorithm)[index], error, step)
        return answers

    return Look(state.algorithm, call)


class Names(Batched[list[Group[P]], Found], Generic[P]):
    """Gives names to worker threads; the answers come to *take* in the order in which names were added."""

    def __init__(
        self, workers: Workers, look: Look, inline_max: int, attributes: bool, take: Callable[[Answers[P]], None]
    ) -> None:
        super().__init__(workers)
        self._look = look
        self._inline_max = inline_max
        self._attributes = attributes
        self._take = take
        self._groups: list[Group[P]] = []
        self._count = 0
        self._max_directories = workers.share(_MAX_DIRECTORIES)

    def add(self, place: P, fd: int, names: Sequence[bytes]) -> None:
        """Look at the *names* in the directory *fd*, which stays the caller's."""
        for start in range(0, len(names), _MAX_NAMES):
            group = Group(place, self.workers.opening(partial(os.dup, fd)), names[start : start + _MAX_NAMES])
            self._groups.append(group)
            self._count += len(group.names)
            if self._count >= _MAX_NAMES or len(self._groups) >= self._max_directories:
                self.begin()

    def take_batch(self) -> list[Group[P]]:
        groups, self._groups, self._count = self._groups, [], 0
        return groups

    def submit(self, collected: list[Group[P]]) -> Future[Found]:
        fds = [group.fd for group in collected for _ in group.names]
        names = [name for group in collected for name in group.names]
        return self.workers.submit(self._look.call, fds, names, self._inline_max, self._attributes)

    def answer(self, collected: list[Group[P]], result: Found) -> None:
        ids = ObjectId.unpack(result.ids, self._look.algorithm)
        self._take(Answers(collected, result.records, ids, BytesIO(result.contents), BytesIO(result.attributes)))

    def close(self, collected: list[Group[P]]) -> None:
        for group in collected:
            os.close(group.fd)


def unpack_xattrs(packed: bytes, keep: Callable[[bytes], bool] | None) -> Xattrs:
    """The attributes of one file whose names are to be kept."""
    found, at = [], 0
    while at < len(packed):
        length, size = _LENGTHS.unpack_from(packed, at)
        name, at = packed[at + 8 : at + 8 + length], at + 8 + length
        if keep is None or keep(name):
            found.append((name, packed[at : at + size]))
        at += size
    return tuple(sorted(found))
