"""What a directory's file system and the kernel can do, found out by trying; leaves nothing behind.

Where trying needs a privilege that is missing, the kernel's lists of modules and its version tell instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..digest import BLOCK_SIZE, Algorithm
from ..errors import VerityNotSupportedError
from . import verity
from .files import Tmpfile, opened, write_all
from .mount_table import is_proc_mounted, mount_table

__all__ = ["Abilities", "probe"]

_FICLONE = 0x40049409  # linux/fs.h, _IOW(0x94, 9, int)
_FSOPEN, _FSCONFIG = 430, 431  # asm-generic/unistd.h; these two are the same on all architectures but alpha
_FSOPEN_CLOEXEC, _SET_STRING = 1, 1  # linux/mount.h, FSOPEN_CLOEXEC and FSCONFIG_SET_STRING
_OVERLAY_VERITY = (6, 6)  # the kernel that brought overlayfs's option verity= (Documentation/filesystems/overlayfs.rst)


@dataclass(frozen=True, slots=True)
class Abilities:
    """What the file system that *path* is on, and the kernel, can do."""

    path: str
    kind: str
    """The name of the file system's type; empty if it is not known."""
    writable: bool
    """A file can be made in the directory; what needs one to be tried is None otherwise."""
    tmpfile: bool | None
    """O_TMPFILE: files without a name (open(2))."""
    verity: bool | None
    """fs-verity, for both algorithms."""
    reflink: bool | None
    """Files that share their content (ioctl_ficlonerange(2))."""
    erofs: bool
    """The kernel has EROFS, or has a module for it."""
    overlay: bool
    overlay_verity: bool
    """overlayfs can require fs-verity of the files behind it."""
    free_bytes: int
    free_inodes: int
    read_only: bool
    proc: bool
    """/proc is mounted; without it mounts cannot be made nor seen, and fs-verity cannot be enabled."""


def probe(path: str) -> Abilities:
    """Try everything in the directory *path*, which must be writable for that to tell much.  Blocks briefly."""
    with opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        status = os.fstatvfs(fd)
        writable = _is_writable(fd)
        return Abilities(
            path,
            kind=_kind(fd),
            writable=writable,
            tmpfile=_has_tmpfile(fd) if writable else None,
            verity=all(_has_verity(fd, algorithm) for algorithm in Algorithm) if writable else None,
            reflink=_has_reflink(fd) if writable else None,
            erofs=_has_filesystem("erofs"),
            overlay=_has_filesystem("overlay"),
            overlay_verity=_has_overlay_verity(),
            free_bytes=status.f_bavail * status.f_frsize,
            free_inodes=status.f_favail,
            read_only=bool(status.f_flag & os.ST_RDONLY),
            proc=is_proc_mounted(),
        )


# -- the directory -----------------------------------------------------------------------------


def _kind(directory: int) -> str:
    """The kind of a file system, by the device number in the mount table; of several mounts the last."""
    device = os.fstat(directory).st_dev
    wanted, found = f"{os.major(device)}:{os.minor(device)}", ""
    for entry in mount_table():
        if entry.device == wanted:
            found = entry.kind
    return found


@contextlib.contextmanager
def _file(directory: int) -> Iterator[Tmpfile]:
    tmpfile = Tmpfile.create(".", 0o600, dir_fd=directory)
    try:
        write_all(tmpfile.fd, b"x" * BLOCK_SIZE)
        yield tmpfile
    finally:
        tmpfile.discard()


def _is_writable(directory: int) -> bool:
    try:
        with _file(directory):
            return True
    except OSError:
        return False


def _has_tmpfile(directory: int) -> bool:
    try:
        os.close(os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=directory))
    except OSError:
        return False
    return True


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


# -- the kernel --------------------------------------------------------------------------------


@contextlib.contextmanager
def _filesystem_context(name: str) -> Iterator[int]:
    """A descriptor of fsopen(2), which loads the module if there is one."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(ctypes.c_long(_FSOPEN), name.encode(), ctypes.c_uint(_FSOPEN_CLOEXEC))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    try:
        yield fd
    finally:
        os.close(fd)


def _has_filesystem(name: str) -> bool:
    try:
        with _filesystem_context(name):
            return True
    except OSError as error:
        if error.errno == errno.ENODEV:
            return False
    return _is_registered(name) or _has_module(name)


def _is_registered(name: str) -> bool:
    with contextlib.suppress(FileNotFoundError), open("/proc/filesystems") as known:
        return any(line.split()[-1:] == [name] for line in known)
    return False


def _has_module(name: str) -> bool:
    for listing in ("modules.dep", "modules.builtin"):
        with contextlib.suppress(OSError), open(f"/lib/modules/{os.uname().release}/{listing}") as modules:
            if any(f"/{name}.ko" in line.partition(":")[0] for line in modules):
                return True
    return False


def _has_overlay_verity() -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        with _filesystem_context("overlay") as fd:
            values = (ctypes.c_uint(_SET_STRING), b"verity", b"require", ctypes.c_int(0))
            return bool(libc.syscall(ctypes.c_long(_FSCONFIG), ctypes.c_int(fd), *values) == 0)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return False
    return _has_filesystem("overlay") and _kernel() >= _OVERLAY_VERITY


def _kernel() -> tuple[int, int]:
    major, minor = [*re.findall(r"[0-9]+", os.uname().release), "0", "0"][:2]
    return int(major), int(minor)
