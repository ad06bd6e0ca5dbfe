"""The exit codes, in one table, and the one line that is printed for an error."""

from __future__ import annotations

import errno
import resource

from ..errors import (
    ComposefsError,
    FormatError,
    IntegrityError,
    InvalidNameError,
    MountError,
    NotFoundError,
    ReadOnlyRepositoryError,
    RefConflictError,
    RepositoryError,
    RepositoryInUseError,
    StoreBusyError,
    TransportError,
)

__all__ = [
    "BROKEN_PIPE",
    "COULD_NOT_CHECK",
    "INTERRUPTED",
    "PERMISSION",
    "TABLE",
    "USAGE",
    "describe",
    "exit_code",
    "single",
]

USAGE = 2
COULD_NOT_CHECK = 2
"""What ``fsck`` and ``oci fsck`` return for any error, and if something could not be read: 1 means damage."""
INTERRUPTED = 130
"""128 and the number of SIGINT, as shells report a program that died of it."""
BROKEN_PIPE = 141
"""128 and the number of SIGPIPE: what a shell reports for ``cat FILE | head -1``; nothing is printed."""

_READ_ONLY = 7
PERMISSION = 11
"""Also of ``fsck``: a script can tell a missing permission from damage and from a full disk."""
# The first class that fits counts, so the more special ones come first.
_BY_ERROR: list[tuple[type[BaseException] | tuple[type[BaseException], ...], int, str]] = [
    (
        InvalidNameError,
        USAGE,
        "wrong arguments, or a name or digest that cannot be; of fsck: any error that kept it from checking",
    ),
    (NotFoundError, 3, "an object, stream, image or tag is not there, also where an image should come from"),
    (IntegrityError, 4, "content is not what its digest says, or is not protected"),
    (FormatError, 5, "a layer, document, stream or image is malformed, or it is not clear which one is meant"),
    (ReadOnlyRepositoryError, _READ_ONLY, "the repository cannot be written"),
    (
        (RepositoryInUseError, StoreBusyError, RefConflictError),
        8,
        "the repository or store is in use, or another writer was faster",
    ),
    (RepositoryError, 6, "there is no repository, or none that can be used"),
    (TransportError, 9, "content could not be fetched"),
    (MountError, 10, "the kernel refused a mount"),
]

TABLE: list[tuple[int, str]] = sorted(
    [
        (0, "success"),
        (1, "any other error, such as a full disk; of fsck: something is damaged"),
        *((code, meaning) for _, code, meaning in _BY_ERROR),
        (PERMISSION, "a permission is missing"),
        (INTERRUPTED, "interrupted"),
        (BROKEN_PIPE, "the reader of the output has gone"),
    ]
)


def exit_code(error: BaseException) -> int:
    """The code for *error*, which is no group."""
    for kind, code, _ in _BY_ERROR:
        if isinstance(error, kind):
            return code
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, PermissionError):
        return PERMISSION
    return _READ_ONLY if isinstance(error, OSError) and error.errno == errno.EROFS else 1


def describe(error: BaseException) -> str:
    """What to tell people, in a sentence: the error, and the notes that were added to it."""
    return "; ".join([_sentence(error), *getattr(error, "__notes__", ())])


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and not isinstance(error, ComposefsError) and error.strerror:
        what = error.filename.decode(errors="replace") if isinstance(error.filename, bytes) else error.filename
        reason = error.strerror
        if error.errno == errno.EMFILE:
            reason += f" (the limit is {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}; ulimit -n raises it)"
        # A call with a descriptor leaves its number there.
        return f"{what}: {reason}" if what and isinstance(what, str) else reason
    if isinstance(error, ComposefsError):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def single(error: BaseException) -> tuple[BaseException, int]:
    """The first error that is no group, and how many more there are beside it."""
    found: list[BaseException] = []
    pending = [error]
    while pending:
        current = pending.pop()
        if isinstance(current, BaseExceptionGroup):
            pending.extend(reversed(current.exceptions))
        else:
            found.append(current)
    return found[0], len(found) - 1
