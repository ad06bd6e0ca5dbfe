"""What is on the disk for sure while an operation runs, and whether a power loss would find all in order.

A model of a disk, not of one file system: content, and names of objects, are lost unless they have been flushed; a name
that has been removed may come back unless its directory has been flushed.  Names of streams and images reach the disk
in the order in which they were made, as the journals of ext4, XFS and btrfs have it.

`recording` changes functions of this process.  The native code cannot be looked into, so it is not used.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from composefs_async._maintenance.fsck import object_reader
from composefs_async._maintenance.gc import shards
from composefs_async._repo import batch
from composefs_async._sys import files
from composefs_async.digest import ObjectId

from ..maintenance.crashing import Contents, reach


class Disk:
    """Hears of every change in the repository *path*; `wrong` tells what a power loss could do."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.wrong: list[str] = []
        self.flushes = 0
        self._dirty: set[int] = set()  # inodes
        self._made: set[Path] = set()
        self._removed: set[Path] = set()

    # -- what happens --------------------------------------------------------------------------

    def wrote(self, inode: int) -> None:
        self._dirty.add(inode)

    def flushed(self) -> None:
        self.flushes += 1
        for each in (self._dirty, self._made, self._removed):
            each.clear()

    def flushed_file(self, fd: int) -> None:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            directory = Path(os.readlink(f"/proc/self/fd/{fd}"))
            for names in (self._made, self._removed):
                names -= {name for name in names if name.parent == directory}
        self._dirty.discard(status.st_ino)

    def made(self, path: Path) -> None:
        """A name is there, perhaps in the place of another."""
        self._made.add(path)
        self._removed.discard(path)
        kind = self._kind(path)
        if kind in ("streams", "images") and path.is_symlink():
            self._check_reached(path)
        elif path.name == "meta.json" and path.lstat().st_ino in self._dirty:
            self.wrong.append("meta.json is there before its content")

    def replaced(self, path: Path) -> None:
        if self._kind(path) == "objects" and path.lstat().st_ino in self._dirty:
            self.wrong.append(f"{self._name(path)} is replaced by what is not on the disk")
        self.made(path)

    def removes(self, path: Path) -> None:
        """A name will be gone."""
        if self._kind(path) == "objects" and path.parent.parent.name == "objects" and not path.name.startswith("."):
            if names := sorted(self._name(each) for each in self._removed if self._kind(each) in ("streams", "images")):
                self.wrong.append(f"{self._name(path)} goes, but {names[0]} may come back")
            if f"{path.parent.name}/{path.name}" in Contents.read(self.path).needed:
                self.wrong.append(f"{self._name(path)} goes, and is needed")
        self._made.discard(path)
        self._removed.add(path)

    def end(self) -> None:
        """The operation claims to be durable."""
        for each in sorted(self._made | self._removed):
            if self._kind(each) in ("streams", "images", "meta.json"):
                self.wrong.append(f"{self._name(each)} is not durable at the end")

    # -- what that means -----------------------------------------------------------------------

    def _check_reached(self, path: Path) -> None:
        """All that the name *path* leads to must be on the disk."""
        target = path.resolve(strict=True).relative_to(self.path / "objects")
        for object_id in reach(self.path, ObjectId.from_path(str(target))):
            file = self.path / "objects" / object_id.path
            if {file, file.parent, file.parent.parent} & self._made or file.stat().st_ino in self._dirty:
                self.wrong.append(f"{self._name(path)} is there before {self._name(file)}")

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.path))

    def _kind(self, path: Path) -> str:
        return path.relative_to(self.path).parts[0] if path.is_relative_to(self.path) and path != self.path else ""


@contextmanager
def recording(path: Path, *, flush: bool = True) -> Iterator[Disk]:
    """What operations of this process do to the repository *path*.

    Args:
        flush: tell the disk of flushes; otherwise it is as if they were forgotten.
    """
    disk = Disk(path.resolve())
    mutex = threading.Lock()

    def told(name: str, tell: Callable[..., object], *, before: bool = False, module: ModuleType = os) -> None:
        function = getattr(module, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with mutex:
                if before:
                    tell(*args, **kwargs)
                result = function(*args, **kwargs)
                if not before:
                    tell(*args, **kwargs)
            return result

        patch.setattr(module, name, wrapped)

    def at(path: str, dir_fd: int | None = None) -> Path:
        place = Path(path)
        return place if dir_fd is None else Path(os.path.normpath(f"{os.readlink(f'/proc/self/fd/{dir_fd}')}/{path}"))

    def renamed(source: str, target: str, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        disk.removes(at(source, src_dir_fd))
        disk.replaced(at(target, dst_dir_fd))

    with pytest.MonkeyPatch.context() as patch:
        for module in (batch, shards, object_reader):
            patch.setattr(module, "NATIVE", False)
        told("write", lambda fd, data: disk.wrote(os.fstat(fd).st_ino))
        told("pwrite", lambda fd, data, offset: disk.wrote(os.fstat(fd).st_ino))
        told("copy_file_range", lambda source, target, *more: disk.wrote(os.fstat(target).st_ino))
        told("symlink", lambda target, name, dir_fd=None: disk.made(at(name, dir_fd)))
        told("link", lambda source, name, src_dir_fd=None, dst_dir_fd=None, **more: disk.made(at(name, dst_dir_fd)))
        told("_link_descriptor", lambda fd, name, dir_fd: disk.made(at(name, dir_fd)), module=files)
        told("mkdir", lambda name, mode=0, dir_fd=None: disk.made(at(name, dir_fd)))
        told("rename", renamed)
        told("unlink", lambda name, dir_fd=None: disk.removes(at(name, dir_fd)), before=True)
        told("rmdir", lambda name, dir_fd=None: disk.removes(at(name, dir_fd)), before=True)
        told("fsync", lambda fd: disk.flushed_file(fd) if flush else None)
        patch.setattr(files, "syncfs", lambda fd: disk.flushed() if flush else None)
        yield disk
    disk.end()
