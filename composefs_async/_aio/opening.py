"""`Opening`: a repository about to be opened, which can be awaited or entered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, TypeVar

__all__ = ["Opening"]

R = TypeVar("R", bound=AbstractAsyncContextManager[Any, bool | None])


class Opening(Generic[R]):
    """A repository that is opened when this is awaited, or entered by ``async with``, which also closes it.

    ``repo = await Repository.open_path_async(path)`` leaves closing to the caller;
    ``async with Repository.open_path_async(path) as repo:`` closes at the end of the block.  Nothing happens before
    either, and each opens once more.
    """

    def __init__(self, open_it: Callable[[], Awaitable[R]]) -> None:
        self._open = open_it
        self._opened: list[R] = []

    def __await__(self) -> Generator[Any, Any, R]:
        return self._open().__await__()

    async def __aenter__(self) -> R:
        repository: R = await self._open()
        await repository.__aenter__()
        self._opened.append(repository)
        return repository

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._opened.pop().__aexit__(kind, error, trace)
