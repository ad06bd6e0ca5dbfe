"""The way of one tar layer into objects and a splitstream: unpack, hash and split, store, finish.

A few carriers (tasks) move chunks along a belt, in worker threads under a token of the write semaphore.  Unpacking,
splitting and finishing go in the order of the chunks; storing does not.  Without the native code digests are a stage of
their own before it, in order, and small files are stored there.  Memory is bounded by the buffers of the chunks that
may be under way.

This module publishes nothing.  Objects of a layer that failed stay, unreferenced.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from anyio import CancelScope, Event, create_task_group
from anyio.abc import TaskGroup

from ... import fsverity
from ..._aio.groups import single_error
from ..._aio.hops import hop, write_hop
from ..._aio.pipeline import Belt, Stage
from ..._repo import objects
from ..._repo.batch import NATIVE, Buffer, StoredBatch, store_whole_batch
from ..._repo.state import RepoState
from ..._sys.files import Tmpfile
from ...digest import ObjectId
from ...errors import OciError
from ...results import ImportStats, StoredObject, StoreOutcome
from ...splitstream import OCI_LAYER, SplitstreamWriter
from ..tar.split import EXTERNAL, INLINE, LARGE_BEGIN, LARGE_END, LARGE_PIECE, PIECE, TarSplitter
from .clones import Clones
from .incremental_tree import Follower
from .large_files import LargeFile
from .unpack import Unpacker

__all__ = ["Conveyor", "store_raw"]

_CHUNK = 3 << 19
"""Bytes of tar that go through a stage at a time: enough to pay for it, and the caches still hold them."""
_HEADROOM = PIECE + 512
"""In front of a chunk, for what the splitter left of the one before."""
_CHUNKS_MORE = 3
"""Than there are carriers: the store that is unpacked ahead, from which they live when unpacking takes its time."""
_HOP_SECONDS = 0.05
"""After which a carrier that could go on looks at the event loop, for progress, cancellation, and others' work."""
_FLUSH_AFTER = 128 << 20
"""Bytes of new objects after which a flush begins beside the import, so that the one that publishes is short."""
_WORTH_A_STAGE = 96 << 10
"""Bytes of a file, on average: writing that is worth another thread, while one hashes what follows in Python."""


class Observer(Protocol):
    """Hears how far a layer has come, on the event loop."""

    def __call__(self, packed: int, stats: ImportStats, /) -> None: ...


_NOTHING = StoredBatch([], b"")


@dataclass(slots=True)
class _Chunk:
    """What is in a buffer."""

    buffer: memoryview
    view: memoryview
    """The tail of the chunk before, and this one."""
    packed: Sequence[Buffer]
    final: bool
    items: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    contents: list[memoryview] = field(default_factory=list[memoryview])
    """Of whole files, in order."""
    pieces: list[tuple[LargeFile, int, memoryview]] = field(default_factory=list[tuple[LargeFile, int, memoryview]])
    ended: list[LargeFile] = field(default_factory=list[LargeFile])
    clones: dict[int, Tmpfile] = field(default_factory=dict[int, Tmpfile])
    """By the number of a whole file, the file in which its content is already."""
    ids: list[ObjectId] | None = None
    """Of the contents, if they and the pieces have been hashed."""
    stored: StoredBatch = _NOTHING
    seconds: dict[str, float] = field(default_factory=dict[str, float])

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


class Conveyor:
    """Takes one layer from *unpacker* into the repository.

    Args:
        splitter: fresh; its limits are the caller's choice.
        carriers: how many chunks are worked on at once.
        follower: sees the body of the stream as it is made.
        clones: of files in the layer, by where their content stands.
    """

    def __init__(
        self,
        state: RepoState,
        unpacker: Unpacker,
        splitter: TarSplitter,
        observe: Observer,
        *,
        carriers: int,
        follower: Follower | None = None,
        clones: Clones | None = None,
    ) -> None:
        self._state, self._unpacker, self._splitter, self._observe = state, unpacker, splitter, observe
        self._follower, self._clones = follower, clones
        self._reflinked = [0, 0]
        self._carriers = carriers
        self._buffers = [memoryview(mmap.mmap(-1, _HEADROOM + _CHUNK)) for _ in range(carriers + _CHUNKS_MORE)]
        self._ended = False
        self._fed, self._moved = Event(), Event()  # the next time; only for a source that is not read here
        self._writer = SplitstreamWriter(state.algorithm, OCI_LAYER)
        self._tail = b""
        self._large: LargeFile | None = None
        self._large_offset = 0
        self._open_large: set[LargeFile] = set()
        self._counts: dict[int, list[int]] = {outcome: [0, 0] for outcome in StoreOutcome}
        self._inline = 0
        self._flushed, self._flushing = 0, False
        self._seconds: dict[str, float] = {}

    async def run(self) -> tuple[StoredObject, ImportStats]:
        """Carry the whole layer; returns its splitstream, stored but not published.

        Raises:
            CompressionError, TarError, DigestMismatchError, OSError: and everything of it is gone but objects.
        """
        belt = self._belt()
        try:
            with single_error():
                async with create_task_group() as tasks:
                    for _ in range(self._carriers):
                        tasks.start_soon(self._carry, belt, tasks)
                    if not self._unpacker.local:
                        tasks.start_soon(self._feed, belt)
            self._buffers.clear()  # memory for the stream, which is put together now
            return await write_hop(self._state, self._end), self.stats()
        finally:
            await _discard(self._open_large, self._clones)

    def _belt(self) -> Belt[_Chunk]:
        stages = [
            Stage(self._split, in_order=True),
            *([] if NATIVE else [Stage(self._digest, in_order=True)]),
            Stage(self._store, in_order=False),
            Stage(self._finish, in_order=True),
        ]
        return Belt(stages, len(self._buffers), self._unpack_here if self._unpacker.local else None)

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
            objects_reflinked=self._reflinked[0],
            bytes_reflinked=self._reflinked[1],
        )

    async def _carry(self, belt: Belt[_Chunk], tasks: TaskGroup) -> None:
        while not belt.done:
            fed = self._fed
            await write_hop(self._state, belt.work, _HOP_SECONDS)
            stats = self.stats()
            self._observe(self._unpacker.bytes_read, stats)
            if not self._flushing and stats.bytes_stored - self._flushed >= _FLUSH_AFTER:
                self._flushing, self._flushed = True, stats.bytes_stored
                tasks.start_soon(self._flush)
            self._moved.set()
            self._moved = Event()
            if not belt.ready and not self._unpacker.local and not self._ended:
                await fed.wait()

    async def _feed(self, belt: Belt[_Chunk]) -> None:
        """Bring chunks from a source that is not read in the carriers' threads."""
        while not self._ended:
            while belt.full:
                await self._moved.wait()
            buffer, start = self._buffers.pop(), time.perf_counter()
            belt.put(self._chunk(buffer, *await self._unpacker.fill(buffer[_HEADROOM:]), start))
            self._fed.set()
            self._fed = Event()

    async def _flush(self) -> None:
        await hop(self._state.syncs.sync)
        self._flushing = False

    # -- the stages, in worker threads ---------------------------------------------------------

    def _unpack_here(self) -> _Chunk:
        buffer, start = self._buffers.pop(), time.perf_counter()
        return self._chunk(buffer, *self._unpacker.fill_here(buffer[_HEADROOM:]), start)

    def _chunk(self, buffer: memoryview, size: int, packed: Sequence[Buffer], start: float) -> _Chunk:
        body = buffer[_HEADROOM:]
        self._ended = self._unpacker.ended
        chunk = _Chunk(buffer, body[:size], packed, self._ended)
        chunk.seconds["unpack"] = time.perf_counter() - start
        return chunk

    def _split(self, chunk: _Chunk) -> None:
        with chunk.timed("hash"):
            self._unpacker.hash(chunk.packed, chunk.view)
        with chunk.timed("split"):
            start = _HEADROOM - len(self._tail)
            chunk.buffer[start:_HEADROOM] = self._tail
            view = chunk.view = chunk.buffer[start : _HEADROOM + len(chunk.view)]
            base = self._splitter.offset
            consumed, chunk.items = self._splitter.split(view, chunk.final)
            self._tail = bytes(view[consumed:])
            chunk.contents = [view[begin:end] for kind, begin, end in chunk.items if kind == EXTERNAL]
            if self._clones is not None:
                self._take_clones(chunk, base, self._clones)
            self._take_large(chunk, base)

    def _take_clones(self, chunk: _Chunk, base: int, clones: Clones) -> None:
        whole = [(begin, end) for kind, begin, end in chunk.items if kind == EXTERNAL]
        for number, (begin, end) in enumerate(whole):
            clone = clones.take(base + begin, end - begin)
            if clone is not None:
                chunk.clones[number] = clone

    def _take_large(self, chunk: _Chunk, base: int) -> None:
        before = 0
        for kind, begin, end in chunk.items:
            if kind <= EXTERNAL:
                before = end
            elif kind == LARGE_BEGIN:
                clone = None if self._clones is None else self._clones.take(base + before, end)
                if clone is not None and self._clones is not None:
                    self._clones.give_up(clone)
                self._large, self._large_offset = LargeFile(self._state, end, clone), 0
                self._open_large.add(self._large)
            elif self._large is not None and kind == LARGE_PIECE:
                chunk.pieces.append((self._large, self._large_offset, chunk.view[begin:end]))
                self._large_offset += end - begin
            elif self._large is not None:
                chunk.ended.append(self._large)

    def _digest(self, chunk: _Chunk) -> None:
        """Without the native code: two threads that hash, or store small files, only take the GIL from each other."""
        with chunk.timed("store"):
            for large, offset, content in chunk.pieces:
                large.hash(offset, content)
            chunk.ids = fsverity.digest_many(chunk.contents, self._state.algorithm)
            if sum(map(len, chunk.contents)) < _WORTH_A_STAGE * len(chunk.contents):
                self._store_contents(chunk)

    def _store(self, chunk: _Chunk) -> None:
        with chunk.timed("store"):
            for large, offset, content in chunk.pieces:
                if chunk.ids is None:
                    large.take(offset, content)
                else:
                    large.write(offset, content)
            if not chunk.stored.ids:
                self._store_contents(chunk)

    def _store_contents(self, chunk: _Chunk) -> None:
        if chunk.contents:
            with objects.object_errors(self._state):
                if chunk.clones:
                    self._store_with_clones(chunk)
                else:
                    chunk.stored = store_whole_batch(self._state, chunk.contents, chunk.ids)

    def _store_with_clones(self, chunk: _Chunk) -> None:
        """Name the clones, and store the other files."""
        others = [number for number in range(len(chunk.contents)) if number not in chunk.clones]
        ids = None if chunk.ids is None else [chunk.ids[number] for number in others]
        batch = store_whole_batch(self._state, [chunk.contents[number] for number in others], ids)
        found = dict(zip(others, zip(batch.ids, batch.outcomes, strict=True), strict=True))
        for number, clone in chunk.clones.items():
            content = chunk.contents[number]
            object_id = chunk.ids[number] if chunk.ids else fsverity.digest(content, self._state.algorithm)
            stored = objects.publish_object_tmpfile(self._state, clone, len(content), object_id)
            found[number] = stored.id, stored.outcome
        in_order = [found[number] for number in range(len(chunk.contents))]
        chunk.stored = StoredBatch([each[0] for each in in_order], bytes(each[1] for each in in_order))

    def _finish(self, chunk: _Chunk) -> None:
        with chunk.timed("finish"):
            ended = [self._finish_large(large) for large in chunk.ended]
            view = chunk.view
            ids = {EXTERNAL: iter(chunk.stored.ids), LARGE_END: iter([large.id for large in ended])}
            body: list[Buffer | ObjectId] = [
                bytes(view[begin:end]) if kind == INLINE else next(ids[kind])
                for kind, begin, end in chunk.items
                if kind not in (LARGE_BEGIN, LARGE_PIECE)
            ]
            sizes = [len(content) for content in chunk.contents]
            self._count(chunk.stored.outcomes, sizes)
            self._count([large.outcome for large in ended], [large.size for large in ended])
            self._count_clones(chunk, ended)
            self._inline += sum(end - begin for kind, begin, end in chunk.items if kind == INLINE)
            self._writer.write_body(body, sum(sizes) + sum(large.size for large in ended))
        if self._follower is not None:
            with chunk.timed("tree"):
                self._follower.take(body)
        for stage, seconds in chunk.seconds.items():
            self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds
        self._buffers.append(chunk.buffer)

    def _count(self, outcomes: Sequence[int], sizes: Sequence[int]) -> None:
        for outcome, size in zip(outcomes, sizes, strict=True):
            count = self._counts[outcome]
            count[0] += 1
            count[1] += size

    def _count_clones(self, chunk: _Chunk, ended: Sequence[StoredObject]) -> None:
        """Count clones that are objects now, and close all."""
        large = [stored for file, stored in zip(chunk.ended, ended, strict=True) if file.is_clone]
        sizes = [stored.size for stored in large if stored.outcome != StoreOutcome.PRESENT]
        for number, clone in chunk.clones.items():
            if chunk.stored.outcomes[number] != StoreOutcome.PRESENT:
                sizes.append(len(chunk.contents[number]))
            if self._clones is not None:
                self._clones.done(clone)
        self._reflinked[0] += len(sizes)
        self._reflinked[1] += sum(sizes)

    def _finish_large(self, large: LargeFile) -> StoredObject:
        stored = large.finish()
        self._open_large.discard(large)
        large.discard()
        return stored

    def _end(self) -> StoredObject:
        self._unpacker.verify()
        if self._follower is not None:
            self._follower.finish()
        with objects.object_errors(self._state):
            return objects.ensure_object(self._state, self._writer.done(), compare=True)


async def _discard(unfinished: set[LargeFile], clones: Clones | None = None) -> None:
    """Remove what is left of large files in a worker thread, also when the caller has been cancelled."""

    def discard() -> None:
        while unfinished:
            unfinished.pop().discard()
        if clones is not None:
            clones.close()

    if unfinished or clones is not None:
        with CancelScope(shield=True):
            await hop(discard)


async def store_raw(state: RepoState, unpacker: Unpacker, size: int) -> tuple[StoredObject, ImportStats]:
    """Take the bytes of a blob as they are into one object; publishes nothing.

    Raises:
        DigestMismatchError, OSError
        OciError: it has not *size* bytes.
    """
    buffer = memoryview(mmap.mmap(-1, _CHUNK))
    large = await write_hop(state, LargeFile, state, size)
    try:
        offset = 0
        while not unpacker.ended:
            filled, packed = await unpacker.fill(buffer)
            await write_hop(state, unpacker.hash, packed, buffer[:filled])
            await write_hop(state, large.take, offset, buffer[:filled])
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
