"""Work that several tasks want at once is done once: the others wait for the first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from anyio import Event
from anyio.lowlevel import RunVar

__all__ = ["Holder", "fly", "holding"]

T = TypeVar("T")


class _Flight:
    def __init__(self) -> None:
        self.done: Event = Event()
        self.result: Any = None
        self.landed = False
        self.holders = 0


_flights: RunVar[dict[Hashable, _Flight]] = RunVar("composefs_async.flights")


class Holder:
    """One import: what it brought or waited for can be had by others until it ends; see `holding`."""

    def __init__(self) -> None:
        self._held: dict[Hashable, _Flight] = {}

    def hold(self, key: Hashable, flight: _Flight) -> None:
        """Keep the result of *flight* in reach of others until `release`."""
        if self._held.setdefault(key, flight) is flight:
            flight.holders += 1

    def release(self) -> None:
        """Let go of all flights that are held; the last holder of one forgets it."""
        flights = _table()
        for key, flight in self._held.items():
            flight.holders -= 1
            if not flight.holders and flights.get(key) is flight:
                del flights[key]
        self._held.clear()


@contextmanager
def holding() -> Iterator[Holder]:
    """Keep results in reach between the time they are there and the time they can be found by name.

    Without it a second import would miss a layer that the first has stored and not yet published.
    """
    holder = Holder()
    try:
        yield holder
    finally:
        holder.release()


def _table() -> dict[Hashable, _Flight]:
    flights = _flights.get(None)
    if flights is None:
        flights = {}
        _flights.set(flights)
    return flights


async def fly(key: Hashable, work: Callable[[], Awaitable[T]], holder: Holder) -> tuple[T, bool]:
    """The result of *work*, which runs once per *key* at a time on this event loop; the flag tells if it ran here.

    The result stays until the last *holder* is released.  If the task that does the work fails or is cancelled,
    it alone gets the error, and one of those who waited starts again.
    """
    flights = _table()
    while (flight := flights.get(key)) is not None:
        await flight.done.wait()
        if flight.landed:
            holder.hold(key, flight)
            return flight.result, False
    flight = flights[key] = _Flight()
    try:
        flight.result = await work()
        flight.landed = True
        holder.hold(key, flight)
        return flight.result, True
    finally:
        if not flight.landed:
            del flights[key]
        flight.done.set()
