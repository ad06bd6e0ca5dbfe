"""Many objects, and long iterations, in few thread hops."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing
from functools import partial
from itertools import islice
from typing import TypeVar

from anyio import Lock, create_task_group
from anyio.lowlevel import checkpoint

from .._repo.batch import MAX_BYTES, MAX_ITEMS, Buffer, fill_batch, results, steady, store_batch
from .._repo.state import RepoState
from ..results import StoredObject
from ..splitstream import SplitstreamWriter
from .groups import single_error
from .hops import hop, resources
from .to_thread import in_thread

__all__ = ["iterate", "resolve_pending", "store_all"]

T = TypeVar("T")

_PIECES = 16
"""How many pieces of an iterator one hop brings."""


async def store_all(state: RepoState, contents: Iterable[Buffer] | AsyncIterable[Buffer]) -> list[StoredObject]:
    """Store *contents* in batches, as many at once as the write semaphore has tokens.

    Takes from *contents* only what a free worker begins with, so that memory stays bounded.
    """
    outcomes: list[StoredObject | Exception] = []
    limiter, turn = resources(state).batches, Lock()

    async def work(batches: AsyncIterator[list[Buffer]]) -> None:
        while True:
            async with turn:
                batch = await anext(batches, None)
                if batch is None:
                    return
                at = len(outcomes)
                outcomes.extend([_UNDONE] * len(batch))
            outcomes[at : at + len(batch)] = await in_thread(partial(store_batch, state, batch), limiter)

    with single_error():
        async with aclosing(_batches(contents)) as batches, create_task_group() as tasks:
            for _ in range(int(limiter.total_tokens)):
                tasks.start_soon(work, batches)
    return results(outcomes)


_UNDONE = RuntimeError("not stored yet")


async def _batches(contents: Iterable[Buffer] | AsyncIterable[Buffer]) -> AsyncGenerator[list[Buffer]]:
    await checkpoint()
    if isinstance(contents, AsyncIterable):
        batch: list[Buffer] = []
        size = 0
        async for content in contents:
            batch.append(steady(content))
            size += len(batch[-1])
            if len(batch) >= MAX_ITEMS or size >= MAX_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch
    else:
        iterator = iter(contents)
        while batch := fill_batch(iterator):
            yield batch


async def resolve_pending(state: RepoState, writer: SplitstreamWriter) -> None:
    """Store what the writer has gathered for the background, and tell it the ids."""
    pending = writer.take_pending()
    stored = await store_all(state, [reference.data or b"" for reference in pending])
    for reference, found in zip(pending, stored, strict=True):
        reference.resolve(found.id)


async def iterate(start: Callable[[], Iterator[T]], *, at_a_time: int = _PIECES) -> AsyncIterator[T]:
    """Run a blocking iterator in worker threads, several pieces a hop; it is closed at the end in any case."""
    iterator = await hop(start)
    try:
        while pieces := await hop(list, islice(iterator, at_a_time)):
            for piece in pieces:
                yield piece
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()
