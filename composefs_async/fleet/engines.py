"""What runs the steps of a conversion: the protocol, and worker threads of this process."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

from anyio import CapacityLimiter, Event, get_cancelled_exc_class

from .._aio.to_thread import in_thread
from ..errors import FormatError, IntegrityError, InvalidNameError, NotFoundError

__all__ = ["Engine", "ThreadEngine"]

T = TypeVar("T")

_FINAL = (FormatError, IntegrityError, NotFoundError, InvalidNameError)
"""Errors that another try would meet again."""


class Engine(Protocol):
    """Runs functions somewhere; of equal keys one at most at a time."""

    def submit(self, key: str, function: Callable[..., T], /, *args: object, retries: int = 3) -> Awaitable[T]:
        """Run *function*, which blocks; a failure is tried again up to *retries* times."""
        ...


@dataclass(slots=True, eq=False)
class _Flight:
    landed: Event = field(default_factory=Event)
    result: list[Any] = field(default_factory=list[Any])
    error: Exception | None = None


class ThreadEngine:
    """Worker threads of this process.  Belongs to the event loop that uses it first.

    Args:
        threads: that work at once; the number of processors, at most 8, if not given.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads or min(os.cpu_count() or 1, 8)
        self._limiter: CapacityLimiter | None = None
        self._flights: dict[str, _Flight] = {}

    async def submit(self, key: str, function: Callable[..., T], /, *args: object, retries: int = 3) -> T:
        """Run *function*, or wait for the call with the same key that is under way."""
        while (flight := self._flights.get(key)) is not None:
            await flight.landed.wait()
            if flight.error is not None:
                raise flight.error
            if flight.result:
                found: T = flight.result[0]
                return found
            # The one that ran it was cancelled: somebody else must.
        flight = self._flights[key] = _Flight()
        try:
            result = await self._run(partial(function, *args), retries)
            flight.result.append(result)
            return result
        except get_cancelled_exc_class():
            raise
        except Exception as error:
            flight.error = error
            raise
        finally:
            del self._flights[key]
            flight.landed.set()

    async def _run(self, work: Callable[[], T], retries: int) -> T:
        if self._limiter is None:
            self._limiter = CapacityLimiter(self._threads)
        for _ in range(retries):
            try:
                return await in_thread(work, self._limiter)
            except _FINAL:
                raise
            except Exception:
                continue
        return await in_thread(work, self._limiter)
