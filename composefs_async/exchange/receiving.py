"""Members of a blob, cut out of the bytes as they arrive, unpacked, compared with their ids, and stored.

Owns what becomes of each member.  Does not own where bytes come from, nor what is done about a bad one (`transfers`).
Blocks, in worker threads.  Memory is a few mebibytes a thread whatever the size of members.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from .. import fsverity
from .._repo import objects
from .._repo.batch import store_batch
from .._repo.state import RepoState
from .._sys import files
from .._zstd import zstd
from ..digest import ObjectId
from ..errors import StoreFormatError
from .plan import Member, Range
from .table import KEY_SIZE, Coding, Table

__all__ = ["Large", "Outcome", "Receiver", "SourceError"]

_SMALL = 4 << 20
"""Members and objects of up to so many bytes are unpacked in memory."""
_BATCH_ITEMS = 256
_BATCH_BYTES = 1 << 20
_PIECE = 1 << 20
_WINDOW_LOG = 27
"""Frames that need more than 128 MiB to be unpacked are refused."""


@dataclass(slots=True)
class Outcome:
    """What became of the members of one range."""

    stored: list[int] = field(default_factory=list[int])
    """Entries that are in place, by their number."""
    bad: dict[int, str] = field(default_factory=dict[int, str])
    """What is wrong with entries that are not what they should be."""
    failure: Exception | None = None
    """Why the others have not come."""


class Receiver:
    """Stores the members of one table.  Safe for use from several threads.

    Args:
        expected: ids of the entries that are wanted, as far as they are known; of others only the key is compared.
        damaged: ids of objects that are in the repository and not what they should be; they are replaced.
    """

    def __init__(
        self,
        state: RepoState,
        table: Table,
        expected: Mapping[int, ObjectId],
        damaged: frozenset[ObjectId] = frozenset(),
    ) -> None:
        self.table: Table = table
        self._state, self._expected, self._damaged = state, expected, damaged
        self._turn = threading.Semaphore(os.cpu_count() or 2)
        self.done: set[int] = set()
        """Entries that are in place."""
        self.ids: set[ObjectId] = set()
        """What has been stored."""

    def take(self, pieces: Iterator[bytes], start: int, wanted: Range, check: Callable[[], object]) -> Outcome:
        """Take the members of *wanted* out of *pieces*, which begin at *start* of the blob.

        Args:
            check: is called for each piece; what it raises ends the work.

        Raises:
            OSError: the repository cannot be written.
            what *check* raises.
        """
        outcome = Outcome()
        cutter = _Cutter(self, outcome, wanted, start)
        try:
            for piece in pieces:
                check()
                # As many at once as there are processors: more would only hold memory and the interpreter's lock.
                with self._turn:
                    cutter.feed(piece)
                if cutter.ended:
                    break
            else:
                if not cutter.ended:
                    outcome.failure = StoreFormatError(f"blob {wanted.blob}", f"it ends at byte {cutter.position}")
        except SourceError as error:
            outcome.failure = error.__cause__ if isinstance(error.__cause__, Exception) else error
        finally:
            cutter.close()
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
        with self._turn:
            cutter.flush()
        return outcome

    def unpack(self, index: int, content: bytes | bytearray, coding: int | None = None) -> bytes | bytearray:
        """The object of an entry; at most as many bytes as the table says.

        Args:
            coding: in place of what the table says.

        Raises:
            StoreFormatError
        """
        size = self.table.sizes[index]
        if (self.table.codings[index] if coding is None else coding) == Coding.RAW:
            if len(content) != size:
                raise StoreFormatError("a member", f"it has {len(content)} bytes, not {size}")
            return content
        decompressor = zstd.ZstdDecompressor(options=_OPTIONS)
        try:
            unpacked = decompressor.decompress(content, size + 1)
        except zstd.ZstdError as error:
            raise StoreFormatError("a member", f"it does not unpack: {error}") from None
        if len(unpacked) != size or not decompressor.eof or decompressor.unused_data:
            raise StoreFormatError("a member", f"it does not unpack to {size} bytes")
        return unpacked

    def store(self, batch: list[tuple[int, bytes | bytearray]], outcome: Outcome) -> None:
        """Store objects, and tell which of them are what they should be."""
        stored = store_batch(self._state, [content for _, content in batch])
        for (index, content), found in zip(batch, stored, strict=True):
            if isinstance(found, Exception):
                raise found
            if reason := self.mismatch(index, found.id):
                outcome.bad[index] = reason
                continue
            if found.id in self._damaged:
                objects.ensure_object(self._state, content, compare=True)
            self.arrived(index, found.id, outcome)

    def arrived(self, index: int, object_id: ObjectId, outcome: Outcome) -> None:
        """Note that an entry is in place."""
        outcome.stored.append(index)
        self.done.add(index)
        self.ids.add(object_id)

    def mismatch(self, index: int, found: ObjectId) -> str:
        """What is wrong if the object of an entry has the id *found*; nothing if it is right."""
        expected = self._expected.get(index)
        if expected is None:
            key = self.table.key(index)
            return "" if found[:KEY_SIZE] == key else f"object {key.hex()}… has the digest {found.hex()}"
        return "" if found == expected else f"object {expected.hex()} has the digest {found.hex()}"

    def is_large(self, index: int, stored: int = 0) -> bool:
        """Whether an object, or what is stored of it, is too large to be unpacked in memory."""
        return max(self.table.sizes[index], stored) > _SMALL

    def large(self, index: int, coding: int | None = None) -> Large:
        """Takes an object that is too large for memory."""
        coding = self.table.codings[index] if coding is None else coding
        return Large(self._state, self, index, packed=coding == Coding.ZSTD)


_OPTIONS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}


class SourceError(Exception):
    """Pieces have ended early, for the reason that is the cause."""


class _Cutter:
    """Cuts members out of pieces."""

    def __init__(self, receiver: Receiver, outcome: Outcome, wanted: Range, start: int) -> None:
        self._receiver, self._outcome = receiver, outcome
        self._members = iter(wanted.members)
        self.position: int = start
        self._current: Member | None = None
        self._small = bytearray()
        self._large: Large | None = None
        self._batch: list[tuple[int, bytes | bytearray]] = []
        self._bytes = 0
        self._next()

    @property
    def ended(self) -> bool:
        """All members have come."""
        return self._current is None

    def feed(self, piece: bytes) -> None:
        """Go on by *piece*."""
        view, at = memoryview(piece), 0
        while at < len(view) and self._current is not None:
            before = self._current.offset - self.position
            if before > 0:
                step = min(before, len(view) - at)
            else:
                step = min(before + self._current.stored, len(view) - at)
                self._add(view[at : at + step])
            at += step
            self.position += step
            while self._current is not None and self.position >= self._current.offset + self._current.stored:
                self._finish(self._current)
        self.position += len(view) - at

    def _next(self) -> None:
        self._current = next(self._members, None)
        self._small = bytearray()
        if self._current is not None and self._receiver.is_large(self._current.entry, self._current.stored):
            self._large = self._receiver.large(self._current.entry)

    def _add(self, piece: memoryview) -> None:
        if self._large is not None:
            self._large.write(piece)
        else:
            self._small += piece

    def _finish(self, member: Member) -> None:
        if self._large is not None:
            large, self._large = self._large, None
            large.finish(self._outcome)
        elif member.entry not in self._receiver.done:
            try:
                content = self._receiver.unpack(member.entry, self._small)
            except StoreFormatError as error:
                self._outcome.bad[member.entry] = error.reason
            else:
                self._batch.append((member.entry, content))
                self._bytes += len(content)
                if len(self._batch) >= _BATCH_ITEMS or self._bytes >= _BATCH_BYTES:
                    self.flush()
        self._next()

    def flush(self) -> None:
        """Store what has been gathered."""
        if self._batch:
            batch, self._batch, self._bytes = self._batch, [], 0
            self._receiver.store(batch, self._outcome)

    def close(self) -> None:
        """Remove the temporary file of a member that has not come whole."""
        if self._large is not None:
            self._large.discard()
            self._large = None


class Large:
    """An object that is unpacked into a temporary file, and linked when its digest is right."""

    def __init__(self, state: RepoState, receiver: Receiver, index: int, *, packed: bool) -> None:
        self._state, self._receiver, self._index = state, receiver, index
        self._size = receiver.table.sizes[index]
        self._packed = packed
        self._decompressor = zstd.ZstdDecompressor(options=_OPTIONS)
        self._hasher = fsverity.Hasher(state.algorithm)
        self._tmpfile: files.Tmpfile | None = objects.create_object_tmpfile(state)
        self._reason = ""

    def write(self, piece: memoryview) -> None:
        """Go on by some of the member."""
        if self._reason:
            return
        if not self._packed:
            self._keep(piece)
            return
        if self._decompressor.eof:
            self._reason = "bytes follow its frame"
            return
        data: memoryview | bytes = piece
        try:
            while not self._reason:
                content = self._decompressor.decompress(data, _PIECE)
                self._keep(memoryview(content))
                if self._decompressor.eof or self._decompressor.needs_input:
                    break
                data = b""
        except zstd.ZstdError as error:
            self._reason = f"it does not unpack: {error}"
        if self._decompressor.unused_data:
            self._reason = "bytes follow its frame"

    def _keep(self, content: memoryview) -> None:
        if self._hasher.size + len(content) > self._size:
            self._reason = f"it unpacks to more than {self._size} bytes"
        elif content and self._tmpfile is not None:
            self._hasher.update(content)
            files.write_all(self._tmpfile.fd, content)

    def finish(self, outcome: Outcome) -> None:
        """The member has come whole."""
        try:
            if not self._reason and self._packed and not self._decompressor.eof:
                self._reason = "its frame is cut short"
            if not self._reason and self._hasher.size != self._size:
                self._reason = f"it unpacks to {self._hasher.size} bytes, not {self._size}"
            found = None if self._reason else self._hasher.id()
            if found is not None:
                self._reason = self._receiver.mismatch(self._index, found)
            if self._reason or found is None or self._tmpfile is None:
                outcome.bad[self._index] = self._reason
                return
            objects.publish_object_tmpfile(self._state, self._tmpfile, self._size, found)
            self._receiver.arrived(self._index, found, outcome)
        finally:
            self.discard()

    def discard(self) -> None:
        """Close the temporary file, which vanishes unless it has been linked."""
        if self._tmpfile is not None:
            self._tmpfile.discard()
            self._tmpfile = None
