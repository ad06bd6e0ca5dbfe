"""Many small awaits in few thread hops.

No background task exists.  The first caller to join an empty batch leads it: it waits for a token of the limiter
and then takes all that has gathered to one worker thread.  Under load batches grow by themselves; a lone
call pays one hop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

from anyio import CapacityLimiter, Event
from anyio.lowlevel import checkpoint

from .to_thread import in_thread

__all__ = ["Coalescer"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Batch(Generic[Item, Result]):
    __slots__ = ("done", "items", "outcomes", "weight")

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.weight = 0
        self.outcomes: Sequence[Result | Exception] | None = None
        self.done = Event()

    def run(self, function: Callable[[Sequence[Item]], Sequence[Result | Exception]]) -> None:
        """Serve the followers in the worker thread, also if the leader is cancelled meanwhile."""
        self.outcomes = function(self.items)


class Coalescer(Generic[Item, Result]):
    """Groups concurrent `submit` calls into calls of *run*.

    Args:
        run: takes a batch to its end in a worker thread and gives one outcome per item, in order.
        limiter: whose tokens bound how many batches run at once.
        max_items, max_weight: a batch that has reached either takes no more; *weigh* tells an item's weight, or
            raises what is wrong with it.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result | Exception]],
        limiter: CapacityLimiter,
        *,
        max_items: int,
        max_weight: int,
        weigh: Callable[[Item], int],
    ) -> None:
        self._run = run
        self._limiter = limiter
        self._max_items = max_items
        self._max_weight = max_weight
        self._weigh = weigh
        self._open: _Batch[Item, Result] | None = None

    async def submit(self, item: Item) -> Result:
        """Return the outcome of *item*, or raise it.

        A caller that is cancelled while it leads hands the batch over to the others in it, unless the thread
        is at work already: then it waits for that, and the others are served.
        """
        weight = self._weigh(item)  # what is wrong with an item is its caller's, and nobody else's
        while True:
            batch, index, leads = self._join(item, weight)
            if leads:
                await self._lead(batch)
            else:
                await batch.done.wait()
            if batch.outcomes is not None:
                outcome = batch.outcomes[index]
                if isinstance(outcome, Exception):
                    raise outcome
                return outcome
            # The leader was cancelled before its hop began: join another batch.

    def _join(self, item: Item, weight: int) -> tuple[_Batch[Item, Result], int, bool]:
        batch = self._open
        leads = batch is None
        if batch is None:
            batch = self._open = _Batch()
        batch.items.append(item)
        batch.weight += weight
        if len(batch.items) >= self._max_items or batch.weight >= self._max_weight:
            self._open = None
        return batch, len(batch.items) - 1, leads

    async def _lead(self, batch: _Batch[Item, Result]) -> None:
        try:
            await checkpoint()  # siblings that are ready to run can join
            async with self._limiter:
                self._close(batch)
                await in_thread(partial(batch.run, self._run))
        except Exception as error:  # the batch failed as a whole
            batch.outcomes = [error] * len(batch.items)
        finally:
            self._close(batch)
            batch.done.set()

    def _close(self, batch: _Batch[Item, Result]) -> None:
        if self._open is batch:
            self._open = None
