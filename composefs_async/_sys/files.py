"""Temporary files, links, symbolic links and flushes, all relative to a directory descriptor."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from typing import ClassVar, ParamSpec, TypeVar

from .beneath import opened_beneath, opened_parent

__all__ = [
    "SYMLINK_PREFIX",
    "TMPFILE_PREFIX",
    "Tmpfile",
    "clone_content",
    "copy_content",
    "fsync_directory",
    "make_directory",
    "make_symlink",
    "naming",
    "naming_descriptor",
    "opened",
    "path_of",
    "place",
    "punch_hole",
    "replace_symlink",
    "syncfs",
    "uninterrupted",
    "whole_paths",
    "widen_pipe",
    "write_all",
]

P = ParamSpec("P")
T = TypeVar("T")

TMPFILE_PREFIX = ".tmp-object-"
"""What temporary files are called where O_TMPFILE is refused; composefs-rs uses the same name."""

SYMLINK_PREFIX = ".symlink-"
"""What links are called, in the root of the repository, until they are renamed; composefs-rs uses the same name."""
_ATTEMPTS = 16
_REFUSED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EISDIR, errno.EINVAL)
"""What kernels and file systems without O_TMPFILE answer (open(2))."""

_AT_EMPTY_PATH = 0x1000  # linux/fcntl.h
_NO_EMPTY_PATH = (errno.ENOENT, errno.EPERM, errno.EINVAL)
"""What linkat(2) answers to whoever may not use AT_EMPTY_PATH; the first one has other meanings, too."""

_READ_SIZE = 1 << 20
_FICLONE = 0x40049409  # linux/fs.h, _IOW(0x94, 9, int)
_NO_CLONE = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ETXTBSY, errno.EPERM)
"""What ioctl_ficlone(2) answers where two files cannot share content."""
_NO_COPY_RANGE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)
"""What copy_file_range(2) answers where it cannot copy between two files."""

_TMPFILE_FLAGS = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux/falloc.h
_libc = ctypes.CDLL(None, use_errno=True)

_tmpfile_refused: set[int] = set()
"""Devices (st_dev) that refused O_TMPFILE."""


@contextlib.contextmanager
def opened(path: str, flags: int, *, dir_fd: int | None = None) -> Iterator[int]:
    """Open *path* for the time of the block; an error in it that names no path is one of this file."""
    fd = os.open(path, flags | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        yield fd
    except OSError as error:
        if not isinstance(error.filename, str):  # of a call with a descriptor: nothing, or its number
            error.filename = path
        raise
    finally:
        os.close(fd)


def place(error: OSError, directory: str) -> None:
    """Let *error* name the path that it is about: *directory*, or what its own one means relative to that.

    A path below *directory* is left alone: the error has been here before.
    """
    # Who makes a link or renames has two names, of which the second is the one to be.
    name = next((each for each in (error.filename2, error.filename) if isinstance(each, str)), "")
    if name != directory and not name.startswith(f"{directory}/"):
        error.filename, error.filename2 = os.path.join(directory, "" if name == "." else name).rstrip("/"), None


@contextlib.contextmanager
def whole_paths(directory: str) -> Iterator[None]:
    """Let errors of a block that name a relative path, which is one below *directory*, name the whole one."""
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str) and not os.path.isabs(error.filename):
            place(error, directory)
        raise


@contextlib.contextmanager
def naming(directory: str) -> Iterator[None]:
    """`place` for all errors of a block."""
    try:
        yield
    except OSError as error:
        place(error, directory)
        raise


def uninterrupted(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call what Python does not call again itself after EINTR, which network and user-space file systems answer."""
    while True:
        try:
            return call(*args, **kwargs)
        except InterruptedError:
            continue


def path_of(fd: int) -> str | None:
    """Where an open file is, for messages; None if that cannot be told."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}").removesuffix(" (deleted)")
    except OSError:
        return None


def widen_pipe(fd: int, size: int) -> None:
    """Let a pipe hold *size* bytes, so that its two ends meet less often; as it is, if that is not allowed."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)


@contextlib.contextmanager
def naming_descriptor(fd: int) -> Iterator[None]:
    """Let errors of a block, which are all of one open file, name it."""
    try:
        yield
    except OSError as error:
        error.filename = path_of(fd)
        raise


def make_directory(path: str, mode: int, *, dir_fd: int) -> None:
    """Create one directory; that it exists is fine."""
    with contextlib.suppress(FileExistsError):
        uninterrupted(os.mkdir, path, mode, dir_fd=dir_fd)


def write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    """Write the whole of *data*, however many calls it takes; an error names the file, or the directory it is in."""
    view = memoryview(data).cast("B")
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError as error:
        path = path_of(fd)
        # What has no name is called by its inode's number.
        error.filename = os.path.dirname(path) if path and os.path.basename(path).startswith("#") else path
        raise


def clone_content(source: int, target: int) -> bool:
    """Let the empty file *target* share the content of *source* (ioctl_ficlone(2)); False where that cannot be."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno not in _NO_CLONE:
            raise
        return False
    return True


def copy_content(source: int, target: int) -> int:
    """Copy a file from its start to its end, sharing the content where the file system can; returns its size."""
    size = 0
    try:
        while count := os.copy_file_range(source, target, 1 << 30, size, size):
            size += count
    except OSError as error:
        if error.errno not in _NO_COPY_RANGE:
            raise
    # Also where nothing was copied without an error, as some file systems do.
    while piece := os.pread(source, _READ_SIZE, size):
        size += os.pwrite(target, piece, size)
    return size


# -- temporary files ---------------------------------------------------------------------------


class Tmpfile:
    """A file that nobody sees before `link` or `replace`; the owner ends with `discard` in any case.

    It has no name; where the file system cannot do that (O_TMPFILE), it has one that begins with `TMPFILE_PREFIX`.
    """

    __slots__ = ("_dir_fd", "_path", "fd")

    _by_descriptor: ClassVar[bool] = True
    """Links need no walk through /proc, as far as is known; that needs CAP_DAC_READ_SEARCH or Linux 6.10."""

    def __init__(self, fd: int, path: str | None, dir_fd: int | None = None) -> None:
        """Own *fd*, which has the name *path*, below *dir_fd* if that is given, or none."""
        self.fd: int = fd
        """Open for reading and writing."""
        self._path, self._dir_fd = path, dir_fd

    @classmethod
    def create(cls, directory: str, mode: int, *, dir_fd: int) -> Tmpfile:
        """Make one in *directory*, below *dir_fd*; its link must be on the same file system."""
        if not _tmpfile_refused or os.stat(directory, dir_fd=dir_fd).st_dev not in _tmpfile_refused:
            try:
                with opened_beneath(directory, os.O_PATH | os.O_DIRECTORY, dir_fd=dir_fd) as fd:
                    return cls(os.open(".", _TMPFILE_FLAGS, mode, dir_fd=fd), None)
            except OSError as error:
                if error.errno not in _REFUSED:
                    raise
        tmpfile = cls._create_named(directory, mode, dir_fd)
        with contextlib.suppress(OSError):  # then it is tried again
            _tmpfile_refused.add(os.fstat(tmpfile.fd).st_dev)
        return tmpfile

    @classmethod
    def _create_named(cls, directory: str, mode: int, dir_fd: int) -> Tmpfile:
        for _ in range(_ATTEMPTS):
            path = f"{directory}/{TMPFILE_PREFIX}{secrets.token_hex(6)}"
            with contextlib.suppress(FileExistsError):
                with opened_parent(path, dir_fd=dir_fd) as (parent, name):
                    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode, dir_fd=parent)
                found = path_of(fd)
                return cls(fd, found) if found else cls(fd, path, dir_fd)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)

    @classmethod
    def adopt(cls, fd: int) -> Tmpfile:
        """Take over a descriptor that `create` made and somebody else has had since."""
        path = path_of(fd) if os.fstat(fd).st_nlink else None
        return cls(fd, path if path and os.path.basename(path).startswith(TMPFILE_PREFIX) else None)

    def make_read_only(self) -> None:
        """Exchange the descriptor, which keeps its number: fs-verity refuses files that are open for writing."""
        reader = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.dup2(reader, self.fd, inheritable=False)
        finally:
            os.close(reader)

    def link(self, path: str, *, dir_fd: int) -> None:
        """Give the file its name, atomically.

        Raises:
            FileExistsError: *path* exists; the file is as before.
        """
        with opened_parent(path, dir_fd=dir_fd) as (fd, name):
            self._link(name, fd)

    def _link(self, name: str, dir_fd: int) -> None:
        if self._path is None:
            if not (Tmpfile._by_descriptor and _link_descriptor(self.fd, name, dir_fd)):
                uninterrupted(os.link, f"/proc/self/fd/{self.fd}", name, dst_dir_fd=dir_fd, follow_symlinks=True)
                Tmpfile._by_descriptor = False
        else:
            uninterrupted(os.link, self._path, name, src_dir_fd=self._dir_fd, dst_dir_fd=dir_fd)
            uninterrupted(os.unlink, self._path, dir_fd=self._dir_fd)
            self._path = None

    def replace(self, path: str, *, dir_fd: int) -> None:
        """Put the file in the place of what stands at *path*, atomically."""
        with opened_parent(path, dir_fd=dir_fd) as (fd, name):
            if self._path is None:
                beside = f"{TMPFILE_PREFIX}{secrets.token_hex(6)}"
                self._link(beside, fd)
                try:
                    uninterrupted(os.rename, beside, name, src_dir_fd=fd, dst_dir_fd=fd)
                except BaseException:
                    _try_to_unlink(beside, fd)
                    raise
            else:
                uninterrupted(os.rename, self._path, name, src_dir_fd=self._dir_fd, dst_dir_fd=fd)
                self._path = None

    def discard(self) -> None:
        """Close the descriptor, and remove the file, if that is possible, if it has not got its name."""
        try:
            if self._path is not None:
                _try_to_unlink(self._path, self._dir_fd)
        finally:
            os.close(self.fd)


def _try_to_unlink(path: str, dir_fd: int | None) -> None:
    """Remove a temporary name; otherwise it is one of those that gc removes, and what led here is what counts."""
    with contextlib.suppress(OSError):
        uninterrupted(os.unlink, path, dir_fd=dir_fd)


def _link_descriptor(fd: int, path: str, dir_fd: int) -> bool:
    """Link a file that has no name; False if that has to be tried another way."""
    while _libc.linkat(fd, b"", dir_fd, os.fsencode(path), _AT_EMPTY_PATH):
        number = ctypes.get_errno()
        if number in _NO_EMPTY_PATH:
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number), path)
    return True


# -- symbolic links ----------------------------------------------------------------------------


def replace_symlink(target: str, name: str, *, dir_fd: int) -> None:
    """Make *name* a symbolic link to *target*, atomically replacing another link.

    An equal link is left untouched.  A crash leaves the old link or the new one, and perhaps a
    ``.symlink-…`` directly in the directory *dir_fd*.
    """
    with contextlib.suppress(FileExistsError):
        make_symlink(target, name, dir_fd=dir_fd)
        return
    with contextlib.suppress(FileNotFoundError):  # somebody removed it meanwhile
        if os.readlink(name, dir_fd=dir_fd) == target:
            return
    for _ in range(_ATTEMPTS):
        temporary = f"{SYMLINK_PREFIX}{secrets.token_hex(6)}"
        with contextlib.suppress(FileExistsError):
            make_symlink(target, temporary, dir_fd=dir_fd)
            break
    else:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), temporary)
    try:
        uninterrupted(os.rename, temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except BaseException:
        _try_to_unlink(temporary, dir_fd)
        raise


def make_symlink(target: str, name: str, *, dir_fd: int) -> None:
    """Make *name* a symbolic link to *target*; an error names *name*, not the target."""
    try:
        uninterrupted(os.symlink, target, name, dir_fd=dir_fd)
    except OSError as error:
        error.filename, error.filename2 = name, None
        raise


# -- flushes -----------------------------------------------------------------------------------


def syncfs(fd: int) -> None:
    """Flush everything that was written to the file system of *fd* before the call (syncfs(2))."""
    while _libc.syncfs(fd):
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number), path_of(fd))


def punch_hole(fd: int, length: int) -> None:
    """Give back the memory or blocks of the first *length* bytes of a file, whose size stays (fallocate(2))."""
    mode = _PUNCH_HOLE | _KEEP_SIZE
    while _libc.fallocate(fd, mode, ctypes.c_int64(0), ctypes.c_int64(length)):
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number), path_of(fd))


def fsync_directory(path: str, *, dir_fd: int) -> None:
    """Make the names in a directory durable."""
    with opened_beneath(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=dir_fd) as fd:
        os.fsync(fd)
