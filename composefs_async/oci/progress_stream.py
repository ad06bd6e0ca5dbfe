"""Progress events as an async iterator.

Owns the hand-over from a callback to ``async for``.  The events are in `composefs_async.progress`.
"""

from __future__ import annotations

from collections import OrderedDict
from types import TracebackType
from typing import Self

import anyio
import anyio.lowlevel

from ..progress import ProgressEvent, is_intermediate

__all__ = ["ProgressStream"]


class ProgressStream:
    """A `ProgressCallback` that one task can iterate over while another works.

    For example::

        progress = ProgressStream()

        async def work() -> None:
            with progress:  # ends the iteration, also after a failure
                await pull(..., progress=progress)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            async for event in progress:
                show(event)

    The worker never waits for a slow reader: a newer intermediate event replaces an unread older one of the
    same kind and layer, all others are kept.  So what is unread is bounded by a few events for each layer.
    Call it in the event loop's thread only.
    """

    def __init__(self) -> None:
        self._unread: OrderedDict[object, ProgressEvent] = OrderedDict()
        self._arrived = anyio.Event()
        self._closed = False

    def __call__(self, event: ProgressEvent) -> None:
        """Add an event.  After `close` it is dropped."""
        if self._closed:
            return
        key: object = object()
        if is_intermediate(event):
            key = (type(event), getattr(event, "diff_id", None) or getattr(event, "digest", None))
            self._unread.pop(key, None)  # the newer one stands at the end, never before what it follows
        self._unread[key] = event
        self._arrived.set()

    def close(self) -> None:
        """End the iteration once all that is unread has been read.  May be called more than once."""
        self._closed = True
        self._arrived.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ProgressEvent:
        await anyio.lowlevel.checkpoint()
        while not self._unread:
            if self._closed:
                raise StopAsyncIteration
            self._arrived = anyio.Event()
            await self._arrived.wait()
        return self._unread.popitem(last=False)[1]
