"""Operations as `close` sees them: it lets none begin, cancels those of its event loop, and waits for all.

Owns the decorators that count operations, and closing from inside an event loop.  Does not own the counting
(`composefs_async._repo.lifetime`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from inspect import getattr_static, iscoroutinefunction, unwrap
from types import FunctionType
from typing import Any, TypeVar, cast

from anyio import CancelScope, Event, get_cancelled_exc_class

from .._repo.state import RepoState
from ..errors import RepositoryClosedError
from .hops import hop, resources

__all__ = ["aclose", "async_operation", "counted", "operation"]

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type[Any])

_ENDS = ("close", "aclose")
_OWNERS = ("finalize_object_tmpfile", "finalize_object_tmpfile_async", "spawn_finalize_object_tmpfile")
"""They close what they are given, also if the repository is closed; what they do to it is counted further down."""


def operation(function: F) -> F:
    """Count the calls of a blocking function, whose first argument is the repository, until they return.

    Raises:
        RepositoryClosedError, WrongProcessError: instead of a call.
    """
    state_in = _finder(function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        lifetime = state_in(args, kwargs).lifetime
        thread = lifetime.begin()
        try:
            return function(*args, **kwargs)
        finally:
            lifetime.end(thread)

    return cast("F", call)


def async_operation(function: F) -> F:
    """`operation` for an async function; one that is cancelled by `aclose` raises RepositoryClosedError."""
    state_in = _finder(function)

    @wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        state = state_in(args, kwargs)
        with CancelScope() as scope, state.lifetime.task(scope.cancel):
            running, ended = resources(state).running, Event()
            running.add(ended)
            try:
                return await function(*args, **kwargs)
            finally:
                running.discard(ended)
                ended.set()
        raise RepositoryClosedError(state.path)

    return cast("F", call)


def _finder(function: Callable[..., Any]) -> Callable[[tuple[Any, ...], dict[str, Any]], RepoState]:
    """What finds the repository among the arguments of a call."""
    name = unwrap(function).__code__.co_varnames[0]

    def find(args: tuple[Any, ...], kwargs: dict[str, Any]) -> RepoState:
        if not args and name not in kwargs:
            raise TypeError(f"{function.__qualname__}() missing 1 required positional argument: {name!r}")
        state: RepoState = (args[0] if args else kwargs[name])._state
        return state

    return find


def counted(cls: C) -> C:
    """Make all public methods of a class operations: that of an event loop if it is async."""
    for name in dir(cls):
        function = getattr_static(cls, name)
        if isinstance(function, FunctionType) and not name.startswith("_") and name not in (*_ENDS, *_OWNERS):
            setattr(cls, name, (async_operation if iscoroutinefunction(function) else operation)(function))
    return cls


async def aclose(state: RepoState) -> None:
    """Let nothing begin, cancel what runs on this event loop, and close the repository when all has ended.

    Whoever is cancelled here waits for that, too.  In a process that has been forked it does nothing.
    """
    running = resources(state).running
    await _to_the_end(lambda: _cancel(state, running))
    if state.lifetime.unused:
        state.close()
    else:
        await _to_the_end(lambda: hop(state.close))


async def _cancel(state: RepoState, running: set[Event]) -> None:
    state.lifetime.cancel_tasks()
    for ended in list(running):
        await ended.wait()


async def _to_the_end(wait: Callable[[], Awaitable[object]]) -> None:
    """Wait, however often this task is cancelled; the cancellation is raised afterwards."""
    cancelled: BaseException | None = None
    while True:
        with CancelScope(shield=True):
            try:
                await wait()
            except get_cancelled_exc_class() as error:  # asyncio's Task.cancel, which no shield keeps away
                cancelled = error
                continue
        break
    if cancelled is not None:
        raise cancelled
