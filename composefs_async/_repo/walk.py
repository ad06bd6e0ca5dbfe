"""The one walk over the names of a repository: links directly below ``streams/`` and ``images/``, and references.

Owns which directories hold references, how deep they may lie, and which name of the first level a reference means.
Does not own what may be a name, nor making and removing links (`publish`).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, Protocol

from .._sys.beneath import opened_beneath
from ..digest import check_content_digest
from ..errors import FormatError
from .state import RepoState

__all__ = ["MAX_DEPTH", "Category", "Entry", "Opened", "meant_name", "walk_links"]

Category = Literal["streams", "images"]

MAX_DEPTH: Final = 256
"""Directories that a reference may lie in below ``refs/``, which are the slashes in it."""


class Opened(Protocol):
    """How the walk opens a directory for the time of a block; its path is relative to *dir_fd*."""

    def __call__(self, path: str, *, dir_fd: int) -> AbstractContextManager[int]: ...


_strictly: Final[Opened] = partial(opened_beneath, flags=os.O_RDONLY | os.O_DIRECTORY)


@dataclass(frozen=True, slots=True)
class Entry:
    """What the walk has come upon: a link, or what should be none."""

    path: str
    """Relative to the repository."""
    target: str | None = None
    """Target of a link; None for everything else."""
    mode: int = 0
    """Mode of what is no link: type and permissions, as in ``st_mode``; 0 if there is an error."""
    error: OSError | None = None
    """Why a directory could not be read (`in_directory`), or an entry could not be looked at."""
    in_directory: bool = False


def walk_links(state: RepoState, top: str, opened: Opened = _strictly) -> Iterator[Entry]:
    """Everything below the directory *top* but the directories that are walked themselves, sorted within each; blocks.

    Walked are *top*, ``refs`` in a directory of the first level, and what lies below ``refs`` up to `MAX_DEPTH`.  What
    is deeper is an entry, and so is a directory that cannot be read, also one that is missing.

    Args:
        top: relative to the repository.
    """
    pending = [top]
    while pending:
        directory = pending.pop()
        try:
            with opened(directory, dir_fd=state.fd) as fd:
                found = [_look(fd, directory, name) for name in sorted(os.listdir(fd))]
        except OSError as error:
            yield Entry(directory, error=error, in_directory=True)
            continue
        for entry in found:
            if entry is not None and stat.S_ISDIR(entry.mode) and _holds_references(entry.path):
                pending.append(entry.path)
            elif entry is not None:
                yield entry


def _holds_references(path: str) -> bool:
    """Whether the directory *path* is ``refs``, or below it and not too deep."""
    parts = path.split("/")
    return len(parts) > 1 and parts[1] == "refs" and len(parts) <= 2 + MAX_DEPTH


def _look(fd: int, directory: str, name: str) -> Entry | None:
    """What *name* in the open *directory* is; None if it has been removed meanwhile."""
    path = f"{directory}/{name}"
    try:
        return Entry(path, os.readlink(name, dir_fd=fd))
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.EINVAL:
            return Entry(path, error=error)
    try:
        return Entry(path, mode=os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Entry(path, error=error)


def meant_name(category: Category, target: str, is_there: Callable[[str], bool]) -> str:
    """The name of the first level that a reference with this *target* means, whether it is there or not.

    That is the last part of the target, except for what composefs-rs wrote in January 2026: its pulls made references
    to the bare digest of a config.  They dangle, and mean the stream of that config.

    Args:
        is_there: whether there is a link of that name in the category.
    """
    name = os.path.basename(target)
    if category == "streams" and _is_digest(name) and not is_there(name):
        config = f"oci-config-{name}"
        if is_there(config):
            return config
    return name


def _is_digest(name: str) -> bool:
    try:
        check_content_digest(name)
    except FormatError:
        return False
    return True
