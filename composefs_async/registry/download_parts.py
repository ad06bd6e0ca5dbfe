"""The values of a download: how far it has come, what one task brings, where the registry sends us and for how long.

Owns what is told and judged; `download` acts on it.
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias
from urllib.parse import parse_qs, urlsplit

from ..errors import TransportError
from .retrying import FailedAttemptError
from .session import Place, Session

__all__ = ["Fetched", "Observer", "Pace", "Part", "Redirect", "lifetime"]

_REDIRECT_SECONDS = 300.0
_SLOW_SECONDS, _SLOW_BYTES = 60.0, 60 << 10
_OTHERS_BYTES = 100 << 10
"""A second that come elsewhere meanwhile: then it is this connection that is slow."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """How far a download has come."""

    received: int
    """Bytes from the network, also those that were thrown away."""
    resumed: int
    total: int
    connections: int


Observer: TypeAlias = Callable[[Fetched], object]


@dataclass(slots=True, eq=False)
class Part:
    """What one task is to bring; `start` moves."""

    start: int
    end: int


@dataclass(slots=True)
class Redirect:
    """Where a registry has sent us; secret."""

    place: Place
    url: str = field(repr=False)
    until: float


def lifetime(url: str) -> float:
    """Seconds that a URL may be used, by what signed ones say about themselves."""
    query = parse_qs(urlsplit(url).query)
    expiry: float | None = None
    try:
        if "X-Amz-Expires" in query and "X-Amz-Date" in query:
            parsed = time.strptime(query["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ")
            expiry = _epoch(parsed) + float(query["X-Amz-Expires"][0])
        elif "Expires" in query:
            expiry = float(query["Expires"][0])
        elif "se" in query:
            expiry = _epoch(time.strptime(query["se"][0], "%Y-%m-%dT%H:%M:%SZ"))
    except ValueError:
        expiry = None
    left = _REDIRECT_SECONDS if expiry is None else expiry - time.time() - 30
    return min(_REDIRECT_SECONDS, left)


def _epoch(parsed: time.struct_time) -> float:
    return float(calendar.timegm(parsed))


class Pace:
    """Finds a connection that is too slow to be worth keeping; such a one is broken once."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._start, self._bytes, self._others = time.monotonic(), 0, session.received

    def check(self, size: int, connections: int) -> None:
        """Count bytes that have come.

        Args:
            connections: that the blob comes over.

        Raises:
            FailedAttemptError: this one is slow, and others are not.
        """
        self._bytes += size
        seconds = time.monotonic() - self._start
        if seconds < _SLOW_SECONDS:
            return
        slow = self._bytes < _SLOW_BYTES * seconds / _SLOW_SECONDS
        elsewhere = self._session.received - self._others - self._bytes
        alone = connections <= 1 and seconds >= 2 * _SLOW_SECONDS
        if slow and not alone and elsewhere < _OTHERS_BYTES * seconds:
            return
        self._start, self._bytes, self._others = time.monotonic(), 0, self._session.received
        if slow:
            raise FailedAttemptError(TransportError("the connection is too slow"), "the connection is too slow")
