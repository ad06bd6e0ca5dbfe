"""Steps on a Dask cluster (the extra ``dask``): equal keys run once, tasks of workers that die run again elsewhere.

Results are a few hundred bytes, and what they stand for is in the store, so that nothing is lost with the scheduler.
Credentials come from the environment of the workers, never in tasks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from .._aio.to_thread import in_thread

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["DaskEngine", "connect"]

T = TypeVar("T")

_TIMEOUT = 30.0
"""Seconds until a scheduler must have answered."""


def connect(address: str) -> Client:
    """A client of the scheduler at *address* (``tcp://HOST:PORT``), which the caller closes.  Blocks.

    Raises:
        StoreError: distributed is not installed, or no scheduler answers.
    """
    from ..errors import StoreError

    try:
        from distributed import Client
    except ImportError:
        raise StoreError(address, "distributed is not installed; install composefs-async[dask]") from None
    try:
        return Client(address, timeout=_TIMEOUT)  # type: ignore[no-untyped-call]
    except (OSError, TimeoutError, ValueError) as error:
        raise StoreError(address, f"no scheduler answers: {error}") from None


class DaskEngine:
    """An engine over a client, which stays the caller's.

    A client that is not asynchronous serves every event loop: waiting is done in worker threads.

    Args:
        resources: that each task takes of a worker, by their names.
    """

    def __init__(self, client: Client, *, resources: dict[str, int] | None = None) -> None:
        self._client, self._resources = client, resources

    def submit(self, key: str, function: Callable[..., T], /, *args: object, retries: int = 3) -> Awaitable[T]:
        """Run *function* on a worker, unless a task with that key is known."""
        future: Any = self._client.submit(
            function, *args, key=key, retries=retries, pure=True, resources=self._resources
        )
        return self._result(future)

    async def _result(self, future: Any) -> T:
        try:
            if self._client.asynchronous:
                result: T = await future
            else:
                result = await in_thread(partial(_wait, future))
            return result
        finally:
            future.release()  # the store holds the result


def _wait(future: Any) -> Any:
    return future.result()
