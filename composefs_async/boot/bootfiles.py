"""Files on a boot partition: written whole or not at all, entries last.

Owns the order of writes, flushes and renames, space, and what is left when something fails.  Works on vfat.  Does not
own which files these are (`plan`).

What a crash leaves: complete files under their names, some of the first in the order of the plan, and temporary ones
(`.NAME.tmp`), which the next run of the same plan takes away.  An entry has its name only when all that it names has.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from .._sys import files
from ..errors import BootError
from ..tree.inodes import ExternalFile, InlineFile

__all__ = ["BootFile", "OpenFile", "check_paths", "check_space", "remove_files", "write_files"]

_READ_SIZE: Final = 1 << 20
_MODE: Final = 0o644
_NAME_MAX: Final = 240  # with the dot and the end of a temporary name it has to fit into 255
_BAD: Final = frozenset('"*:<>?\\|')  # in names on vfat
_TEMPORARY: Final = ".tmp"

OpenFile = Callable[[ExternalFile], int]
"""A descriptor of a file that lies in an object; the caller closes it."""


@dataclass(frozen=True, slots=True)
class BootFile:
    """One file to be written."""

    path: str
    """Below the boot partition."""
    content: bytes | ExternalFile | InlineFile

    @property
    def size(self) -> int:
        """How long the file is, in bytes."""
        if isinstance(self.content, bytes):
            return len(self.content)
        return self.content.size if isinstance(self.content, ExternalFile) else len(self.content.content)


def check_paths(planned: Iterable[BootFile]) -> None:
    """Refuse names that a boot partition, usually vfat, cannot have, and two that are one there.

    Raises:
        BootError
    """
    known: dict[str, str] = {}
    for file in planned:
        for name in file.path.split("/"):
            bad = not name or name in (".", "..") or len(name.encode(errors="surrogateescape")) > _NAME_MAX
            if bad or name[-1] in ". " or any(char in _BAD or not char.isprintable() for char in name):
                raise BootError(f"boot file {file.path!r}", f"{name!r} is no name that a boot partition can have")
        if file.path.casefold() in known:
            raise BootError(f"boot file {file.path!r}", f"it would take the place of {known[file.path.casefold()]!r}")
        known[file.path.casefold()] = file.path


def check_space(bootdir: str, planned: Iterable[BootFile]) -> int:
    """The bytes that the files will take, if that many are free; read-only file systems are refused, too.

    Raises:
        OSError: ENOSPC or EROFS, before anything is written.
    """
    planned = list(planned)
    if not planned:
        return 0
    status = os.statvfs(bootdir)
    if status.f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), bootdir)
    unit = status.f_frsize or 4096
    # A file's last block, and one for a directory, are whole.
    needed = sum(-(-file.size // unit) * unit + unit for file in planned)
    free = status.f_bavail * unit
    if needed > free:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {needed} bytes are needed, {free} are free", bootdir)
    return needed


def differing(bootdir: str, planned: Iterable[BootFile], open_file: OpenFile) -> list[BootFile]:
    """The files that are not there with this content."""
    return [file for file in planned if not _is_there(os.path.join(bootdir, file.path), file, open_file)]


def write_files(bootdir: str, planned: list[BootFile], open_file: OpenFile) -> list[str]:
    """Write *planned* in their order, those that are there with the same content left alone.  Durable.

    All content is on the disk, under temporary names, before the first file gets its name.  After an error until then
    nothing is left; later ones leave complete files under the first of the names.

    Returns:
        The paths that were written.

    Raises:
        OSError: there is no space, or something cannot be written; ``filename`` says where.
    """
    wanted = differing(bootdir, planned, open_file)
    check_space(bootdir, wanted)
    made: list[str] = []
    temporary: list[str] = []
    try:
        for file in wanted:
            path = os.path.join(bootdir, file.path)
            _make_parents(bootdir, os.path.dirname(file.path), made)
            temporary.append(_temporary(path))
            _write(temporary[-1], file, open_file)
        for file in wanted:
            _give_name(os.path.join(bootdir, file.path))
    except BaseException:
        for path in temporary:
            with contextlib.suppress(OSError):
                os.unlink(path)
        for path in reversed(made):
            with contextlib.suppress(OSError):
                os.rmdir(path)
        raise
    return [file.path for file in wanted]


def remove_files(bootdir: str, paths: Iterable[str]) -> list[str]:
    """Remove files below *bootdir* in this order, what a stopped run left of them, and directories that become empty.

    Durable.  Returns the paths of what was there.
    """
    removed = []
    for path in paths:
        full = os.path.join(bootdir, path)
        with contextlib.suppress(OSError):
            os.unlink(_temporary(full))
        try:
            os.unlink(full)
        except FileNotFoundError:
            continue
        removed.append(path)
        _flush(os.path.dirname(full))
        above = os.path.dirname(path)
        while above and above not in _KEPT_DIRECTORIES:
            try:
                os.rmdir(os.path.join(bootdir, above))
            except OSError:
                break
            above = os.path.dirname(above)
            _flush(os.path.join(bootdir, above))
    return removed


_KEPT_DIRECTORIES: Final = ("loader", "loader/entries", "EFI", "EFI/Linux")
"""Stay when they are empty: boot loaders and their tools expect them."""


def _temporary(path: str) -> str:
    above, name = os.path.split(path)
    return os.path.join(above, f".{name}{_TEMPORARY}")


def _give_name(path: str) -> None:
    """Rename the file that was written for *path*.  Durable.

    FAT writes a name of no bytes at first, and size and place when the file is flushed: only a flush of the file
    behind the rename makes it whole on the disk.
    """
    fd = os.open(_temporary(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.rename(_temporary(path), path)
        os.fsync(fd)
    finally:
        os.close(fd)
    _flush(os.path.dirname(path))


def _make_parents(bootdir: str, path: str, made: list[str]) -> None:
    place = bootdir
    for name in filter(None, path.split("/")):
        above, place = place, os.path.join(place, name)
        try:
            os.mkdir(place, 0o755)
        except FileExistsError:
            continue
        made.append(place)
        _flush(above)


def _flush(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write(path: str, file: BootFile, open_file: OpenFile) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # of a run that was stopped
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)
    try:
        with files.naming(path), _content(file, open_file) as content:
            if isinstance(content, bytes):
                files.write_all(fd, content)
            else:
                files.copy_content(content, fd)
            os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _content(file: BootFile, open_file: OpenFile) -> Iterator[int | bytes]:
    content = file.content
    if isinstance(content, ExternalFile):
        fd = open_file(content)
        try:
            yield fd
        finally:
            os.close(fd)
    else:
        yield content if isinstance(content, bytes) else content.content


def _is_there(path: str, file: BootFile, open_file: OpenFile) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if os.fstat(fd).st_size != file.size:
            return False
        with _content(file, open_file) as content:
            return _same(fd, content)
    finally:
        os.close(fd)


def _same(fd: int, content: int | bytes) -> bool:
    at = 0
    while piece := os.pread(fd, _READ_SIZE, at):
        other = content[at : at + len(piece)] if isinstance(content, bytes) else os.pread(content, len(piece), at)
        if piece != other:
            return False
        at += len(piece)
    return True
