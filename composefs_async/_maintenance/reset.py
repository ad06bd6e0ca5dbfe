"""Starting over with the objects that are there: all names go, and a new meta.json comes.

Owns removing the names and the order of it; what meta.json says is `_repo.metadata`'s, what objects allow
`_repo.evidence`'s.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from .._repo import detect, meta_file, opening
from .._repo.metadata import ErofsFormats, Metadata
from .._repo.state import RepoState
from .._sys import files, locks
from ..digest import Algorithm
from ..naming import TAGS, decode_tag, referrers_first

__all__ = ["NamesToForget", "names_to_forget", "reset_metadata"]

# References before what they lead to, so that a crash leaves none that dangles.
_CATEGORIES = ("streams", "images")
_TREES = ("streams/refs", "images/refs", "streams", "images")


@dataclass(frozen=True, slots=True)
class NamesToForget:
    """What `reset_metadata` would remove."""

    tags: tuple[str, ...]
    references: tuple[str, ...]
    """All but tags, as ``streams/NAME`` or ``images/NAME``."""
    streams: int
    images: int


def names_to_forget(path: str | os.PathLike[str]) -> NamesToForget:
    """Look at what `reset_metadata` would remove, without a lock: meta.json may be missing or damaged.

    Raises:
        OSError: *path* is no directory, or a directory in it cannot be read.
    """
    found: dict[str, list[str]] = {}
    counts = dict.fromkeys(_CATEGORIES, 0)
    with files.opened(os.fspath(path), os.O_RDONLY | os.O_DIRECTORY) as fd:
        for category in _CATEGORIES:
            refs = found[category] = []
            pending = [category] if _is_directory(fd, category) else []
            while pending:
                directory = pending.pop()
                for name in _listing(fd, directory):
                    each = f"{directory}/{name}"
                    if _is_directory(fd, each):
                        pending.append(each)
                    elif each.startswith(f"{category}/refs/"):
                        refs.append(each.removeprefix(f"{category}/refs/"))
                    else:
                        counts[category] += 1
    tags = [decode_tag(ref.removeprefix(f"{TAGS}/")) for ref in found["streams"] if _is_tag(ref)]
    others = [f"{category}/{ref}" for category in _CATEGORIES for ref in found[category] if not _is_tag(ref)]
    return NamesToForget(tuple(sorted(tags)), tuple(sorted(others)), counts["streams"], counts["images"])


def _is_tag(reference: str) -> bool:
    directory, _, name = reference.partition("/")
    return directory == TAGS and name != "" and "/" not in name


def reset_metadata(
    path: str | os.PathLike[str],
    *,
    algorithm: Algorithm,
    erofs_formats: ErofsFormats | None,
    insecure: bool = False,
    timeout: float | None = None,
    check: Callable[[], object] | None = None,
) -> RepoState:
    """Remove ``streams/`` and ``images/``, replace meta.json, keep the objects, and open.  Durable; nobody may use it.

    A crash leaves some of the names, each complete, and the old meta.json; or no name, and the old or new one.

    Raises:
        RepositoryNotFoundError: there is no such directory.
        MetadataError: its objects are named by another algorithm; nothing has been removed.
        VerityMissingError, VerityNotSupportedError: it cannot be secure; in the first case nothing has been removed.
        RepositoryInUseError: others have it open for longer than *timeout* seconds.
    """
    name = os.fspath(path)
    wanted = Metadata.new(algorithm, erofs_formats)
    operation = "resetting its metadata"
    with opening.locked_directory(name, operation, exclusive=True, timeout=timeout, check=check) as fd:
        with files.whole_paths(name):
            detect.require_fitting(fd, name, algorithm, secure=not insecure)
            for tree in _TREES:
                _remove(fd, tree)
                files.syncfs(fd)
            meta_file.write(fd, name, wanted, secure=not insecure, replace=True)
            locks.lock(fd, exclusive=False)
        return opening.load(fd, name)


def _remove(fd: int, top: str) -> None:
    """Remove *top* with all in it; links are removed and never followed, and there is no recursion."""
    category = top.partition("/")[0]
    if not _is_directory(fd, category):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(category, dir_fd=fd)
        return
    directories = [top] if _is_directory(fd, top) else []
    for directory in directories:  # which grows
        for name in sorted(_listing(fd, directory), key=lambda name: (referrers_first(name), name)):
            path = f"{directory}/{name}"
            if _is_directory(fd, path):
                directories.append(path)
            else:
                os.unlink(path, dir_fd=fd)
    for directory in reversed(directories):
        os.rmdir(directory, dir_fd=fd)


def _listing(fd: int, directory: str) -> list[str]:
    with files.opened(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd) as opened:
        return os.listdir(opened)


def _is_directory(fd: int, path: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path, dir_fd=fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False
