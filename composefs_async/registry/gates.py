"""How many requests a host gets at once, and which is next; a host that asks for a pause gets one from everybody.

Owns the waiting.  Knows nothing of HTTP.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from anyio import Event, current_time, sleep

__all__ = ["FIRST", "Gate", "Priority"]

Priority = Callable[[], tuple[int, int]]
"""The smallest goes first; asked whenever there is room."""


def FIRST() -> tuple[int, int]:  # noqa: N802
    """The priority of what others wait for: documents and tokens."""
    return (-1, 0)


@dataclass(slots=True)
class _Waiting:
    number: int
    priority: Priority
    called: Event = field(default_factory=Event)


class Gate:
    """The way to one host.

    Args:
        limit: requests at once.
    """

    def __init__(self, limit: int) -> None:
        self._most = self._limit = limit
        self._inside = 0
        self._closed_until = 0.0
        self._numbers = itertools.count()
        self._waiting: list[_Waiting] = []

    @asynccontextmanager
    async def enter(self, priority: Priority = FIRST) -> AsyncIterator[None]:
        """Wait for a turn, and have it for the time of the block."""
        await self._take(priority)
        try:
            yield
        finally:
            self._inside -= 1
            self._call()

    async def _take(self, priority: Priority) -> None:
        if self._inside >= self._limit or self._waiting:
            waiting = _Waiting(next(self._numbers), priority)
            self._waiting.append(waiting)
            self._call()
            try:
                await waiting.called.wait()
            except BaseException:
                if waiting in self._waiting:
                    self._waiting.remove(waiting)
                else:
                    self._inside -= 1
                    self._call()
                raise
        else:
            self._inside += 1
        try:
            while (pause := self._closed_until - current_time()) > 0:  # noqa: ASYNC110 - others may make it longer
                await sleep(pause)
        except BaseException:
            self._inside -= 1
            self._call()
            raise

    def _call(self) -> None:
        while self._waiting and self._inside < self._limit:
            best = min(self._waiting, key=lambda each: (*each.priority(), each.number))
            self._waiting.remove(best)
            self._inside += 1
            best.called.set()

    def pause(self, seconds: float) -> None:
        """The host wants to be left alone; afterwards it gets one request at a time, until one succeeds."""
        self._closed_until = max(self._closed_until, current_time() + seconds)
        self._limit = 1

    def succeeded(self) -> None:
        """A request has been answered as it should be."""
        if self._limit < self._most:
            self._limit = min(self._most, 2 * self._limit)
            self._call()
