"""Batches of files on worker threads, whose answers come back in order to the thread of the walk.

Owns the threads, how many batches may be under way, and that nothing stays open.  Does not own what a batch is, nor
what is done with it (`scan_content`, `scan_names`).

Workers do what needs no interpreter lock, all else is done on the thread of the walk: a small read or an fstat on
another thread waits for the lock ten times longer than it takes.
"""

from __future__ import annotations

import errno
import os
import resource
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

from .. import batch
from ..threads import Threads

__all__ = ["Batched", "Workers"]

_MAX_RUNNING: Final = 8
_SHARE: Final = 4
"""One part in so many of the descriptors that the process may have is the most that batches of one kind hold."""
_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE)

B = TypeVar("B")
R = TypeVar("R")


class Workers(Threads):
    """Threads for one scan; leaving the ``with`` block waits for them."""

    def __init__(self, threads: int | None = None) -> None:
        """*threads* is the number of processors unless it is given, and one without the native code."""
        # Hashing block by block in Python is slower on two threads than on one.
        threads = threads or (os.cpu_count() or 1 if batch.NATIVE else 1)
        super().__init__(threads, "composefs-scan")
        self.limit: int = min(threads + 1, _MAX_RUNNING)
        """How many batches of a kind may be under way."""
        self.users: list[Batched[Any, Any]] = []
        """All that give work to these threads."""
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._allowed = sys.maxsize if allowed == resource.RLIM_INFINITY else allowed
        # A thread opens a file and makes another; the walk opens a directory, a copy of it and a file.
        self._last = self._allowed - 2 * threads - 4

    def share(self, maximum: int) -> int:
        """Return how many descriptors one batch may hold open: *maximum*, or fewer where the process may have few."""
        return max(1, min(maximum, self._allowed // _SHARE // (self.limit + 1)))

    def opening(self, call: Callable[[], int]) -> int:
        """Call what opens a descriptor; when hardly any is left, finish batches, which closes theirs, and go on.

        Raises:
            OSError: there are too many although no batch is open, or anything else that *call* raises.
        """
        try:
            fd = call()
        except OSError as error:
            if error.errno not in _EXHAUSTED or not self.drain():
                raise
            return call()
        if fd >= self._last:  # the lowest that was free
            try:
                self.drain()
            except BaseException:
                os.close(fd)
                raise
        return fd

    def drain(self) -> bool:
        """Finish all batches but those of whom is being answered; False if there were none."""
        return sum(user.drain() for user in self.users) > 0


class Batched(ABC, Generic[B, R]):
    """Collects batches of the kind B for workers, which answer with an R; leaving the ``with`` block waits for all.

    The first error of a worker is raised when a later batch is begun, or at the end of the block.
    """

    def __init__(self, workers: Workers) -> None:
        """*workers* must be left later."""
        self.workers = workers
        workers.users.append(self)
        self._running: deque[tuple[B, Future[R]]] = deque()
        self._is_answering = False

    @abstractmethod
    def take_batch(self) -> B:
        """What has been collected, which is then forgotten; perhaps nothing."""

    @abstractmethod
    def submit(self, collected: B) -> Future[R]:
        """Give a batch to the workers."""

    @abstractmethod
    def answer(self, collected: B, result: R) -> None:
        """Take what the workers say, of one batch after the other, on the thread of the caller."""

    @abstractmethod
    def close(self, collected: B) -> None:
        """Close what is open for a batch, whose turn is over or never came."""

    def begin(self) -> None:
        """Submit what has been collected, and wait for the oldest batch if too many are under way."""
        collected = self.take_batch()
        if collected:
            self._running.append((collected, self.submit(collected)))
        if len(self._running) > self.workers.limit:
            self._finish()

    def drain(self) -> bool:
        """Finish all batches, and what has been collected; False if there was nothing, or one is being answered."""
        if self._is_answering:
            return False
        self.begin()
        found = bool(self._running)
        while self._running:
            self._finish()
        return found

    def _finish(self) -> None:
        collected, future = self._running.popleft()
        self._is_answering = True
        try:
            self.answer(collected, self._result(collected, future))
        finally:
            self._is_answering = False
            self.close(collected)

    def _result(self, collected: B, future: Future[R]) -> R:
        try:
            return future.result()
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
        self.workers.drain()
        wait([future for _, future in self._running])
        return self.submit(collected).result()  # once more, alone

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.drain()
        finally:
            for _, future in self._running:
                future.cancel()
            wait([future for _, future in self._running])
            for collected in (self.take_batch(), *(collected for collected, _ in self._running)):
                self.close(collected)
