"""One blocking call in a worker thread, never abandoned; knows nothing of repositories."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event
from typing import Generic, TypeVar

from anyio import CancelScope, CapacityLimiter, from_thread, get_cancelled_exc_class, sleep, to_thread

from .._repo.threads import starting_threads

__all__ = ["in_checked_thread", "in_thread"]

T = TypeVar("T")

_POLL = 0.01
"""Seconds between two looks where no thread can be had to wait."""


class GivenUpError(Exception):
    """The task that wanted the work has been cancelled; nobody hears this."""


async def in_thread(
    work: Callable[[], T], limiter: CapacityLimiter | None = None, *, discard: Callable[[T], object] | None = None
) -> T:
    """Run *work* in a worker thread; whoever is cancelled meanwhile waits for its end.

    AnyIO shields the wait from its own cancellation but not from asyncio's ``Task.cancel``, which
    `asyncio.timeout` uses: the thread would go on with descriptors that its owner is about to close.

    Args:
        discard: gets a result that came when the caller had been cancelled.
    """
    return await _wait_for(_Run(work), limiter, discard)


async def in_checked_thread(
    work: Callable[[Callable[[], None]], T], *, discard: Callable[[T], object] | None = None
) -> T:
    """Run *work*, which may wait long, in a worker thread; what it is given raises after a cancellation."""

    def check() -> None:
        from_thread.check_cancelled()
        if run.given_up:
            raise GivenUpError

    run = _Run(lambda: work(check))
    return await _wait_for(run, None, discard)


async def _wait_for(run: _Run[T], limiter: CapacityLimiter | None, discard: Callable[[T], object] | None) -> T:
    try:
        with starting_threads():
            return await to_thread.run_sync(run, limiter=limiter)
    except get_cancelled_exc_class():
        await run.end()
        if discard is not None and run.results:
            discard(run.results.pop())
        raise


class _Run(Generic[T]):
    """One run.  Each side sets its mark before it looks at the other's, so that no lock is needed."""

    __slots__ = ("_begun", "_ended", "_listener", "_work", "given_up", "results")

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._begun = self._ended = self.given_up = False
        self._listener: Event | None = None
        self.results: list[T] = []
        """What the work gave, if it has ended."""

    def __call__(self) -> T:
        self._begun = True
        try:
            if self.given_up:
                raise GivenUpError
            self.results.append(self._work())
            return self.results[0]
        finally:
            self._ended = True
            if self._listener is not None:
                self._listener.set()

    async def end(self) -> None:
        """Keep it from beginning, or wait until it has ended, however often this task is cancelled."""
        self.given_up = True
        if not self._begun:
            return
        self._listener = Event()
        while not self._ended:
            with CancelScope(shield=True):
                try:
                    await self._hear()
                except get_cancelled_exc_class():
                    continue  # asyncio's again: the cancellation that came first is raised in the end

    async def _hear(self) -> None:
        """Wait until the work has ended, or for a moment."""
        assert self._listener is not None
        try:
            with starting_threads():
                await to_thread.run_sync(self._listener.wait)
        except OSError:
            await sleep(_POLL)
