"""One blocking call in a worker thread, never abandoned; knows nothing of repositories."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event
from typing import Generic, TypeVar

from anyio import CancelScope, CapacityLimiter, get_cancelled_exc_class, to_thread

__all__ = ["in_thread"]

T = TypeVar("T")


async def in_thread(work: Callable[[], T], limiter: CapacityLimiter | None = None) -> T:
    """Run *work* in a worker thread; whoever is cancelled meanwhile waits for its end.

    AnyIO shields the wait from its own cancellation but not from asyncio's ``Task.cancel``, which
    `asyncio.timeout` uses: the thread would go on with descriptors that its owner is about to close.
    """
    run = _Run(work)
    try:
        return await to_thread.run_sync(run, limiter=limiter)
    except get_cancelled_exc_class():
        await run.end()
        raise


class _Run(Generic[T]):
    """One run.  Each side sets its mark before it looks at the other's, so that no lock is needed."""

    __slots__ = ("_begun", "_ended", "_given_up", "_listener", "_work")

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._begun = self._ended = self._given_up = False
        self._listener: Event | None = None

    def __call__(self) -> T:
        self._begun = True
        try:
            if self._given_up:
                raise RuntimeError("cancelled before it began; nobody hears this")
            return self._work()
        finally:
            self._ended = True
            if self._listener is not None:
                self._listener.set()

    async def end(self) -> None:
        """Keep it from beginning, or wait until it has ended, however often this task is cancelled."""
        self._given_up = True
        if not self._begun:
            return
        self._listener = Event()
        while not self._ended:
            with CancelScope(shield=True):
                try:
                    await to_thread.run_sync(self._listener.wait)
                except get_cancelled_exc_class():
                    continue  # asyncio's again: the cancellation that came first is raised in the end
