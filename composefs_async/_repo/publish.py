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

from .._log import logger
from .._sys import files
from .._sys.beneath import opened_trusted
from ..digest import ObjectId
from ..errors import AlgorithmMismatchError, FormatError, InvalidNameError
from .state import DIRECTORY_MODE, RepoState
from .walk import MAX_DEPTH, Category, meant_name, walk_links

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

_log = logger("repository")

_NAME_MAX = 255  # linux/limits.h
_REFERENCE_MAX = 4095 - len("streams/refs/")  # linux/limits.h, PATH_MAX with its NUL


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
        InvalidNameError: it is too long or too deep, or a component is empty, too long, ``.`` or ``..``.
    """
    if reference.count("/") > MAX_DEPTH:
        raise InvalidNameError(reference, f"it has {reference.count('/')} slashes, more than {MAX_DEPTH}")
    if len(os.fsencode(reference)) > _REFERENCE_MAX:
        raise InvalidNameError(reference, f"it is longer than {_REFERENCE_MAX} bytes")
    return _check_components(reference)


def _check_components(reference: str) -> str:
    """Refuse a reference with components that cannot be, also one that another program has made, however deep."""
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
    published: list[str] = []
    with state.shared(), files.naming(state.path):
        state.require_writable()
        state.syncs.sync()
        touched: dict[str, None] = {}
        for link in links:
            published.append(link.path)
            _make_parents(state, link.path, touched)
            if replace:
                files.replace_symlink(link.target, link.path, dir_fd=state.fd)
            else:
                files.make_symlink(link.target, link.path, dir_fd=state.fd)
            touched[os.path.dirname(link.path)] = None
        for directory in touched:
            files.fsync_directory(directory or ".", dir_fd=state.fd)
    _log.info("%s: published %s", state.path, ", ".join(published))


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
    """The first-level name that a reference with this *target* means, as `walk.meant_name` says."""
    return meant_name(category, target, lambda name: target_of(state, f"{category}/{name}") is not None)


def object_of(state: RepoState, category: Category, name: str) -> ObjectId | None:
    """The object that a name, or a reference given as ``refs/…``, leads to; None if it leads nowhere."""
    if name.startswith("refs/"):
        _check_components(name)
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
    """Pairs of a reference (without *below*) and the first-level name it means (`entry_of`), sorted.

    Raises:
        InvalidNameError: *below* would leave ``refs/``.
        OSError: a directory of references cannot be read.
    """
    top = f"{category}/refs/{_check_components(below)}" if below else f"{category}/refs"
    found: list[tuple[str, str]] = []
    for entry in walk_links(state, top, opened_trusted):
        if entry.target is not None:
            found.append((entry.path.removeprefix(f"{top}/"), entry_of(state, category, entry.target)))
        elif entry.error is not None and not isinstance(entry.error, FileNotFoundError | NotADirectoryError):
            files.place(entry.error, state.path)
            raise entry.error
    yield from sorted(found)


def remove_reference(state: RepoState, category: Category, reference: str) -> bool:
    """Remove a reference durably; False if it was not there."""
    path = f"{category}/refs/{_check_components(reference)}"
    with state.shared(), files.naming(state.path):
        state.require_writable()
        try:
            if not all(_is_real_directory(state, directory) for directory in _parents(path)):
                return False
            os.unlink(path, dir_fd=state.fd)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return False
        files.fsync_directory(os.path.dirname(path), dir_fd=state.fd)
        _log.info("%s: removed %s", state.path, path)
        return True
