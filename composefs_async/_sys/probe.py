"""What a directory's file system and the kernel can do, found out by trying; leaves nothing behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..digest import BLOCK_SIZE, Algorithm
from ..errors import VerityNotSupportedError
from . import verity
from .files import Tmpfile, opened, write_all

__all__ = ["Abilities", "probe"]

_FICLONE = 0x40049409  # linux/fs.h, _IOW(0x94, 9, int)


@dataclass(frozen=True, slots=True)
class Abilities:
    """Of the file system that *path* is on, and of the kernel."""

    path: str
    tmpfile: bool
    """O_TMPFILE: files without a name (open(2))."""
    verity: bool
    """fs-verity, for both algorithms."""
    reflink: bool
    """Files that share their content (ioctl_ficlonerange(2))."""
    erofs: bool
    """The kernel has EROFS, or has a module for it."""
    overlay: bool
    overlay_verity: bool
    """overlayfs can require fs-verity of the files behind it (Linux 6.6)."""
    free_bytes: int
    free_inodes: int
    read_only: bool


def probe(path: str) -> Abilities:
    """Try everything in the directory *path*, which must be writable for that to tell much.  Blocks briefly."""
    with opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        status = os.fstatvfs(fd)
        return Abilities(
            path,
            tmpfile=_has_tmpfile(fd),
            verity=all(_has_verity(fd, algorithm) for algorithm in Algorithm),
            reflink=_has_reflink(fd),
            erofs=_has_filesystem("erofs"),
            overlay=_has_filesystem("overlay"),
            overlay_verity=_kernel() >= (6, 6),
            free_bytes=status.f_bavail * status.f_frsize,
            free_inodes=status.f_favail,
            read_only=bool(status.f_flag & os.ST_RDONLY),
        )


def _has_tmpfile(directory: int) -> bool:
    try:
        os.close(os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=directory))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _file(directory: int) -> Iterator[Tmpfile]:
    tmpfile = Tmpfile.create(".", 0o600, dir_fd=directory)
    try:
        write_all(tmpfile.fd, b"x" * BLOCK_SIZE)
        yield tmpfile
    finally:
        tmpfile.discard()


def _has_verity(directory: int, algorithm: Algorithm) -> bool:
    try:
        with _file(directory) as tmpfile:
            tmpfile.make_read_only()
            verity.enable(tmpfile.fd, algorithm, "a file")
    except (VerityNotSupportedError, OSError):
        return False
    return True


def _has_reflink(directory: int) -> bool:
    try:
        with _file(directory) as source, _file(directory) as target:
            fcntl.ioctl(target.fd, _FICLONE, source.fd)
    except OSError:
        return False
    return True


def _has_filesystem(name: str) -> bool:
    with open("/proc/filesystems") as known:
        if any(line.split()[-1] == name for line in known):
            return True
    module = f"/lib/modules/{os.uname().release}/kernel/fs/{name}"
    return os.path.isdir(module) or os.path.isdir(f"{module}fs")


def _kernel() -> tuple[int, int]:
    major, minor = re.findall(r"[0-9]+", os.uname().release)[:2]
    return int(major), int(minor)
