"""Names below ``streams/`` and ``images/``: what may be one, where it points, and how names are published.

A *link* is a symbolic link of the repository.  First-level ones point at objects, references (below ``refs/``)
at first-level ones.  `publish` is the only way in which names appear.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from .._sys import files
from .._sys.beneath import opened_trusted
from ..digest import ObjectId, check_content_digest
from ..errors import AlgorithmMismatchError, FormatError, InvalidNameError
from .state import DIRECTORY_MODE, RepoState

__all__ = [
    "Category",
    "Link",
    "check_name",
    "check_reference",
    "entry_of",
    "object_of",
    "publish",
    "references",
    "remove_reference",
    "target_of",
]

Category = Literal["streams", "images"]

_NAME_MAX = 255  # linux/limits.h
_MAX_DEPTH = 64
"""Of directories below ``refs/`` that are walked."""


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link to be published; *path* is relative to the repository."""

    path: str
    target: str

    @classmethod
    def to_object(cls, category: Category, name: str, object_id: ObjectId) -> Link:
        return cls(f"{category}/{check_name(name)}", f"../objects/{object_id.path}")

    @classmethod
    def reference(cls, category: Category, reference: str, name: str) -> Link:
        depth = 1 + check_reference(reference).count("/")
        return cls(f"{category}/refs/{reference}", "../" * depth + check_name(name))


def check_name(name: str) -> str:
    """Return *name* if it can stand directly below ``streams/`` or ``images/``.

    Raises:
        InvalidNameError: it is empty, too long, ``refs``, or would leave its directory.
    """
    _check_component(name, name)
    if "/" in name:
        raise InvalidNameError(name, "it contains a slash")
    if name == "refs":
        raise InvalidNameError(name, "this name is reserved")
    return name


def check_reference(reference: str) -> str:
    """Return *reference* if it can stand below ``refs/``; slashes make directories.

    Raises:
        InvalidNameError: a component is empty, too long, ``.`` or ``..``.
    """
    for component in reference.split("/"):
        _check_component(component, reference)
    return reference


def _check_component(component: str, name: str) -> None:
    if not component:
        raise InvalidNameError(name, "it is empty" if not name else "a component is empty")
    if component in (".", ".."):
        raise InvalidNameError(name, f"{component!r} is not a name")
    if "\0" in component:
        raise InvalidNameError(name, "it contains NUL")
    if len(os.fsencode(component)) > _NAME_MAX:
        raise InvalidNameError(name, f"a component is longer than {_NAME_MAX} bytes")


def publish(state: RepoState, links: Iterable[Link], *, replace: bool = True) -> None:
    """Flush the file system, make the links in their order, then make them durable.  Blocks.

    A crash before the return leaves some of the first of them, each complete with all it reaches.

    Raises:
        FileExistsError: a link is there, and is not to be replaced.
        NotADirectoryError: a directory that a link should stand in is a link itself, and may lead anywhere.
    """
    with state.shared(), files.naming(state.path):
        state.require_writable()
        state.syncs.sync()
        touched: dict[str, None] = {}
        for link in links:
            _make_parents(state, link.path, touched)
            if replace:
                files.replace_symlink(link.target, link.path, dir_fd=state.fd)
            else:
                files.make_symlink(link.target, link.path, dir_fd=state.fd)
            touched[os.path.dirname(link.path)] = None
        for directory in touched:
            files.fsync_directory(directory or ".", dir_fd=state.fd)


def _make_parents(state: RepoState, path: str, touched: dict[str, None]) -> None:
    for directory in _parents(path):
        if directory not in touched and not _is_real_directory(state, directory):
            files.make_directory(directory, DIRECTORY_MODE, dir_fd=state.fd)
            touched[os.path.dirname(directory)] = None


def _parents(path: str) -> Iterator[str]:
    """The directories above *path*, the outermost first."""
    parts = path.split("/")
    return ("/".join(parts[:depth]) for depth in range(1, len(parts)))


def _is_real_directory(state: RepoState, path: str) -> bool:
    """Whether it is there; anything else in its place is an error."""
    try:
        mode = os.stat(path, dir_fd=state.fd, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    return True


def target_of(state: RepoState, path: str) -> str | None:
    """What the link at *path* points at; None if there is no link."""
    directory, _, name = path.rpartition("/")
    try:
        with opened_trusted(directory, flags=os.O_PATH, dir_fd=state.fd) as fd:
            return os.readlink(name, dir_fd=fd)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.EINVAL:  # not a symbolic link
            return None
        if error.filename == name:
            error.filename = path
        files.place(error, state.path)
        raise


def entry_of(state: RepoState, category: Category, target: str) -> str:
    """The first-level name that a reference with this *target* means, whether it is there or not.

    That is the last part of the target, except for what composefs-rs wrote in January 2026: its pulls made references
    to the bare digest of a config.  They dangle, and mean the stream of that config.
    """
    name = os.path.basename(target)
    if category == "streams" and _is_digest(name) and target_of(state, f"streams/{name}") is None:
        config = f"oci-config-{name}"
        if target_of(state, f"streams/{config}") is not None:
            return config
    return name


def _is_digest(name: str) -> bool:
    try:
        check_content_digest(name)
    except FormatError:
        return False
    return True


def object_of(state: RepoState, category: Category, name: str) -> ObjectId | None:
    """The object that a name, or a reference given as ``refs/…``, leads to; None if it leads nowhere."""
    if name.startswith("refs/"):
        check_reference(name)
        target = target_of(state, f"{category}/{name}")
        if target is None:
            return None
        name = entry_of(state, category, target)
    else:
        check_name(name)
    target = target_of(state, f"{category}/{name}")
    if target is None:
        return None
    try:
        return ObjectId.from_path(target).require(state.algorithm)
    except (FormatError, AlgorithmMismatchError):
        return None


def references(state: RepoState, category: Category, below: str = "") -> Iterator[tuple[str, str]]:
    """Pairs of a reference (without *below*) and the first-level name it means (`entry_of`), sorted; no recursion.

    Raises:
        InvalidNameError: *below* would leave ``refs/``.
    """
    top = f"{category}/refs/{check_reference(below)}" if below else f"{category}/refs"
    pending = [(top, "", 0)]
    found: list[tuple[str, str]] = []
    while pending:
        directory, prefix, depth = pending.pop()
        for name in _listing(state, directory):
            path = f"{directory}/{name}"
            target = target_of(state, path)
            if target is not None:
                found.append((prefix + name, entry_of(state, category, target)))
            elif depth < _MAX_DEPTH and _is_directory(state, path):
                pending.append((path, f"{prefix}{name}/", depth + 1))
    yield from sorted(found)


def _listing(state: RepoState, directory: str) -> list[str]:
    try:
        with files.naming(state.path), opened_trusted(directory, dir_fd=state.fd) as fd:
            return os.listdir(fd)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_directory(state: RepoState, path: str) -> bool:
    try:
        with files.naming(state.path):
            return stat.S_ISDIR(os.stat(path, dir_fd=state.fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:  # removed meanwhile
        return False


def remove_reference(state: RepoState, category: Category, reference: str) -> bool:
    """Remove a reference durably; False if it was not there."""
    path = f"{category}/refs/{check_reference(reference)}"
    with state.shared(), files.naming(state.path):
        state.require_writable()
        try:
            if not all(_is_real_directory(state, directory) for directory in _parents(path)):
                return False
            os.unlink(path, dir_fd=state.fd)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return False
        files.fsync_directory(os.path.dirname(path), dir_fd=state.fd)
        return True
