"""The exit codes, in one table, and the one line that is printed for an error."""

from __future__ import annotations

import errno

from ..errors import (
    ComposefsError,
    FormatError,
    IntegrityError,
    InvalidNameError,
    MountError,
    NotFoundError,
    ReadOnlyRepositoryError,
    RepositoryError,
    RepositoryInUseError,
    TransportError,
)

__all__ = ["TABLE", "describe", "exit_code"]

USAGE = 2
INTERRUPTED = 130
"""128 and the number of SIGINT."""
BROKEN_PIPE = 141
"""128 and the number of SIGPIPE: what the reader of our output has chosen not to see."""

_BY_ERROR: list[tuple[type[BaseException], int, str]] = [
    (InvalidNameError, USAGE, "wrong arguments, names or digests"),
    (NotFoundError, 3, "an object, stream, image or tag is not there"),
    (IntegrityError, 4, "content is not what its digest says, or is not protected"),
    (FormatError, 5, "a layer, document, stream or image is malformed"),
    (ReadOnlyRepositoryError, 7, "the repository cannot be written"),
    (RepositoryInUseError, 8, "the repository is in use"),
    (RepositoryError, 6, "there is no repository, or not one that can be used"),
    (TransportError, 9, "content could not be fetched"),
    (MountError, 10, "the kernel refused a mount"),
]

TABLE: list[tuple[int, str]] = sorted(
    [
        (0, "success"),
        (1, "any other error, such as a full disk"),
        *((code, meaning) for _, code, meaning in _BY_ERROR),
        (INTERRUPTED, "interrupted"),
        (BROKEN_PIPE, "the reader of the output has gone"),
    ]
)


def exit_code(error: BaseException) -> int:
    """The code for *error*."""
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return 7
    return next((code for kind, code, _ in _BY_ERROR if isinstance(error, kind)), 1)


def describe(error: BaseException) -> str:
    """One line for people."""
    if isinstance(error, OSError) and not isinstance(error, ComposefsError) and error.strerror:
        what = f"{error.filename}: " if error.filename else ""
        return f"{what}{error.strerror}"
    text = str(error) or type(error).__name__
    return " ".join(text.split("\n"))
