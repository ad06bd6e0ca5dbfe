"""What is worth another try, and when; no I/O.

Owns the classification of failures, the delays between attempts, and the budget of attempts, which begins anew
whenever something has been achieved: a line that breaks but moves ahead never fails, a dead one fails soon.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from email.utils import parsedate_to_datetime

from ..errors import TransportError

__all__ = ["PROGRESS", "RETRYABLE_CODES", "RETRYABLE_STATUSES", "Budget", "FailedAttemptError", "retry_after"]

RETRYABLE_STATUSES = frozenset({408, 425, 429, 499, 500, 502, 503, 504, *range(520, 525), 598, 599})
RETRYABLE_CODES = frozenset({"TOOMANYREQUESTS", "UNAVAILABLE"})
PROGRESS = 64 << 10
"""New bytes that renew all attempts."""
_LONGEST_DELAY = 30.0
_LONGEST_WAIT = 120.0
"""Seconds that a server may ask to be left alone; for more it is an error at once."""


class FailedAttemptError(Exception):
    """One attempt has failed.

    Args:
        error: what to raise when there is no other.
        reason: in a few words.
        again: another attempt may help.
        after: seconds that the server wants to be left alone, if it said so.
        unconnected: nothing has been sent: no connection, or no TLS.
    """

    def __init__(
        self,
        error: TransportError,
        reason: str,
        *,
        again: bool = True,
        after: float | None = None,
        unconnected: bool = False,
    ) -> None:
        super().__init__(reason)
        self.error: TransportError = error
        self.reason: str = reason
        self.again: bool = again
        self.after: float | None = after
        self.unconnected: bool = unconnected


class Budget:
    """The attempts at one thing.

    Args:
        retries: how many may follow the first.
        base: seconds; before attempt k (from 1) at most ``base * 2**k`` are waited, and 30 at most.
        uniform: draws a number between two; the delays of many clients must not fall together.
    """

    def __init__(self, retries: int, base: float, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._retries, self._base, self._uniform = retries, base, uniform
        self.failures: int = 0
        """Since the last progress."""

    def renew(self) -> None:
        """Something has been achieved."""
        self.failures = 0

    def next_delay(self, failure: FailedAttemptError) -> float:
        """Seconds to wait before the next attempt.

        Raises:
            TransportError: there is none; the failure's error, which says so.
        """
        if not failure.again or self.failures >= self._retries:
            raise failure.error from failure.__cause__
        if failure.after is not None and failure.after > _LONGEST_WAIT:
            raise failure.error from failure.__cause__
        self.failures += 1
        delay = self._uniform(0, min(_LONGEST_DELAY, self._base * 2**self.failures))
        return delay + (failure.after or 0.0)


def retry_after(text: str | None, now: float) -> float | None:
    """Seconds that a ``Retry-After`` header means: a number, or a date; None for anything else.

    Args:
        now: seconds since the epoch.
    """
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
