"""What the storing functions of one open repository have done so far.

Owns the counters, which any thread may raise.  Does not own what a counter means (`composefs_async.results.Counters`).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from ..results import Counters, StoreOutcome

__all__ = ["StoreCounter"]


class StoreCounter:
    """Counts objects by their outcome, and the bytes of those that were written."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._outcomes = dict.fromkeys(StoreOutcome, 0)
        self._bytes = 0

    def add(self, sizes: Sequence[int], outcomes: Sequence[int]) -> None:
        """Count objects of *sizes* bytes; *outcomes* has a `StoreOutcome` for each, anything else is a failure."""
        counted = {outcome: sum(found == outcome for found in outcomes) for outcome in StoreOutcome}
        written = sum(size for size, outcome in zip(sizes, outcomes, strict=True) if outcome in _WRITTEN)
        with self._lock:
            for outcome, count in counted.items():
                self._outcomes[outcome] += count
            self._bytes += written

    def read(self, *, flushes: int, flush_requests: int) -> Counters:
        """Return the counters as they are now, with those of the flushes."""
        with self._lock:
            return Counters(
                objects_stored=self._outcomes[StoreOutcome.STORED],
                objects_present=self._outcomes[StoreOutcome.PRESENT],
                objects_replaced=self._outcomes[StoreOutcome.REPLACED],
                bytes_written=self._bytes,
                flushes=flushes,
                flush_requests=flush_requests,
            )


_WRITTEN = (StoreOutcome.STORED, StoreOutcome.REPLACED)
