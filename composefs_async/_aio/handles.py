"""Work that was started and is awaited later, owned by the ``async with`` block of the repository."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from anyio import Event, create_task_group
from anyio.abc import TaskGroup

__all__ = ["Handle", "HandleGroup"]

T = TypeVar("T")


class Handle(Generic[T]):
    """The result of work in the background; await it once or many times.

    Awaiting raises the error of the work.  An error that nobody awaited leaves the block that owns the handle.
    """

    __slots__ = ("_done", "_error", "_result", "_seen")

    def __init__(self) -> None:
        self._done = Event()
        self._result: T | None = None
        self._error: BaseException | None = None
        self._seen = False

    def __await__(self) -> Generator[object, None, T]:
        return self._wait().__await__()

    async def _wait(self) -> T:
        await self._done.wait()
        if self._error is not None:
            self._seen = True
            raise self._error
        return self._result  # type: ignore[return-value]  # set whenever there is no error

    @property
    def done(self) -> bool:
        """True once the work has ended, with a result or an error."""
        return self._done.is_set()

    async def _run(self, work: Callable[[], Awaitable[T]]) -> None:
        try:
            self._result = await work()
        except Exception as error:
            self._error = error
        except BaseException:  # cancelled: whoever awaits is too, or learns it here
            self._error, self._seen = WorkCancelledError(), True
            raise
        finally:
            self._done.set()


class WorkCancelledError(RuntimeError):
    """The block that owned the work was cancelled before the work was done."""

    def __init__(self) -> None:
        super().__init__("the block that owned this work was cancelled")

    def __reduce__(self) -> tuple[type[WorkCancelledError], tuple[()], dict[str, object]]:
        return type(self), (), self.__dict__.copy()


class HandleGroup:
    """Starts work and waits for it at the end; a failed piece does not cancel its siblings."""

    _tasks: TaskGroup

    def __init__(self) -> None:
        self._failed: list[Handle[object]] = []
        self._waiting: dict[int, Callable[[], None]] = {}
        self._spawned = 0

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[HandleGroup]:
        """Waits at its end for everything that was spawned; an error of the block cancels what has not begun.

        Raises:
            ExceptionGroup: the errors that nobody awaited, if the block itself raised none.
        """
        failure: BaseException | None = None
        group = cls()
        try:
            async with create_task_group() as group._tasks:
                try:
                    yield group
                except (Exception, KeyboardInterrupt, SystemExit) as error:
                    # Out of the task group, so that it is not wrapped into a group: sys.exit keeps its code.
                    failure = error
                    group._tasks.cancel_scope.cancel()
        finally:
            group._abandon()
        if failure is not None:
            raise failure
        unseen = [handle._error for handle in group._failed if not handle._seen]
        if unseen:
            raise BaseExceptionGroup("work that failed and was never awaited", unseen)  # type: ignore[type-var]

    def spawn(
        self,
        work: Callable[[], T],
        run: Callable[[Callable[[], T]], Awaitable[T]],
        abandon: Callable[[], None],
    ) -> Handle[T]:
        """Start blocking *work* through *run*, which takes it to a thread.

        Args:
            abandon: gives up what *work* was to own; called at the end of the block if it never began.
        """
        handle: Handle[T] = Handle()
        number = self._spawned
        self._spawned += 1
        self._waiting[number] = abandon

        def begin() -> T:
            del self._waiting[number]
            return work()

        async def task() -> None:
            await handle._run(lambda: run(begin))
            if handle._error is not None:
                self._failed.append(handle)  # type: ignore[arg-type]

        self._tasks.start_soon(task)
        return handle

    def _abandon(self) -> None:
        # A task that is cancelled before its first step runs no code of ours, so this cannot be done there.
        while self._waiting:
            self._waiting.popitem()[1]()
