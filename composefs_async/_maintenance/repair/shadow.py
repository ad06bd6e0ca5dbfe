"""A repository to plan a repair on: the names and objects of a real one, and changes that the real one never sees.

Owns how changes are kept apart: names are copied, objects that come back are stored in a temporary directory, and what
is moved away is remembered.  A repair that works on it does what a run would do, step by step, so that its actions are
the plan of that run.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from ..._repo.state import RepoState
from ..._repo.sync import SyncGroup
from ..._sys import errnos, files
from ...digest import ObjectId
from ..reachability import CATEGORIES
from .quarantine import Quarantine

__all__ = ["Shadow", "ShadowQuarantine"]

_OBJECTS = "objects/"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_MAX_LINKS = 40
"""That the kernel follows."""


class Shadow(RepoState):
    """Reads like *real*, of which it needs no permission to write, and keeps what is written to itself.

    Takes room in the directory for temporary files for each object that comes back.  `close` removes all of it.

    Raises:
        OSError: the names cannot be read, or the temporary directory cannot be written.
    """

    in_one_place = False

    def __init__(self, real: RepoState) -> None:
        self._real = real
        self._gone: set[str] = set()
        """Below ``objects/``: what has been moved away."""
        self._directory = tempfile.mkdtemp(prefix="composefs-async-repair-")
        try:
            fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except BaseException:
            os.rmdir(self._directory)
            raise
        super().__init__(real.path, fd, real.metadata, secure=real.secure)
        self.verity_works = False
        self.syncs: SyncGroup = _NoFlushes(lambda: fd)
        try:
            with self.shared(), files.naming(real.path):
                for category in CATEGORIES:
                    self._copy_entry(category)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        super().close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _copy_entry(self, path: str) -> None:
        """Make what stands at *path*: a link or a directory as it is, anything else as an empty file."""
        pending = [path]
        while pending:
            path = pending.pop()
            try:
                mode = self._real.lstat(path).st_mode
                if stat.S_ISLNK(mode):
                    os.symlink(self._target(path), path, dir_fd=self.fd)
                    continue
                names = self._names_in(path) if stat.S_ISDIR(mode) else None
            except FileNotFoundError:  # removed meanwhile, or never there
                continue
            if names is None:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=self.fd))
            else:
                os.mkdir(path, dir_fd=self.fd)
                pending += [f"{path}/{name}" for name in names]

    def _target(self, path: str) -> str:
        """The target of a link; in the place of a directory of names it must lead to the same place."""
        target = os.readlink(path, dir_fd=self._real.fd)
        return os.path.join(os.path.abspath(self.path), target) if path in CATEGORIES else target

    def _names_in(self, directory: str) -> list[str]:
        with files.opened(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=self._real.fd) as fd:
            return os.listdir(fd)

    # -- as of the real one, but for the changes -------------------------------------------------

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Keep away what needs the real one alone; a full disk in the block is that of the temporary directory."""
        with self._real.shared():
            try:
                yield
            except OSError as error:
                if error.errno in _FULL:  # nothing else is written to
                    error.filename, error.filename2 = self._directory, None
                raise

    def open_object_file(self, path: str, flags: int) -> int:
        try:
            return super().open_object_file(path, flags)
        except FileNotFoundError:
            if self._is_gone(path):
                raise
        return self._real.open_object_file(path, flags)

    def list_objects(self, directory: str) -> list[str]:
        try:
            found = set(super().list_objects(directory))
        except FileNotFoundError:
            found = set()
        if not self._is_gone(directory):
            below = "" if directory == "." else f"{directory}/"
            found.update(name for name in self._real.list_objects(directory) if f"{below}{name}" not in self._gone)
        return sorted(found)

    def lstat(self, path: str) -> os.stat_result:
        try:
            return super().lstat(path)
        except FileNotFoundError:
            if not path.startswith(_OBJECTS) or self._is_gone(path.removeprefix(_OBJECTS)):
                raise
        return self._real.lstat(path)

    def follow(self, path: str) -> os.stat_result:
        place = path
        for _ in range(_MAX_LINKS):
            if place.partition("/")[0] not in ("objects", *CATEGORIES):
                break
            status = self.lstat(place)
            if not stat.S_ISLNK(status.st_mode):
                return status
            if place.startswith(_OBJECTS):
                return self._real.follow(place)
            target = os.readlink(place, dir_fd=self.fd)
            place = os.path.normpath(os.path.join(os.path.dirname(place), target))
        return self._real.follow(path)  # it leads away from what a repair changes

    def is_guarded(self, object_id: ObjectId) -> bool:
        return self.secure and not errnos.exists(object_id.path, dir_fd=self.objects_fd)

    def move_away(self, path: str) -> None:
        """Let what stands at *path*, below ``objects/``, be gone."""
        self._gone.add(path)

    def _is_gone(self, path: str) -> bool:
        return path in self._gone or path.partition("/")[0] in self._gone


class ShadowQuarantine(Quarantine):
    """Takes what is moved away in a shadow; what is replaced stays where it is, in the real repository."""

    def __init__(self, state: Shadow) -> None:
        super().__init__(state)
        self._shadow = state

    def keep(self, path: str) -> None:
        pass

    def take(self, path: str) -> None:
        if path.startswith(_OBJECTS):
            self._shadow.move_away(path.removeprefix(_OBJECTS))
        else:
            super().take(path)


class _NoFlushes(SyncGroup):
    def sync(self) -> None:
        pass
