"""Who uses the descriptors of an open repository, and when they may be closed.

Owns counting operations, waiting for their end, and what a handle is in another process.  Does not own who may work
beside whom (`state`).

There are two lines of defence.  `Lifetime.close` waits for every operation that is counted.  And a descriptor is a
`Descriptor`, whose number the system cannot give to something else as long as anybody has it in hand: a system call
that a thread is about to make reaches the repository, or fails, but never another one.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from .._sys import locks
from ..errors import RepositoryClosedError, WrongProcessError

__all__ = ["Descriptor", "Lifetime"]

T = TypeVar("T")


class Descriptor(int):
    """The number of an open file, which is closed when nobody has this value any more."""

    __slots__ = ()

    def give_up(self) -> None:
        """Let go of the file and its lock, although somebody may still have the number in hand, such as a traceback.

        Until that is over the number stands for something of which no system call makes sense.
        """
        locks.unlock(self)
        with suppress(OSError):  # too many descriptors
            nothing = os.eventfd(0, os.EFD_CLOEXEC)
            os.dup2(nothing, self, inheritable=False)
            os.close(nothing)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self)


class Lifetime:
    """Owns the descriptors of a repository.  Safe for use from several threads; of use in one process only.

    Args:
        fd: of the repository's directory, which it takes over.
        users: guards everything here, and is notified when an operation ends.
    """

    def __init__(self, path: str, fd: int, users: threading.Condition) -> None:
        self._path, self._users = path, users
        self._fd: Descriptor | None = fd if isinstance(fd, Descriptor) else Descriptor(fd)
        self._objects: Descriptor | None = None
        self._pid = os.getpid()
        self._closing = False
        self._threads: Counter[int] = Counter()
        """Operations under way, by the thread that began them."""
        self._tasks: dict[int, list[Callable[[], object]]] = {}
        """Of event loops, by their thread: what cancels each operation under way."""
        _all.add(self)

    # -- the descriptors -----------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether nothing can be begun any more."""
        return self._closing

    def require_own_process(self) -> None:
        """Refuse before a lock is waited for that a thread of another process held when this one was forked.

        Raises:
            WrongProcessError: the repository was opened by another process.
        """
        if self._pid != os.getpid():
            raise WrongProcessError(self._path, self._pid)

    @property
    def fd(self) -> int:
        """The descriptor of the repository's directory; whoever has it in hand may use it."""
        fd = self._fd
        if fd is None or self._pid != os.getpid():
            self.require_own_process()
            raise RepositoryClosedError(self._path)
        return fd

    def objects(self, make: Callable[[], int]) -> int:
        """The descriptor of ``objects/``, which *make* opens for the first one who asks."""
        fd = self._objects
        if fd is None or self._pid != os.getpid():
            self.require_own_process()
            with self._users:
                if self._objects is None:
                    self._objects = Descriptor(make())
                fd = self._objects
        return fd

    # -- who uses them -------------------------------------------------------------------------

    def begin(self, *, nested: bool = False) -> int:
        """Count an operation of this thread; returns what `end` wants.

        Args:
            nested: it is part of one that has begun, perhaps in another thread.

        Raises:
            RepositoryClosedError, WrongProcessError
        """
        self.require_own_process()
        thread = threading.get_ident()
        with self._users:
            if self._closing and (self._fd is None or not (nested or thread in self._threads)):
                raise RepositoryClosedError(self._path)
            self._threads[thread] += 1
        return thread

    def end(self, thread: int) -> None:
        """An operation has ended, which `begin` in that thread has counted."""
        if self._pid != os.getpid():
            return
        with self._users:
            self._threads[thread] -= 1
            if not self._threads[thread]:
                del self._threads[thread]
            self._release_if_unused()

    @contextmanager
    def using(self) -> Iterator[None]:
        """`begin` and `end` around a block."""
        thread = self.begin()
        try:
            yield
        finally:
            self.end(thread)

    def steps(self, pieces: Generator[T]) -> Generator[T]:
        """Hold the descriptors during each step of a generator, which may rest for any time between two."""
        try:
            while True:
                with self.using():
                    try:
                        piece = next(pieces)
                    except StopIteration:
                        return
                yield piece
        finally:
            pieces.close()

    @contextmanager
    def task(self, cancel: Callable[[], object]) -> Iterator[None]:
        """Count an operation of an event loop that runs in this thread.

        Args:
            cancel: lets it end soon; called in the same thread.
        """
        self.require_own_process()
        thread = threading.get_ident()
        with self._users:
            if self._closing:
                raise RepositoryClosedError(self._path)
            self._tasks.setdefault(thread, []).append(cancel)
        try:
            yield
        finally:
            self._end_task(thread, cancel)

    def _end_task(self, thread: int, cancel: Callable[[], object]) -> None:
        if self._pid != os.getpid():
            return
        with self._users:
            tasks = self._tasks[thread]
            tasks.remove(cancel)
            if not tasks:
                del self._tasks[thread]
            self._release_if_unused()

    # -- the end -------------------------------------------------------------------------------

    def cancel_tasks(self) -> None:
        """Let nothing begin from now on, and cancel the operations of the event loop in this thread."""
        if self._pid != os.getpid():
            return
        with self._users:
            self._closing = True
            tasks = list(self._tasks.get(threading.get_ident(), ()))
        for cancel in tasks:
            cancel()

    @property
    def unused(self) -> bool:
        """Whether no operation is under way."""
        return not self._threads and not self._tasks

    def close(self) -> None:
        """Wait for all operations and give everything up; a second call does nothing, and so does another process.

        Called from inside an operation, or where the event loop runs that has one under way, it cannot wait: then the
        last operation that ends gives everything up.
        """
        if self._pid != os.getpid():
            return
        self.cancel_tasks()
        thread = threading.get_ident()
        with self._users:
            if thread not in self._threads and thread not in self._tasks:
                self._users.wait_for(lambda: self.unused)
            self._release_if_unused()

    def _release_if_unused(self) -> None:
        if self._closing and self.unused and self._fd is not None:
            for fd in (self._fd, self._objects):
                if fd is not None:
                    fd.give_up()
            self._fd = self._objects = None
        self._users.notify_all()

    def disown(self) -> None:
        """Close what a process that has been forked has inherited, without a lock."""
        self._fd = self._objects = None


_all: weakref.WeakSet[Lifetime] = weakref.WeakSet()


def _disown_all() -> None:
    for lifetime in list(_all):
        lifetime.disown()


os.register_at_fork(after_in_child=_disown_all)
