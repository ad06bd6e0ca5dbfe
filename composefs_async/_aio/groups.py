"""Task groups whose callers want the one error that mattered, not a group around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["single_error"]


@contextmanager
def single_error() -> Iterator[None]:
    """Let the first error of a task group out instead of its ExceptionGroup.

    The first error cancels the other tasks; what they raise while they are cancelled is only its echo.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from error.__cause__
