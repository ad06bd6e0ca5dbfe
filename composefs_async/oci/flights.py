"""Work that several tasks want at once is done once: the others wait for the first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar

from anyio import Event
from anyio.lowlevel import RunVar

__all__ = ["fly"]

T = TypeVar("T")


class _Flight:
    def __init__(self) -> None:
        self.done = Event()
        self.result: Any = None
        self.landed = False


_flights: RunVar[dict[Hashable, _Flight]] = RunVar("composefs_async.flights")


async def fly(key: Hashable, work: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
    """The result of *work*, which runs once per *key* at a time on this event loop; the flag tells if it ran here.

    If the task that does the work fails or is cancelled, it alone gets the error, and one of those who waited
    starts again.
    """
    flights = _flights.get(None)
    if flights is None:
        flights = {}
        _flights.set(flights)
    while (flight := flights.get(key)) is not None:
        await flight.done.wait()
        if flight.landed:
            return flight.result, False
    flight = flights[key] = _Flight()
    try:
        flight.result = await work()
        flight.landed = True
        return flight.result, True
    finally:
        del flights[key]
        flight.done.set()
