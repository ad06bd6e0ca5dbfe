"""The way of one tar layer into objects and a splitstream: unpack, hash, split, store, finish.

A few carriers (tasks) each own a buffer and take one chunk after the other through all stages, every stage in a
worker thread under a token of the write semaphore.  Unpacking, splitting and finishing go in the order of the
chunks; storing does not.  There are no queues: what waits is a carrier, so memory is bounded by the buffers.

This module publishes nothing.  Objects of a layer that failed stay, unreferenced.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from anyio import CancelScope, Event, Lock, create_task_group

from .. import fsverity
from .._aio.groups import single_error
from .._aio.hops import hop, write_hop
from .._repo import objects
from .._repo.batch import Buffer, results, store_batch
from .._repo.state import RepoState
from ..digest import ObjectId
from ..errors import OciError
from ..results import ImportStats, StoredObject, StoreOutcome
from ..splitstream import OCI_LAYER, SplitstreamWriter
from .tarsplit import EXTERNAL, INLINE, LARGE_BEGIN, LARGE_PIECE, PIECE, TarSplitter
from .unpack import Unpacker

__all__ = ["Conveyor", "store_raw"]

_CHUNK = 2 << 20
"""Bytes of tar that a carrier takes at a time: small enough for the cache, large enough to pay for the hops."""
_HEADROOM = PIECE + 512
"""In front of a chunk, for what the splitter left of the one before."""
_CARRIERS_MORE = 1
"""Than there are tokens, so that one waits at a turn while the others work."""


class Observer(Protocol):
    """Hears how far a layer has come, on the event loop."""

    def __call__(self, packed: int, stats: ImportStats, /) -> None: ...


class _Turns:
    """Lets chunks through a stage in their order."""

    def __init__(self) -> None:
        self._next = 0
        self._waiting: dict[int, Event] = {}

    @asynccontextmanager
    async def turn(self, index: int) -> AsyncIterator[None]:
        """After an error the turn is not passed on: the task group cancels those who wait."""
        if index != self._next:
            event = self._waiting[index] = Event()
            await event.wait()
        yield
        self._next += 1
        if event_of_next := self._waiting.pop(self._next, None):
            event_of_next.set()


class _LargeFile:
    """A file that does not fit into a chunk: written and hashed in pieces by whoever has them."""

    def __init__(self, state: RepoState, size: int) -> None:
        self._state, self._size = state, size
        self._tmpfile = objects.create_object_tmpfile(state)
        self._hashes: dict[int, bytes] = {}

    def write(self, offset: int, content: memoryview) -> None:
        self._hashes[offset] = fsverity.piece_hashes(content, self._state.algorithm)
        written = 0
        with objects.object_errors(self._state):
            while written < len(content):
                written += os.pwrite(self._tmpfile.fd, content[written:], offset + written)

    def finish(self) -> StoredObject:
        hashes = [self._hashes[offset] for offset in sorted(self._hashes)]
        object_id = fsverity.digest_from_pieces(hashes, self._size, self._state.algorithm)
        with objects.object_errors(self._state):
            return objects.publish_object_tmpfile(self._state, self._tmpfile, self._size, object_id)

    def discard(self) -> None:
        self._tmpfile.discard()


@dataclass(slots=True)
class _Chunk:
    """What a carrier has in its buffer."""

    index: int
    view: memoryview
    """The tail of the chunk before, and this one."""
    packed: Sequence[Buffer]
    final: bool
    items: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    contents: list[memoryview] = field(default_factory=list[memoryview])
    """Of whole files, in order."""
    pieces: list[tuple[_LargeFile, int, memoryview]] = field(default_factory=list[tuple[_LargeFile, int, memoryview]])
    ended: list[_LargeFile] = field(default_factory=list[_LargeFile])
    stored: list[StoredObject] = field(default_factory=list[StoredObject])
    seconds: dict[str, float] = field(default_factory=dict[str, float])

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - start


class Conveyor:
    """Takes one layer from *unpacker* into the repository.

    Args:
        splitter: fresh; its limits are the caller's choice.
        carriers: how many chunks are under way at once.
    """

    def __init__(
        self, state: RepoState, unpacker: Unpacker, splitter: TarSplitter, observe: Observer, *, carriers: int
    ) -> None:
        self._state, self._unpacker, self._splitter, self._observe = state, unpacker, splitter, observe
        self._carriers = carriers + _CARRIERS_MORE
        self._writer = SplitstreamWriter(state.algorithm, OCI_LAYER)
        self._unpacking, self._splitting, self._finishing = Lock(), _Turns(), _Turns()
        self._chunks = 0
        self._ended = False
        self._tail = b""
        self._large: _LargeFile | None = None
        self._large_offset = 0
        self._open_large: set[_LargeFile] = set()
        self._counts = {outcome: [0, 0] for outcome in StoreOutcome}
        self._inline = 0
        self._seconds: dict[str, float] = {}

    async def run(self) -> tuple[StoredObject, ImportStats]:
        """Carry the whole layer; returns its splitstream, stored but not published.

        Raises:
            CompressionError, TarError, DigestMismatchError, OSError: and everything of it is gone but objects.
        """
        try:
            with single_error():
                async with create_task_group() as tasks:
                    for _ in range(self._carriers):
                        tasks.start_soon(self._carry)
            return await write_hop(self._state, self._end), self.stats()
        finally:
            await _discard(self._open_large)

    def stats(self) -> ImportStats:
        """What has been done so far."""
        stored, present, replaced = (self._counts[outcome] for outcome in StoreOutcome)
        return ImportStats(
            objects_stored=stored[0],
            objects_present=present[0],
            objects_replaced=replaced[0],
            bytes_stored=stored[1] + replaced[1],
            bytes_present=present[1],
            bytes_inline=self._inline,
            bytes_read=self._unpacker.bytes_read,
            seconds=dict(self._seconds),
        )

    async def _carry(self) -> None:
        buffer = memoryview(mmap.mmap(-1, _HEADROOM + _CHUNK))
        while (chunk := await self._unpack(buffer)) is not None:
            async with self._splitting.turn(chunk.index):
                await write_hop(self._state, self._split, chunk, buffer)
            await write_hop(self._state, self._store, chunk)
            async with self._finishing.turn(chunk.index):
                await write_hop(self._state, self._finish, chunk)
            self._observe(self._unpacker.bytes_read, self.stats())

    # -- the stages, in worker threads ---------------------------------------------------------

    async def _unpack(self, buffer: memoryview) -> _Chunk | None:
        async with self._unpacking:
            if self._ended:
                return None
            body = buffer[_HEADROOM:]
            start = time.perf_counter()
            size, packed = await self._unpacker.fill(body)
            self._ended = size < len(body)
            chunk = _Chunk(self._chunks, body[:size], packed, self._ended)
            chunk.seconds["unpack"] = time.perf_counter() - start
            self._chunks += 1
            return chunk

    def _split(self, chunk: _Chunk, buffer: memoryview) -> None:
        with chunk.timed("hash"):
            self._unpacker.hash(chunk.packed, chunk.view)
        with chunk.timed("split"):
            start = _HEADROOM - len(self._tail)
            buffer[start:_HEADROOM] = self._tail
            view = chunk.view = buffer[start : _HEADROOM + len(chunk.view)]
            consumed, chunk.items = self._splitter.split(view, chunk.final)
            self._tail = bytes(view[consumed:])
            for kind, begin, end in chunk.items:
                if kind == EXTERNAL:
                    chunk.contents.append(view[begin:end])
                elif kind == LARGE_PIECE:
                    assert self._large is not None
                    chunk.pieces.append((self._large, self._large_offset, view[begin:end]))
                    self._large_offset += end - begin
                elif kind == LARGE_BEGIN:
                    self._large, self._large_offset = _LargeFile(self._state, end), 0
                    self._open_large.add(self._large)
                elif kind != INLINE:
                    assert self._large is not None
                    chunk.ended.append(self._large)

    def _store(self, chunk: _Chunk) -> None:
        with chunk.timed("store"):
            for large, offset, content in chunk.pieces:
                large.write(offset, content)
            if chunk.contents:
                with objects.object_errors(self._state):
                    chunk.stored = results(store_batch(self._state, chunk.contents))

    def _finish(self, chunk: _Chunk) -> None:
        with chunk.timed("finish"):
            whole = iter(chunk.stored)
            ended = iter([self._finish_large(large) for large in chunk.ended])
            external = 0
            body: list[Buffer | ObjectId] = []
            for kind, begin, end in chunk.items:
                if kind == INLINE:
                    body.append(chunk.view[begin:end])
                    self._inline += end - begin
                elif kind not in (LARGE_BEGIN, LARGE_PIECE):
                    stored = next(whole if kind == EXTERNAL else ended)
                    external += stored.size
                    count = self._counts[stored.outcome]
                    count[0] += 1
                    count[1] += stored.size
                    body.append(stored.id)
            self._writer.write_body(body, external)
        for stage, seconds in chunk.seconds.items():
            self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds

    def _finish_large(self, large: _LargeFile) -> StoredObject:
        stored = large.finish()
        self._open_large.discard(large)
        large.discard()
        return stored

    def _end(self) -> StoredObject:
        self._unpacker.verify()
        with objects.object_errors(self._state):
            return objects.ensure_object(self._state, self._writer.done())


async def _discard(unfinished: set[_LargeFile]) -> None:
    """Remove what is left of large files in a worker thread, also when the caller has been cancelled."""

    def discard() -> None:
        while unfinished:
            unfinished.pop().discard()

    if unfinished:
        with CancelScope(shield=True):
            await hop(discard)


async def store_raw(state: RepoState, unpacker: Unpacker, size: int) -> tuple[StoredObject, ImportStats]:
    """Take the bytes of a blob as they are into one object; publishes nothing.

    Raises:
        DigestMismatchError, OSError
        OciError: it has not *size* bytes.
    """
    buffer = memoryview(mmap.mmap(-1, _CHUNK))
    large = await write_hop(state, _LargeFile, state, size)
    try:
        offset, filled = 0, _CHUNK
        while filled == _CHUNK:
            filled, packed = await unpacker.fill(buffer)
            await write_hop(state, unpacker.hash, packed, buffer[:filled])
            await write_hop(state, large.write, offset, buffer[:filled])
            offset += filled
        unpacker.verify()
        if offset != size:
            raise OciError("blob", f"it has {offset} bytes, its descriptor says {size}")
        stored = await write_hop(state, large.finish)
    finally:
        await _discard({large})
    counts = {
        StoreOutcome.STORED: ImportStats(objects_stored=1, bytes_stored=stored.size),
        StoreOutcome.PRESENT: ImportStats(objects_present=1, bytes_present=stored.size),
        StoreOutcome.REPLACED: ImportStats(objects_replaced=1, bytes_stored=stored.size),
    }
    return stored, counts[stored.outcome] + ImportStats(bytes_read=offset)
