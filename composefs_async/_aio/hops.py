"""Blocking work in worker threads, and what a repository keeps per event loop."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from anyio import CapacityLimiter, Event, from_thread
from anyio.lowlevel import RunVar

from .._repo.batch import MAX_BYTES, MAX_ITEMS, NATIVE, Buffer, store_batch
from .._repo.state import RepoState
from ..results import StoredObject
from .coalesce import Coalescer
from .to_thread import in_checked_thread, in_thread

__all__ = ["LoopResources", "checked_hop", "hop", "in_loop", "opening_hop", "resources", "using", "write_hop"]

P = ParamSpec("P")
T = TypeVar("T")
A = TypeVar("A")


class LoopResources:
    """What one repository uses on one event loop: an AnyIO limiter belongs to the loop that it was first used on."""

    def __init__(self, state: RepoState) -> None:
        self.write_semaphore = CapacityLimiter(os.cpu_count() or 4)
        # Threads that store in pure Python only take the GIL from each other.
        self.batches = self.write_semaphore if NATIVE else CapacityLimiter(1)
        self.running: set[Event] = set()
        """Operations under way, each with what it sets at its end."""
        # And from those who wake up because their batch is done: fewer, larger ones.
        items = MAX_ITEMS if NATIVE else 4 * MAX_ITEMS
        self.coalescer: Coalescer[Buffer, StoredObject] = Coalescer(
            partial(store_batch, state), self.batches, max_items=items, max_weight=MAX_BYTES, weigh=len
        )


_resources: RunVar[WeakKeyDictionary[RepoState, LoopResources]] = RunVar("composefs_async.resources")


def resources(state: RepoState) -> LoopResources:
    """The resources of *state* on the running event loop; made at the first call."""
    table = _resources.get(None)
    if table is None:
        table = WeakKeyDictionary()
        _resources.set(table)
    found = table.get(state)
    if found is None:
        found = table[state] = LoopResources(state)
    return found


async def hop(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run blocking *function* in a worker thread; a cancellation waits for its end."""
    return await in_thread(partial(function, *args, **kwargs))


async def opening_hop(
    discard: Callable[[T], object], function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
) -> T:
    """Call what opens something in a worker thread: *discard* gets that if the caller is cancelled before it comes."""
    return await in_thread(partial(function, *args, **kwargs), discard=discard)


async def checked_hop(
    function: Callable[..., T], /, *args: object, discard: Callable[[T], object] | None = None, **kwargs: object
) -> T:
    """Call a function that may wait long in a worker thread; its argument ``check`` lets a cancellation end the wait.

    Args:
        discard: gets a result that came when the caller had been cancelled.
    """
    return await in_checked_thread(lambda check: function(*args, check=check, **kwargs), discard=discard)


def in_loop(callback: Callable[[A], object] | None) -> Callable[[A], object] | None:
    """*callback* in the form that a worker thread of AnyIO may call: it runs in the thread of the event loop."""
    return None if callback is None else lambda value: from_thread.run_sync(callback, value)


async def write_hop(state: RepoState, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a worker thread under one token of the repository's write semaphore."""
    return await in_thread(partial(function, *args, **kwargs), resources(state).write_semaphore)


@asynccontextmanager
async def using(state: RepoState) -> AsyncIterator[None]:
    """Keep exclusive operations of this handle away for the time of the block; waits while there is one."""
    with ExitStack() as stack:
        await hop(stack.enter_context, state.shared())
        yield
