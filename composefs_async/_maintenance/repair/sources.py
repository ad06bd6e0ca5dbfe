"""Where a repair takes content from: other repositories, and directories of files.

A source only offers files; whoever takes them compares them with the ids.  So nothing here has to be trusted.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Protocol

from ..._repo import opening, publish
from ..._repo.state import RepoState
from ..._sys.beneath import open_beneath
from ...digest import Algorithm, ObjectId
from ...errors import AlgorithmMismatchError
from .quarantine import digest_descriptors, quarantines

__all__ = ["DirectorySource", "ObjectSource", "QuarantineSource", "RepositorySource", "open_source"]

_BATCH = 128  # files that are open at a time
_FLAGS = os.O_RDONLY | os.O_NONBLOCK  # opening a pipe would wait


class ObjectSource(Protocol):
    """Something that may have objects."""

    name: str

    def candidates(self, wanted: Mapping[ObjectId, int | None]) -> Iterator[tuple[ObjectId, int]]:
        """Open files that may be objects of *wanted*; the receiver closes the descriptors.

        Args:
            wanted: sizes in bytes, None where that is not known.
        """
        ...

    def close(self) -> None:
        """Release what it holds; a second call does nothing."""
        ...


def open_source(path: str | os.PathLike[str], algorithm: Algorithm) -> RepositorySource | DirectorySource:
    """A repository if there is a meta.json in it, otherwise a directory of files; the caller closes it.

    Raises:
        AlgorithmMismatchError: a repository of the other algorithm, whose objects have other ids.
        The errors of opening a repository.
    """
    name = os.fspath(path)
    if not os.path.lexists(os.path.join(name, "meta.json")):
        return DirectorySource(name, algorithm)
    try:
        return RepositorySource(opening.open_path(name, algorithm=algorithm), name)
    except AlgorithmMismatchError as error:
        raise AlgorithmMismatchError(
            f"{name}, from which to repair (its directory objects/ can be given instead, and is read as a whole)",
            error.expected,
            error.found,
        ) from None


class RepositorySource:
    """A repository of the same algorithm; its lock keeps gc away from it."""

    def __init__(self, state: RepoState, name: str, *, owned: bool = True) -> None:
        self.state: RepoState = state
        self.name: str = name
        self._owned = owned

    def candidates(self, wanted: Mapping[ObjectId, int | None]) -> Iterator[tuple[ObjectId, int]]:
        for object_id in sorted(wanted):
            try:
                fd = _regular(self.state.open_object_file(object_id.path, _FLAGS), object_id.path)
            except OSError:  # not there, or it cannot be read; somebody else may have it
                continue
            yield object_id, fd

    def stream(self, name: str) -> ObjectId | None:
        """What the name of a stream leads to there."""
        return publish.object_of(self.state, "streams", name)

    def close(self) -> None:
        if self._owned:
            self.state.close()


class QuarantineSource:
    """What earlier repairs put aside: it is compared with the ids as anything else, and what is right comes back."""

    name: str = "the quarantine"

    def __init__(self, state: RepoState) -> None:
        self._state = state

    def candidates(self, wanted: Mapping[ObjectId, int | None]) -> Iterator[tuple[ObjectId, int]]:
        for kept in quarantines(self._state) if wanted else []:
            for object_id in sorted(wanted):
                try:
                    path = f"{kept}/objects/{object_id.path}"
                    fd = _regular(open_beneath(path, _FLAGS, dir_fd=self._state.fd), path)
                except OSError:  # as in any source
                    continue
                yield object_id, fd

    def close(self) -> None:
        pass


class DirectorySource:
    """Files anywhere below a directory, whatever their names; all that could be an object are read, once."""

    def __init__(self, path: str, algorithm: Algorithm) -> None:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        self.name, self._algorithm = path, algorithm
        self._read: dict[str, ObjectId] = {}
        """Files that have been digested."""

    def candidates(self, wanted: Mapping[ObjectId, int | None]) -> Iterator[tuple[ObjectId, int]]:
        sizes = None if None in wanted.values() else set(wanted.values())
        found = {object_id: path for path, object_id in self._digests(sizes) if object_id in wanted}
        for object_id, path in found.items():
            try:
                fd = _open(path)
            except OSError:  # gone, or somebody else's now
                continue
            yield object_id, fd

    def _digests(self, sizes: set[int | None] | None) -> Iterator[tuple[str, ObjectId]]:
        batch: list[str] = []
        for path, size in _files(self.name):
            if path in self._read:
                yield path, self._read[path]
            elif sizes is None or size in sizes:
                batch.append(path)
                if len(batch) >= _BATCH:
                    yield from self._digest(batch)
        yield from self._digest(batch)

    def _digest(self, batch: list[str]) -> list[tuple[str, ObjectId]]:
        """Empties *batch*."""
        opened: dict[str, int] = {}
        try:
            for path in batch:
                with suppress(OSError):
                    opened[path] = _open(path)
            digests = digest_descriptors([*opened.values()], self._algorithm)
        finally:
            batch.clear()
            for fd in opened.values():
                os.close(fd)
        found = [(path, digest) for path, digest in zip(opened, digests, strict=True) if digest is not None]
        self._read.update(found)
        return found

    def close(self) -> None:
        pass


def _open(path: str) -> int:
    """Open a regular file for reading."""
    return _regular(os.open(path, _FLAGS | os.O_NOFOLLOW | os.O_CLOEXEC), path)


def _regular(fd: int, path: str) -> int:
    """*fd*, which is closed if it is of anything but a regular file."""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(f"{path} is not a regular file")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _files(top: str) -> Iterator[tuple[str, int]]:
    """Paths and sizes of the regular files below *top*; links are not followed, unreadable directories passed over."""
    pending = [top]
    while pending:
        found: list[tuple[str, int]] = []
        with suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    found.append((entry.path, entry.stat(follow_symlinks=False).st_size))
        yield from found
