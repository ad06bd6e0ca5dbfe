"""Chunks on their way through stages, moved on by whatever threads come to work.

Owns which chunk goes through which stage next, the order of chunks in stages that want one, and the bound on how many
are under way.  Knows nothing of what stages do, and of no event loop.

Whoever works first sees to it that the next chunk is being made, as long as there is room: only one can make it, so
that a store of chunks keeps the others at work meanwhile.  Otherwise they take the chunk that is farthest on and may
go on, so that results leave as early as possible and buffers come free.  Nobody waits for a particular thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

__all__ = ["Belt", "Stage"]


class Chunk(Protocol):
    @property
    def final(self) -> bool:
        """No other comes after it."""
        ...


C = TypeVar("C", bound=Chunk)


@dataclass(slots=True)
class Stage(Generic[C]):
    """What is done to every chunk, in a worker thread."""

    work: Callable[[C], object]
    in_order: bool
    """To one chunk after the other; otherwise to several at once, as they come."""
    waiting: dict[int, C] = field(default_factory=dict[int, C])
    """By their number."""
    next: int = 0
    """In order: the number of the chunk whose turn it is, or will be when the one before is through."""
    busy: bool = False

    @property
    def next_chunk(self) -> int | None:
        """The number of a chunk that may go through now."""
        if not self.in_order:
            return min(self.waiting, default=None)
        return self.next if not self.busy and self.next in self.waiting else None

    def take(self, number: int) -> C:
        """Let chunk *number*, which waits, go through, and return it."""
        self.busy = True
        return self.waiting.pop(number)

    def leave(self, number: int) -> None:
        """Let the next chunk go through: the last one has."""
        self.next = number + 1
        self.busy = False


class Belt(Generic[C]):
    """Chunks come from *source*, which is called in worker threads, or from `put`, up to a last one.

    Args:
        stages: the first one first.
        room: how many chunks may be under way at once.
        source: makes the next chunk, one call at a time.  Without it somebody else calls `put`.
    """

    def __init__(self, stages: Sequence[Stage[C]], room: int, source: Callable[[], C] | None = None) -> None:
        self._stages, self._room, self._source = stages, room, source
        self._changed = threading.Condition()
        self._sourcing = False
        self._begun = self._through = self._working = 0
        self._ended = self._failed = False

    @property
    def done(self) -> bool:
        """All chunks are through all stages, or something has failed."""
        return self._failed or (self._ended and self._begun == self._through)

    @property
    def full(self) -> bool:
        """One more chunk has no room now."""
        return self._begun - self._through >= self._room

    @property
    def ready(self) -> bool:
        """There is something to do for `work`."""
        with self._changed:
            return any(stage.next_chunk is not None for stage in self._stages)

    def put(self, chunk: C) -> None:
        """Bring the next chunk, for which there must be room."""
        with self._changed:
            self._enter(chunk)

    def work(self, seconds: float) -> None:
        """Move chunks on until time is up, or nothing more can be done here.  Blocks.

        Raises:
            whatever a stage or the source does.  Then all is over: the others end, too, when they have done with the
            chunks they are at.
        """
        until = time.perf_counter() + seconds
        while time.perf_counter() < until and (job := self._next_job(until)) is not None:
            try:
                self._run(*job)
            except BaseException:
                with self._changed:
                    self._failed = True
                    self._working -= 1
                    self._changed.notify_all()
                raise

    def _next_job(self, until: float) -> tuple[int, int, C | None] | None:
        """Stage, number and chunk; stage -1 is the source.  Waits only for others that are at work."""
        with self._changed:
            while not self.done:
                job = self._find_job()
                if job is not None:
                    self._working += 1
                    return job
                if not self._working or not self._changed.wait(until - time.perf_counter()):
                    break
            return None

    def _find_job(self) -> tuple[int, int, C | None] | None:
        if self._source is not None and not (self._sourcing or self._ended or self.full):
            self._sourcing = True
            return -1, -1, None
        for index in range(len(self._stages) - 1, -1, -1):
            number = self._stages[index].next_chunk
            if number is not None:
                return index, number, self._stages[index].take(number)
        return None

    def _run(self, index: int, number: int, chunk: C | None) -> None:
        if chunk is None:
            assert self._source is not None
            made = self._source()
            with self._changed:
                self._sourcing = False
                self._enter(made)
                self._working -= 1
            return
        self._stages[index].work(chunk)
        with self._changed:
            self._stages[index].leave(number)
            if index + 1 < len(self._stages):
                self._stages[index + 1].waiting[number] = chunk
            else:
                self._through += 1
            self._working -= 1
            self._changed.notify_all()

    def _enter(self, chunk: C) -> None:
        self._stages[0].waiting[self._begun] = chunk
        self._begun += 1
        self._ended = chunk.final
        self._changed.notify_all()
