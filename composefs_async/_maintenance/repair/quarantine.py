"""Verified content in the place of objects that are missing or corrupt, and a place for what stood there.

Owns the order in which that is safe: copy, compare with the id, flush, keep what is there, replace atomically.  Does
not own where content comes from (`sources`) nor what needs it (`repair`).
"""

from __future__ import annotations

import calendar
import errno
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count

from ... import fsverity
from ..._repo import batch, objects
from ..._repo.state import DIRECTORY_MODE, RepoState
from ..._sys import errnos, files
from ..._sys.beneath import make_directories, opened_beneath, opened_parent
from ...digest import Algorithm, ObjectId

__all__ = ["QUARANTINE", "Quarantine", "digest_descriptors", "expire", "quarantines", "replace"]

QUARANTINE = ".composefs-async/quarantine"
"""Holds a directory for each repair that removed something.  Nothing reads it; composefs-rs ignores it."""

_TIME = "%Y%m%dT%H%M%SZ"
_NAME = re.compile(r"([0-9]{8}T[0-9]{6}Z)(?:-[0-9]+)?", re.ASCII)

_MAX_FILES = 128
_MAX_BYTES = 64 << 20
"""In a batch, which costs one flush and holds so many descriptors."""
_READ_SIZE = 1 << 20
_UNLINKABLE = (errno.EPERM, errno.EMLINK, errno.EACCES)
"""What link(2) answers for a directory, or where fs.protected_hardlinks forbids it."""


def quarantines(state: RepoState) -> list[str]:
    """The directories of repairs that put something aside, the newest first; relative to the repository."""
    flags = os.O_RDONLY | os.O_DIRECTORY
    try:
        with files.naming(state.path), opened_beneath(QUARANTINE, flags, dir_fd=state.fd) as fd:
            return [f"{QUARANTINE}/{name}" for name in sorted(os.listdir(fd), reverse=True)]
    except OSError as error:
        if errnos.is_unread(error):
            raise
        return []


def expire(state: RepoState, age: float, *, dry_run: bool = False) -> list[str]:
    """Delete what repairs put aside more than *age* seconds ago, a directory for each repair; not durable.

    Stopped anywhere, the next run does the rest.  Directories whose names no repair made are left alone.

    Args:
        dry_run: delete nothing.

    Returns:
        The directories, relative to the repository, the oldest first.
    """
    before = time.time() - age
    found = sorted(path for path in quarantines(state) if (made := _made(path)) is not None and made <= before)
    for path in () if dry_run else found:
        with files.naming(state.path), opened_parent(path, dir_fd=state.fd) as (fd, name):
            shutil.rmtree(name, dir_fd=fd)
    return found


def _made(path: str) -> float | None:
    """When a directory was made, by its name, in seconds since 1970."""
    found = _NAME.fullmatch(os.path.basename(path))
    try:
        return calendar.timegm(time.strptime(found[1], _TIME)) if found else None
    except ValueError:
        return None


class Quarantine:
    """The directory of one repair, made when something is put into it; files keep their paths below it."""

    def __init__(self, state: RepoState) -> None:
        self._state = state
        self.path: str = ""
        """Relative to the repository; empty as long as there is nothing."""

    def keep(self, path: str) -> None:
        """Give what stands at *path*, if anything does, a second name, so that replacing it loses nothing."""
        if not errnos.exists(path, dir_fd=self._state.fd, follow_symlinks=False):
            return
        place = self._place(path)
        try:
            self._with_both(os.link, path, place, follow_symlinks=False)
        except (FileNotFoundError, FileExistsError):  # nothing there; kept already
            return
        except OSError as error:
            if error.errno not in _UNLINKABLE:
                raise
            self._with_both(os.rename, path, place)

    def take(self, path: str) -> None:
        """Move what stands at *path* here; a crash leaves it in one place.

        Raises:
            OSError: ELOOP, *path* is below a link and may be outside of the repository.
        """
        self._with_both(os.rename, path, self._place(path))

    def _with_both(self, move: Callable[..., None], path: str, place: str, **options: bool) -> None:
        """Link or rename, from a directory below ``objects/`` or the repository to one below the latter."""
        state = self._state
        source, below = (state.objects_fd, path[8:]) if path.startswith("objects/") else (state.fd, path)
        with opened_parent(below, dir_fd=source) as (old, name), opened_parent(place, dir_fd=state.fd) as (new, last):
            move(name, last, src_dir_fd=old, dst_dir_fd=new, **options)

    def _place(self, path: str) -> str:
        if not self.path:
            self.path = self._make()
        place = f"{self.path}/{path}"
        make_directories(os.path.dirname(place), DIRECTORY_MODE, dir_fd=self._state.fd)
        return place

    def _make(self) -> str:
        """A new one: repairs can be at work at the same time."""
        make_directories(QUARANTINE, DIRECTORY_MODE, dir_fd=self._state.fd)
        now = time.strftime(_TIME, time.gmtime())
        for number in count(1):
            path = f"{QUARANTINE}/{now}" + (f"-{number}" if number > 1 else "")
            try:
                with opened_parent(path, dir_fd=self._state.fd) as (fd, name):
                    os.mkdir(name, DIRECTORY_MODE, dir_fd=fd)
            except FileExistsError:
                continue
            return path
        raise AssertionError


# -- replacing ---------------------------------------------------------------------------------


def replace(state: RepoState, candidates: Iterable[tuple[ObjectId, int]], quarantine: Quarantine) -> Iterator[ObjectId]:
    """Put each file that is what its id says into the place of that object; yields the ids, as batches are done.

    A file that is something else is passed over.  Each object is flushed before it is in place, so that a crash leaves
    what was there or the whole object; what was there is in *quarantine* then, too.

    Args:
        candidates: ids, and descriptors of files that may have their content; the descriptors are closed.
        quarantine: for what is replaced.
    """
    pending: list[tuple[ObjectId, int]] = []
    size = 0
    try:
        for object_id, fd in candidates:
            pending.append((object_id, fd))
            with files.naming_descriptor(fd):
                size += os.fstat(fd).st_size
            if len(pending) >= _MAX_FILES or size >= _MAX_BYTES:
                yield from _replace_batch(state, pending, quarantine)
                size = 0
        yield from _replace_batch(state, pending, quarantine)
    finally:
        for _, fd in pending:
            os.close(fd)


def _replace_batch(state: RepoState, pending: list[tuple[ObjectId, int]], quarantine: Quarantine) -> list[ObjectId]:
    """Empties *pending*."""
    copies: list[tuple[ObjectId, files.Tmpfile]] = []
    try:
        for object_id, fd in pending:
            copies.append((object_id, objects.create_object_tmpfile(state)))
            try:
                files.copy_content(fd, copies[-1][1].fd)
            except OSError as error:
                if digest_descriptors([fd], state.algorithm) != [None]:  # it can be read, but the copy not be written
                    error.filename = f"{state.path}/objects/{object_id.path}"
                    raise
        # Not the digest of the source, which may change meanwhile.
        digests = digest_descriptors([tmpfile.fd for _, tmpfile in copies], state.algorithm)
        good = [copy for copy, found in zip(copies, digests, strict=True) if found == copy[0]]
        if good:
            state.syncs.sync()
        for object_id, tmpfile in good:
            quarantine.keep(f"objects/{object_id.path}")
            objects.replace_object(state, tmpfile, object_id)
        return [object_id for object_id, _ in good]
    finally:
        for _, tmpfile in copies:
            tmpfile.discard()
        while pending:
            os.close(pending.pop()[1])


def digest_descriptors(fds: Sequence[int], algorithm: Algorithm) -> list[ObjectId | None]:
    """The digest of each file, None of one that cannot be read to its end; natively where that is built."""
    if batch.NATIVE:
        from ..._native._core import digest_files

        outcomes = digest_files(fds, algorithm.number)
        return [None if isinstance(outcome, int) else ObjectId(outcome) for outcome in outcomes]
    return [_digest(fd, algorithm) for fd in fds]


def _digest(fd: int, algorithm: Algorithm) -> ObjectId | None:
    hasher = fsverity.Hasher(algorithm)
    offset = 0
    try:
        while piece := os.pread(fd, _READ_SIZE, offset):
            hasher.update(piece)
            offset += len(piece)
    except OSError:
        return None
    return hasher.id()
