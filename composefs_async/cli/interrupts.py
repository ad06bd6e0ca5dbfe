"""^C on the command line: the first ends the work in order, a second one ends the process.

A read from a FIFO, a dead server or ``/proc`` cannot be called off, and an orderly end would wait for it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["plain", "second_ends_all"]


@contextmanager
def second_ends_all() -> Iterator[None]:
    """Let the first interrupt do what it does now, and another end the process, also after the block.

    Call it in the main thread; anywhere else it does nothing.
    """
    before = signal.getsignal(signal.SIGINT)

    def first(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, _end)
        if callable(before):
            before(number, frame)

    try:
        if callable(before) and before is not _end:
            signal.signal(signal.SIGINT, first)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is first:
            signal.signal(signal.SIGINT, before)


@contextmanager
def plain() -> Iterator[None]:
    """Handle interrupts as Python does while an event loop starts, which uses `second_ends_all` inside."""
    before = signal.getsignal(signal.SIGINT)
    if getattr(before, "__module__", "") != __name__ or before is _end:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is not _end:
            signal.signal(signal.SIGINT, before)


def _end(number: int, frame: FrameType | None) -> None:
    """As if nobody had minded the signal: the shell hears of it."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
