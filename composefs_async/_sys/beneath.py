"""Opening what is below a directory without ever leaving it: openat2(2) where the kernel has it.

Owns the choice and the way for kernels, or sandboxes, without that call: one component after the other.  Whoever can
write into a directory can put a link in the place of a file that another user, perhaps root, is going to open.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from typing import Final

__all__ = [
    "IN_THE_WAY",
    "is_in_the_way",
    "make_directories",
    "open_beneath",
    "open_trusted",
    "openat2",
    "opened_beneath",
    "opened_parent",
    "opened_trusted",
    "trusted_owners",
]

IN_THE_WAY: Final = (errno.ELOOP, errno.ENOTDIR)
"""What `open_beneath` raises where a link, or something else that is no directory, stands in the way."""

_OPENAT2: Final = 437  # asm-generic/unistd.h; the same on all architectures that Python supports
_RESOLVE: Final = 0x04 | 0x08  # linux/openat2.h, RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH
_MISSING: Final = (errno.ENOSYS, errno.EPERM)
"""What answers where there is no such call, or a sandbox of before its time forbids it."""
_STEP: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ROOT: Final = 0

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    """``struct open_how`` of linux/openat2.h."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_refused: set[int] = set()
"""System calls that this kernel does not have."""


def open_beneath(path: str, flags: int, mode: int = 0, *, dir_fd: int) -> int:
    """Open *path* below *dir_fd*; the caller closes the descriptor, which programs that are started do not inherit.

    Args:
        path: relative, without ``..``.
        mode: of a file that is made.

    Raises:
        OSError: ELOOP, a component is a symbolic link; ENOTDIR, it is something else that is no directory.
    """
    if "/" not in path and not flags & os.O_PATH:  # which would open a link itself
        return _open_one(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd, path)
    if not _refused:
        try:
            return openat2(path, flags & ~os.O_NOFOLLOW, mode, dir_fd, _RESOLVE)
        except OSError as error:
            if error.errno not in _MISSING:
                raise
            if error.errno == errno.ENOSYS:
                _refused.add(_OPENAT2)
    return _open_by_steps(path, flags, mode, dir_fd)


@contextlib.contextmanager
def opened_beneath(path: str, flags: int, *, dir_fd: int) -> Iterator[int]:
    """`open_beneath` for the time of the block; an error in it that names no path is one of this file."""
    with closing(open_beneath(path, flags, dir_fd=dir_fd), path) as fd:
        yield fd


@contextlib.contextmanager
def closing(fd: int, path: str) -> Iterator[int]:
    """Close *fd* at the end of the block; an error in it that names no path is one of the file at *path*."""
    try:
        yield fd
    except OSError as error:
        if not isinstance(error.filename, str):  # of a call with a descriptor: nothing, or its number
            error.filename = path
        raise
    finally:
        os.close(fd)


@contextlib.contextmanager
def opened_parent(path: str, *, dir_fd: int) -> Iterator[tuple[int, str]]:
    """The directory that *path* is in, opened by `open_beneath` for the time of the block, and the last component."""
    parent, _, name = path.rpartition("/")
    if not parent:
        yield dir_fd, name
        return
    with opened_beneath(parent, os.O_PATH | os.O_DIRECTORY, dir_fd=dir_fd) as fd:
        yield fd, name


def make_directories(path: str, mode: int, *, dir_fd: int) -> None:
    """Create the directory *path* and those above it, as far as they are not there.

    Raises:
        OSError: ELOOP or ENOTDIR, something is in the way of the last one.
    """
    for end in (at for at, char in enumerate(f"{path}/") if char == "/"):
        with opened_parent(path[:end], dir_fd=dir_fd) as (fd, name), contextlib.suppress(FileExistsError):
            os.mkdir(name, mode, dir_fd=fd)


def is_in_the_way(error: OSError) -> bool:
    """Whether `open_beneath` failed because of a link, or something else that is no directory."""
    return error.errno in IN_THE_WAY


def open_trusted(path: str, *, dir_fd: int, flags: int = os.O_RDONLY) -> int:
    """Open the directory *path* below *dir_fd*; links in it are followed if the owner of *dir_fd*, or root, made them.

    Raises:
        OSError: ELOOP, somebody else made a link that is in the way.
    """
    flags |= os.O_DIRECTORY
    try:
        return open_beneath(path, flags, dir_fd=dir_fd)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
    owners = trusted_owners(dir_fd)
    fd = os.open(".", _STEP, dir_fd=dir_fd)
    try:
        parts = path.split("/")
        for number, name in enumerate(parts, 1):
            below = _follow(name, flags if number == len(parts) else _STEP, fd, path, owners)
            os.close(fd)
            fd = below
        return fd
    except BaseException as error:
        os.close(fd)
        if isinstance(error, OSError):
            error.filename = path
        raise


def trusted_owners(fd: int) -> set[int]:
    """The users whose links are followed below the directory *fd*: its owner, and root."""
    return {_ROOT, os.fstat(fd).st_uid}


@contextlib.contextmanager
def opened_trusted(path: str, *, dir_fd: int, flags: int = os.O_RDONLY) -> Iterator[int]:
    """`open_trusted` for the time of the block; an error in it that names no path is one of this directory."""
    with closing(open_trusted(path, dir_fd=dir_fd, flags=flags), path) as fd:
        yield fd


def _follow(name: str, flags: int, dir_fd: int, path: str, owners: set[int]) -> int:
    """Open the directory *name*, or what it leads to if it is a link of one of *owners*."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        status = os.fstat(fd)
        if not stat.S_ISLNK(status.st_mode):
            return open_beneath(name, flags, dir_fd=dir_fd)
        if status.st_uid not in owners:
            raise OSError(errno.ELOOP, "A symbolic link that the owner of the repository did not make", path)
        target = os.readlink("", dir_fd=fd)  # of just this link, whatever has been put in its place since
    finally:
        os.close(fd)
    return os.open(target, (flags & ~os.O_NOFOLLOW) | os.O_CLOEXEC, dir_fd=dir_fd)


def openat2(path: str, flags: int, mode: int, dir_fd: int, resolve: int) -> int:
    """Open a file, again if a signal interrupts it; *resolve* has the RESOLVE_ bits of linux/openat2.h.

    Raises:
        OSError: ENOSYS, the kernel has no such call.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    name = os.fsencode(path)
    if b"\0" in name:
        raise ValueError("embedded null byte")
    while True:
        fd: int = _libc.syscall(
            ctypes.c_long(_OPENAT2),
            ctypes.c_long(dir_fd),
            ctypes.c_char_p(name),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number not in (errno.EINTR, errno.EAGAIN):
            raise OSError(number, os.strerror(number), path)


def _open_by_steps(path: str, flags: int, mode: int, dir_fd: int) -> int:
    *parents, name = path.split("/")
    fd = dir_fd
    try:
        for parent in parents:
            below = _open_one(parent, _STEP, 0, fd, path)
            if fd != dir_fd:
                os.close(fd)
            fd = below
        return _open_one(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, fd, path)
    finally:
        if fd != dir_fd:
            os.close(fd)


def _open_one(name: str, flags: int, mode: int, dir_fd: int, path: str) -> int:
    if name == "..":
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
    try:
        return os.open(name, flags, mode, dir_fd=dir_fd)
    except OSError as error:
        # A link that has to be a directory is none, which openat2 tells better.
        if error.errno == errno.ENOTDIR and _is_link(name, dir_fd):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path) from None
        raise OSError(error.errno, error.strerror, path) from None


def _is_link(name: str, dir_fd: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode)
    except OSError:
        return False
