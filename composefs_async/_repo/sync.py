"""Flushes that are asked for at the same time join one syncfs(2)."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .._sys import files

__all__ = ["SyncGroup"]


class SyncGroup:
    """Serves each request by the first syncfs that *starts* after it, so that none is answered too early.

    Args:
        descriptor: of anything on the file system; may raise.
    """

    def __init__(self, descriptor: Callable[[], int]) -> None:
        self._descriptor = descriptor
        self._changed = threading.Condition()
        self._started = 0
        self._requests = 0
        self._finished = 0
        self._running = False
        self._failure: tuple[int, OSError] | None = None

    @property
    def count(self) -> int:
        """How many flushes have been made."""
        return self._started

    @property
    def requests(self) -> int:
        """Number of calls of `sync`, each of which waited for a flush."""
        return self._requests

    def sync(self) -> None:
        """Return when everything written before the call is on the disk.  Blocks."""
        fd = self._descriptor()  # before the lock: it tells whether this is another process
        with self._changed:
            self._requests += 1
            wanted = self._started + 1
            while self._running and self._finished < wanted:
                self._changed.wait()
            leads = self._finished < wanted
            if leads:
                self._running, self._started = True, wanted
        if leads:
            self._flush(fd, wanted)
        # The kernel tells each error once: whoever waited for that flush, or an earlier one, must hear of it.
        if self._failure is not None and self._failure[0] >= wanted:
            raise self._failure[1]

    def _flush(self, fd: int, number: int) -> None:
        failure = None
        try:
            files.syncfs(fd)
        except OSError as error:
            failure = number, error
        with self._changed:
            self._running, self._finished = False, number
            self._failure = failure or self._failure
            self._changed.notify_all()
