"""One check under way: what it has found, how fast it may read, and the threads that work for it.

Owns the findings as they come, the pace, stopping, and the distribution of work.  Does not own any check.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from typing import Any, TypeVar

from ..._repo.state import RepoState
from ..._repo.threads import Threads
from ..._sys.errnos import is_unread
from ...findings import Finding
from ...progress import CheckProgress, ProgressCallback
from ..gc.idset import IdSet
from .object_reader import BUFFER_SIZE, NATIVE

__all__ = ["Run", "Stopped", "file_type", "os_text", "raise_ours"]

T = TypeVar("T")
R = TypeVar("R")

_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors that say something about this process or machine, not about the repository."""
_POLL = 0.1  # seconds between two looks at whether to stop
_AHEAD = 128
"""Pieces of work for each thread that wait or are done, so that one that takes long does not hold up the others."""
_TYPES = {
    stat.S_IFREG: "RegularFile",
    stat.S_IFDIR: "Directory",
    stat.S_IFLNK: "Symlink",
    stat.S_IFIFO: "Fifo",
    stat.S_IFSOCK: "Socket",
    stat.S_IFCHR: "CharacterDevice",
    stat.S_IFBLK: "BlockDevice",
}


class Stopped(Exception):  # noqa: N818
    """Raised in the threads of a check that is to end early."""


def os_text(error: OSError | int) -> str:
    """An error of the system as composefs-rs prints it."""
    number = error if isinstance(error, int) else error.errno or 0
    return f"{os.strerror(number)} (os error {number})"


def raise_ours(error: OSError | int, path: str) -> None:
    """Raise what would make a finding of everything that is looked at."""
    number = error if isinstance(error, int) else error.errno or 0
    if number in _OURS:
        raise OSError(number, os.strerror(number), path)


def file_type(mode: int) -> str:
    """As composefs-rs calls it."""
    return _TYPES.get(stat.S_IFMT(mode), "Unknown")


class Run:
    """What the parts of a check share.  Safe for use from several threads.

    Args:
        limit: bytes a second that are read at most.
        check: called by the thread that runs the check, ten times a second; what it raises ends the check.
    """

    def __init__(
        self,
        state: RepoState,
        *,
        metadata_only: bool = False,
        limit: int | None = None,
        progress: ProgressCallback | None = None,
        check: Callable[[], object] | None = None,
    ) -> None:
        self.state = state
        self.metadata_only = metadata_only
        self.findings: list[Finding] = []
        self._looked_at = IdSet(state.algorithm.digest_size)
        self._read = 0
        self._limit, self._begin = limit, time.monotonic()
        self._progress, self._check = progress, check
        self._stop = threading.Event()
        self._mutex = threading.Lock()
        self._buffers: list[bytearray] = []
        self.workers = (os.cpu_count() or 1) if NATIVE else 1  # in Python threads only take the GIL from each other

    def found(self, kind: str, path: str, **fields: Any) -> None:
        """Add a finding; that it comes twice does not matter."""
        self.findings.append(Finding(kind, path, **fields))

    def failed(self, kind: str, path: str, error: OSError | int, **fields: Any) -> None:
        """Add a finding of an error of the system, which may only say that something could not be read."""
        self.found(kind, path, unread=self.unread(error), **fields)

    def unread(self, error: OSError | int) -> bool:
        """Whether *error* only says that something could not be read; 0 is none.

        That goes for files whose blocks fs-verity refuses, too: a disk that fails for a moment answers the same.
        """
        return error != 0 and is_unread(error)

    def looked(self, ids: bytes) -> None:
        """Note objects that have been compared with their names; ids stand one after the other."""
        with self._mutex:
            self._looked_at.add(ids)

    def looked_at(self, shard: int) -> bytes:
        """The objects of one directory that have been compared with their names, sorted."""
        with self._mutex:
            return self._looked_at.shard(shard)

    def pace(self, size: int) -> None:
        """Count what was read, and wait until it is within the limit.

        Raises:
            Stopped: the check ends early.
        """
        with self._mutex:
            self._read += size
            due = self._begin + self._read / self._limit if self._limit else 0.0
        if self._stop.wait(due - time.monotonic()) if due > time.monotonic() else self._stop.is_set():
            raise Stopped

    @contextmanager
    def buffer(self) -> Iterator[bytearray]:
        """One of the buffers, of which there are as many as threads."""
        try:
            buffer = self._buffers.pop()
        except IndexError:
            buffer = bytearray(BUFFER_SIZE)
        try:
            yield buffer
        finally:
            self._buffers.append(buffer)

    def each(self, stage: str, work: Callable[[T], R], items: Iterable[T], total: int, skipped: int = 0) -> Iterator[R]:
        """Results of *work* in the order of *items*, as soon as they are there.

        Whatever ends the iteration early, an interruption included, ends the threads first.
        """
        with Threads(self.workers) as pool:
            waiting: deque[Future[R]] = deque()
            done = skipped
            try:
                for item in items:
                    waiting.append(pool.submit(work, item))
                    if len(waiting) >= self.workers * _AHEAD:
                        yield self._result(waiting.popleft())
                        done += 1
                        self._report(stage, done, total)
                while waiting:
                    yield self._result(waiting.popleft())
                    done += 1
                    self._report(stage, done, total)
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _result(self, future: Future[R]) -> R:
        while True:
            if self._check:
                self._check()
            try:
                return future.result(_POLL)
            except FutureTimeoutError:
                if future.done():  # the work itself has timed out
                    raise

    def _report(self, stage: str, done: int, total: int) -> None:
        if self._progress:
            self._progress(CheckProgress(stage, done, total, self._read))
