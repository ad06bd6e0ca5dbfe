"""Ranges dealt to sources: the fastest that is idle first, the next one where one fails, two where one is slow.

Owns who is asked for what, and how often.  Does not own what is done with the bytes (`receiving`).
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from anyio import Event, create_task_group, move_on_after

from .._aio.groups import single_error
from .._aio.to_thread import in_checked_thread
from ..errors import BlobMissingError, StoreError, StoreFormatError
from ..progress import ProgressCallback, SourceFailed
from .backends.base import RangeIgnoredError, TransientError
from .documents import Descriptor, blob_key
from .pacing import delay, pause
from .plan import Member, Range
from .receiving import Outcome, Receiver, SourceError
from .store import Store

__all__ = ["Deal", "Source"]

_ATTEMPTS = 4
"""Times that one source is asked for a range while it fails in ways that may pass, without any progress."""
_BAD_MEMBERS = 2
"""From so many on a source is not asked any more, as long as there is another."""
_STALLED = 10.0
_SLOW = 0.25
"""Of the median speed of ranges: what is slower is asked for a second time, elsewhere, when nothing else is left."""
_HEDGE_AFTER = 1.0
_LOOK = 0.25


class SupersededError(Exception):
    """Another source has delivered the range."""


@dataclass(slots=True, eq=False)
class Source:
    """A store that may have the blobs of an artifact."""

    store: Store
    speed: float = 0.0
    """Moving average in bytes per second; 0 as long as nothing is known."""
    busy: int = 0
    bad: int = 0
    """Members that were not what they should be."""
    ranges: bool = True
    """It can give parts of blobs."""
    said: str = ""
    """The last thing that was wrong with it."""

    @property
    def name(self) -> str:
        """URL of the store, for messages and counters."""
        return self.store.url

    @property
    def trusted(self) -> bool:
        """Whether the source has not delivered too much that was damaged."""
        return self.bad < _BAD_MEMBERS

    def learn(self, size: int, seconds: float) -> None:
        """Remember how long a range took."""
        speed = size / max(seconds, 1e-6)
        self.speed = speed if not self.speed else 0.7 * self.speed + 0.3 * speed

    def get(self, key: str, wanted: Range, check: Callable[[], object]) -> tuple[int, Iterator[bytes]]:
        """Where the pieces begin, and the pieces.  A source that cannot give ranges gives the whole."""
        if self.ranges:
            try:
                pieces = self.store.backend.get(key, wanted.start, wanted.length)
                first = next(pieces, b"")
            except RangeIgnoredError:
                self.ranges = False
            else:
                return wanted.start, _with_first(first, pieces)
        check()
        return 0, self.store.backend.get(key)


def _with_first(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield first
        yield from rest
    finally:
        close = getattr(rest, "close", None)
        if close is not None:
            close()


@dataclass(slots=True, eq=False)
class _Job:
    wanted: Range
    tried: set[Source] = field(default_factory=set[Source])
    attempts: int = 0
    hedge: bool = False
    error: TransientError | None = None
    """What the last attempt failed with."""


@dataclass(slots=True, eq=False)
class _Active:
    job: _Job
    source: Source
    begun: float
    last: float
    moved: int = 0
    superseded: bool = False
    hedged: bool = False


class Deal:
    """One set of ranges, brought by whichever sources there are.

    Args:
        moved: hears of bytes and objects as they come, on the event loop.
    """

    def __init__(
        self,
        receiver: Receiver,
        blobs: Sequence[Descriptor],
        sources: Sequence[Source],
        *,
        transfers: int,
        report: ProgressCallback,
        moved: Callable[[int, int], object],
    ) -> None:
        self._receiver, self._blobs, self._sources = receiver, blobs, sources
        self._transfers, self._report, self._moved = transfers, report, moved
        self._jobs: deque[_Job] = deque()
        self._active: list[_Active] = []
        self._changed = Event()
        self._speeds: list[float] = []
        self.failed: dict[int, dict[str, str]] = {}
        """Entries that no source could deliver: what was wrong, by the source."""
        self.damaged: bool = False
        """Some source has delivered something that is not what it should be."""

    async def run(self, ranges: Sequence[Range]) -> None:
        """Bring all *ranges*, as far as possible; see `failed`."""
        self._jobs.extend(_Job(each) for each in ranges)
        workers = min(self._transfers, max(len(ranges), 1))
        with single_error():
            async with create_task_group() as tasks:
                for _ in range(workers):
                    tasks.start_soon(self._work)

    # -- who does what -------------------------------------------------------------------------

    async def _work(self) -> None:
        while (found := await self._next()) is not None:
            job, source = found
            active = _Active(job, source, time.monotonic(), time.monotonic())
            self._active.append(active)
            source.busy += 1
            try:
                outcome = await in_checked_thread(lambda check, active=active: self._bring(active, check))  # type: ignore[misc]
            finally:
                source.busy -= 1
                self._active.remove(active)
            self._settle(active, outcome)
            self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, Event()
        changed.set()

    async def _next(self) -> tuple[_Job, Source] | None:
        """What to do next; waits while others are at work whose failure may make more work."""
        while True:
            while self._jobs:
                job = self._jobs.popleft()
                if self._is_done(job.wanted):
                    continue
                source = self._choose(job)
                if source is not None:
                    return job, source
                self._give_up(job)
            if not self._active:
                return None
            if (hedge := self._hedge()) is not None:
                return hedge
            with move_on_after(_LOOK):
                await self._changed.wait()

    def _is_done(self, wanted: Range) -> bool:
        return all(member.entry in self._receiver.done for member in wanted.members)

    def _choose(self, job: _Job) -> Source | None:
        able = [source for source in self._sources if source not in job.tried]
        able = [source for source in able if source.trusted] or (able if len(self._sources) == 1 else [])
        # Each source is tried once before speeds are compared; the order given decides between equals.
        return max(able, key=lambda source: (source.speed or float("inf")) / (source.busy + 1), default=None)

    def _give_up(self, job: _Job) -> None:
        if job.hedge:
            return
        said = {source.name: source.said for source in self._sources if source.said}
        for member in job.wanted.members:
            if member.entry not in self._receiver.done:
                self.failed.setdefault(member.entry, said)

    def _hedge(self) -> tuple[_Job, Source] | None:
        """A range that is slow, and another source for it."""
        now = time.monotonic()
        median = statistics.median(self._speeds) if self._speeds else 0.0
        for active in self._active:
            seconds = now - active.begun
            slow = seconds > _HEDGE_AFTER and active.moved / seconds < _SLOW * median
            if active.hedged or active.job.hedge or not (slow or now - active.last > _STALLED):
                continue
            job = _Job(active.job.wanted, {*active.job.tried, active.source}, hedge=True)
            source = self._choose(job)
            if source is not None:
                active.hedged = True
                return job, source
        return None

    # -- one range -----------------------------------------------------------------------------

    def _bring(self, active: _Active, check: Callable[[], None]) -> Outcome:
        """Receive one range.  Blocks."""
        job, source = active.job, active.source

        def counted(pieces: Iterator[bytes]) -> Iterator[bytes]:
            try:
                for piece in pieces:
                    active.moved += len(piece)
                    active.last = time.monotonic()
                    yield piece
            finally:
                close = getattr(pieces, "close", None)
                if close is not None:
                    close()

        def look() -> None:
            check()
            if active.superseded or (active.hedged and self._is_done(job.wanted)):
                raise SupersededError

        if job.error is not None:
            pause(delay(job.attempts - 1, job.error))
        start = job.wanted.start
        try:
            start, pieces = source.get(blob_key(self._blobs[job.wanted.blob].digest), job.wanted, check)
            return self._receiver.take(_failing(counted(pieces)), start, job.wanted, look)
        except (StoreError, StoreFormatError) as error:
            return Outcome(failure=error)
        except SupersededError:
            return Outcome()

    def _settle(self, active: _Active, outcome: Outcome) -> None:
        """Make of what became of a range what is left to do."""
        job, source = active.job, active.source
        if outcome.stored:
            seconds = time.monotonic() - active.begun
            source.learn(active.moved, seconds)
            self._speeds.append(active.moved / max(seconds, 1e-6))
        self._moved(active.moved, len(outcome.stored))
        left = [member for member in job.wanted.members if member.entry not in self._receiver.done]
        if not left:
            for other in self._active:
                other.superseded |= self._is_done(other.job.wanted)
            return
        if outcome.bad:
            self._blame(source, outcome)
            self._again(job, [member for member in left if member.entry in outcome.bad], {*job.tried, source})
        rest = [member for member in left if member.entry not in outcome.bad]
        if not rest or outcome.failure is None:
            if rest and not job.hedge:  # superseded by a hedge that failed later
                self._again(job, rest, job.tried)
            return
        source.said = _reason(outcome.failure)
        if isinstance(outcome.failure, StoreFormatError):
            self.damaged = True
        attempts = 0 if outcome.stored else job.attempts + 1
        if isinstance(outcome.failure, TransientError) and attempts < _ATTEMPTS:
            self._again(job, rest, job.tried, max(attempts, 1), outcome.failure)
            return
        self._report(SourceFailed(source.name, source.said))
        self._again(job, rest, {*job.tried, source})

    def _blame(self, source: Source, outcome: Outcome) -> None:
        self.damaged = True
        source.bad += len(outcome.bad)
        source.said = next(iter(outcome.bad.values()))
        self._report(SourceFailed(source.name, source.said))

    def _again(
        self,
        job: _Job,
        members: Sequence[Member],
        tried: set[Source],
        attempts: int = 0,
        error: TransientError | None = None,
    ) -> None:
        if members:
            end = members[-1].offset + members[-1].stored
            wanted = Range(job.wanted.blob, members[0].offset, end - members[0].offset, tuple(members))
            self._jobs.appendleft(_Job(wanted, tried, attempts, job.hedge, error))


def _failing(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """*pieces*, whose own failures are told from those of the repository."""
    try:
        yield from pieces
    except StoreError as error:
        raise SourceError from error
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            close()


def _reason(error: Exception) -> str:
    if isinstance(error, BlobMissingError):
        return f"{error.key} is not there"
    return error.reason if isinstance(error, StoreError | StoreFormatError) else str(error)
