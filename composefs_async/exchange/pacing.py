"""How fast a store is used: a limit of bytes per second, fewer requests at once when it asks for that, and retries.

Owns waiting.  Everything here blocks, in worker threads; a cancellation of the task behind ends a wait.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from anyio import from_thread

from .backends.base import ThrottledError, TransientError

__all__ = ["Gate", "RateLimit", "elapsed", "pause", "retrying"]

T = TypeVar("T")

_ATTEMPTS = 5
_FIRST_DELAY, _LAST_DELAY = 0.1, 5.0
_MAX_RETRY_AFTER = 60.0
_SLICE = 0.1
_GROWTH = 32


def elapsed() -> float:
    """Seconds by a clock that never goes back, and that counts while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def pause(seconds: float) -> None:
    """Sleep, but not longer than a tenth of a second after the task behind this thread has been cancelled."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, _SLICE))
        check_cancelled()


def check_cancelled() -> None:
    """Raise if this is a worker thread of AnyIO whose task has been cancelled."""
    try:
        from_thread.check_cancelled()
    except RuntimeError as error:  # not a worker thread
        if type(error) is not RuntimeError:
            raise


class RateLimit:
    """Bytes per second for everything that shares it; None is no limit."""

    def __init__(self, rate: float | None) -> None:
        if rate is not None and rate <= 0:
            raise ValueError(f"a rate of {rate} bytes per second is no rate")
        self._rate = rate
        self._mutex = threading.Lock()
        self._free_at = 0.0

    def take(self, size: int) -> None:
        """Wait until *size* more bytes are allowed."""
        if self._rate is None:
            return
        with self._mutex:
            now = time.monotonic()
            begin = max(now, self._free_at)
            self._free_at = begin + size / self._rate
        pause(self._free_at - now)


class Gate:
    """Bounds requests at once: half as many after the store has asked for fewer, one more after 32 successes."""

    def __init__(self, most: int) -> None:
        self._most = self._limit = most
        self._busy = self._successes = 0
        self._changed = threading.Condition()

    @property
    def limit(self) -> int:
        """How many requests may be under way now."""
        return self._limit

    @contextmanager
    def request(self) -> Iterator[None]:
        """Wait for a turn, and learn from how the request ends."""
        with self._changed:
            while self._busy >= self._limit:
                self._changed.wait(_SLICE)
                check_cancelled()
            self._busy += 1
        try:
            yield
        except ThrottledError:
            self._learn(throttled=True)
            raise
        else:
            self._learn(throttled=False)
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify()

    def _learn(self, *, throttled: bool) -> None:
        with self._changed:
            if throttled:
                self._limit, self._successes = max(1, self._limit // 2), 0
                return
            self._successes += 1
            if self._successes >= _GROWTH and self._limit < self._most:
                self._limit, self._successes = self._limit + 1, 0


def retrying(work: Callable[[], T], *, wait: Callable[[float], object] = pause) -> T:
    """Do *work* up to five times, while it fails in ways that may pass.

    Raises:
        TransientError: it failed each time.
        anything else that *work* raises, at once.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return work()
        except TransientError as error:
            if attempt == _ATTEMPTS - 1:
                raise
            wait(delay(attempt, error))
    raise AssertionError


def delay(attempt: int, error: TransientError) -> float:
    """Seconds to wait after the *attempt* (from 0) has failed."""
    if isinstance(error, ThrottledError) and error.retry_after is not None:
        return min(error.retry_after, _MAX_RETRY_AFTER)
    return random.uniform(0.5, 1.0) * min(_LAST_DELAY, _FIRST_DELAY * float(2**attempt))
