"""A pool of worker threads that works with those it can get.

Owns what a limit on threads means: fewer of them, and an error of the system only where there is none at all.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

__all__ = ["Threads", "starting_threads"]


@contextmanager
def starting_threads() -> Iterator[None]:
    """Let the bare RuntimeError of Python for a thread that cannot be started be the OSError that it was, EAGAIN."""
    try:
        yield
    except RuntimeError as error:
        if "start new thread" not in str(error):
            raise
        raise OSError(errno.EAGAIN, "No thread can be started: a limit on processes or memory is reached") from error


class Threads(ThreadPoolExecutor):
    """A `ThreadPoolExecutor`; a thread that cannot be started is an OSError of `submit` only if there is no other."""

    def _adjust_thread_count(self) -> None:
        try:
            with starting_threads():
                super()._adjust_thread_count()
        except OSError:
            if not self._threads:
                raise
