"""Real directories as trees.

Owns the walk, metadata, extended attributes and hard links.  Does not own looking at many files at once natively
(`scan_names`), the content of large ones (`scan_content`), nor what is done to a tree before it becomes an image
(`tree.transform`).

Names that change their meaning while they are read are never followed out of the directory: every entry is opened
without following links, and everything is asked of that descriptor.  One descriptor is open for the directory that
is read, however deep it lies, and one for each of a bounded number of directories whose files are being looked at;
when the process has too many, the scan waits for these and goes on.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from ..._sys.mount_table import is_proc_mounted
from ...digest import Algorithm
from ...tree.inodes import NO_XATTRS, Directory, ExternalFile, InlineFile, Inode, Special, Symlink, Xattrs
from .. import batch
from ..state import RepoState
from .content import Batches, Contents, FlatState, OpenFile, digest_contents, refuse_changed, store_contents
from .files import CHANGED, RECORD, Answers, Group, Look, Names, digest_names, store_names, unpack_xattrs
from .workers import Workers

__all__ = ["INLINE_MAX", "FlatState", "ScanOptions", "scan_and_store", "scan_directory"]

Path = str | os.PathLike[str]

INLINE_MAX: Final = 64
"""Files of up to so many bytes lie in the image, as both other programs decide."""

_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: what was a file a moment ago may be a pipe now.
_OPEN_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_OTHER: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class ScanOptions:
    """What of a directory counts."""

    read_xattrs: bool = True
    keep_xattr: Callable[[bytes], bool] | None = None
    """By the name; None keeps all that can be read, labels of SELinux too."""
    devices: bool = True
    """Whether block and character devices become part of the tree."""
    use_epoch: bool = False
    """Every time is 1970-01-01."""
    hard_links: bool = True
    """Names of one file share an inode; otherwise each has its own, as with mkcomposefs."""
    threads: int | None = None
    """For content; None is the number of processors."""


def scan_directory(path: Path, algorithm: Algorithm, options: ScanOptions | None = None) -> Directory:
    """The tree at *path*, with digests of its files, which are stored nowhere.  Blocks for a read of everything.

    Other file systems that are mounted below are part of it.  Times keep their nanoseconds.

    Raises:
        IntegrityError: something changed while it was read.
        OSError: something cannot be read.
    """
    return _scan(path, digest_contents(algorithm), digest_names(algorithm), options or ScanOptions())


def scan_and_store(state: RepoState, path: Path, options: ScanOptions | None = None) -> Directory:
    """Scan a directory, and store all files of more than `INLINE_MAX` bytes as objects; not durable before a flush.

    Raises:
        ReadOnlyRepositoryError, VerityNotSupportedError, and what `scan_directory` does.
    """
    state.require_writable()
    with state.shared():
        return _scan(path, store_contents(state), store_names(state), options or ScanOptions())


def _scan(path: Path, contents: Contents, look: Look, options: ScanOptions) -> Directory:
    with Workers(options.threads) as workers, Batches(contents, workers) as batches:
        scan = _Scan(options, batches, workers)
        with Names(workers, look, INLINE_MAX, options.read_xattrs, scan.take) as names:
            return scan.run(os.fspath(path), names)


class _Frame:
    """A directory on the way from the top to the one that is read."""

    __slots__ = ("directory", "key", "name", "parent", "pending")

    def __init__(self, name: str, parent: _Frame | None, directory: Directory, key: tuple[int, int]) -> None:
        self.name = name
        self.parent = parent
        self.directory = directory
        self.key = key
        """Device and inode number."""
        self.pending: list[str] = []
        """Names of directories in it that are still to be read."""

    def path(self, name: str = "") -> str:
        names = [name] if name else []
        frame: _Frame | None = self
        while frame is not None:
            names.append(frame.name)
            frame = frame.parent
        return "/".join(reversed(names))


class _Scan:
    def __init__(self, options: ScanOptions, batches: Batches, workers: Workers) -> None:
        self._options = options
        self._opening = workers.opening
        self._has_proc = is_proc_mounted()
        self._batches = batches
        self._linked: dict[tuple[int, int], Inode] = {}
        self._xattr_sets: dict[Xattrs, Xattrs] = {}
        self._packed_sets: dict[bytes, Xattrs] = {}

    def run(self, path: str, names: Names[_Frame]) -> Directory:
        """Read everything below *path*, but for what has been given to *names*."""
        self._names = names
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            frame = top = self._open(self._fd, path.rstrip("/"), None)
            while True:
                if frame.pending:
                    frame = self._enter(frame, frame.pending.pop())
                elif frame.parent is None:
                    return top.directory
                else:
                    frame = self._leave(frame.parent)
        finally:
            os.close(self._fd)

    # -- directories

    def _enter(self, parent: _Frame, name: str) -> _Frame:
        """Read the directory *name*; the result is where to go on: there if it has directories, else *parent*."""
        with _named(partial(parent.path, name)):
            fd = self._opening(lambda: os.open(name, _OPEN_DIRECTORY, dir_fd=self._fd))
        frame = parent
        try:
            found = self._open(fd, name, parent)
            parent.directory.children[os.fsencode(name)] = found.directory
            if found.pending:
                self._fd, fd, frame = fd, self._fd, found
        finally:
            os.close(fd)
        return frame

    def _leave(self, parent: _Frame) -> _Frame:
        """Go up by one directory, if what is there still is the *parent* that we came from."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        with _named(parent.path):
            fd = self._opening(lambda: os.open("..", flags, dir_fd=self._fd))
        os.close(self._fd)
        self._fd = fd
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != parent.key:
            refuse_changed(parent.path())
        return parent

    def _open(self, fd: int, name: str, parent: _Frame | None) -> _Frame:
        """Read the directory *fd*, all but the directories in it."""
        status = os.fstat(fd)
        directory = Directory(status.st_mode, 2, status.st_uid, status.st_gid, self._time(status))
        frame = _Frame(name, parent, directory, (status.st_dev, status.st_ino))
        with _named(frame.path):
            directory.xattrs = self._xattrs(fd)
            entries = os.scandir(fd)  # with a copy of the descriptor, which `opening` has left room for
        regular: list[str] = []
        with entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    frame.pending.append(entry.name)
                elif entry.is_file(follow_symlinks=False):
                    regular.append(entry.name)
                else:
                    self._leaf(fd, frame, entry.name, False)
        directory.nlink += len(frame.pending)
        if regular:
            self._files(fd, frame, regular)
        return frame

    # -- regular files

    def _files(self, fd: int, frame: _Frame, names: list[str]) -> None:
        if not batch.NATIVE:
            for name in names:
                self._leaf(fd, frame, name, True)
            return
        try:
            # All at once, because it is a call for each name otherwise.
            self._names.add(frame, fd, os.fsencode("\0".join(names)).split(b"\0"))
        except OSError as error:
            error.filename = error.filename or frame.path()
            raise

    def take(self, answers: Answers[_Frame]) -> None:
        """Make inodes of what was found out about many files."""
        records, ids, epoch = RECORD.iter_unpack(answers.records), iter(answers.ids), self._options.use_epoch
        inode: Inode
        for group in answers.groups:
            children = group.place.directory.children
            for name, record in zip(group.names, records, strict=False):
                device, number, size, seconds, nanoseconds, mode, links, uid, gid, packed, outcome = record
                if outcome:
                    self._take_again(group, os.fsdecode(name), outcome)
                    continue
                mtime_ns = 0 if epoch else seconds * 1_000_000_000 + nanoseconds
                xattrs = self._packed(answers.attributes.read(packed)) if packed else NO_XATTRS
                if size > INLINE_MAX:
                    inode = ExternalFile(mode, 1, uid, gid, mtime_ns, xattrs, size, next(ids))
                else:
                    inode = InlineFile(mode, 1, uid, gid, mtime_ns, xattrs, answers.contents.read(size))
                children[name] = inode if links < 2 else self._link((device, number), inode)

    def _take_again(self, group: Group[_Frame], name: str, outcome: int) -> None:
        if outcome == CHANGED:
            refuse_changed(group.place.path(name))
        self._leaf(group.fd, group.place, name, True)

    def _packed(self, packed: bytes) -> Xattrs:
        found = self._packed_sets.get(packed)
        if found is None:
            found = unpack_xattrs(packed, self._options.keep_xattr)
            self._packed_sets[packed] = found = self._xattr_sets.setdefault(found, found)
        return found

    def _link(self, key: tuple[int, int], inode: Inode) -> Inode:
        """The inode that an earlier name made, if there is one, else *inode* for those that follow."""
        known = self._linked.get(key)
        if known is not None:
            known.nlink += 1
            return known
        if self._options.hard_links:
            self._linked[key] = inode
        return inode

    # -- one by one

    def _leaf(self, directory: int, frame: _Frame, name: str, regular: bool) -> None:
        fd = -1
        try:
            fd = self._opening(lambda: os.open(name, _OPEN_FILE if regular else _OPEN_OTHER, dir_fd=directory))
            status = os.fstat(fd)
            mode = status.st_mode
            if stat.S_ISREG(mode) is not regular or stat.S_ISDIR(mode):
                refuse_changed(frame.path(name))
            inode = self._linked.get((status.st_dev, status.st_ino)) if status.st_nlink > 1 else None
            if inode is not None:
                inode.nlink += 1
            else:
                inode = self._regular(fd, status, frame, name) if regular else self._other(fd, status, frame, name)
                if status.st_nlink > 1 and inode is not None and self._options.hard_links:
                    self._linked[status.st_dev, status.st_ino] = inode
                if type(inode) is ExternalFile:
                    file, fd = OpenFile(fd, status, inode, partial(frame.path, name)), -1
                    self._batches.add(file)
        except OSError as error:
            if error.filename is None or error.filename == name:
                error.filename = frame.path(name)
            raise
        finally:
            if fd >= 0:
                os.close(fd)
        if inode is not None:
            frame.directory.children[os.fsencode(name)] = inode

    def _regular(self, fd: int, status: os.stat_result, frame: _Frame, name: str) -> Inode:
        size, mtime_ns = status.st_size, 0 if self._options.use_epoch else status.st_mtime_ns
        if size > INLINE_MAX:
            return ExternalFile(status.st_mode, 1, status.st_uid, status.st_gid, mtime_ns, self._xattrs(fd), size, None)
        content = os.pread(fd, INLINE_MAX + 1, 0)
        xattrs = self._xattrs(fd)
        if len(content) != size or os.fstat(fd).st_ctime_ns != status.st_ctime_ns:
            refuse_changed(frame.path(name))
        return InlineFile(status.st_mode, 1, status.st_uid, status.st_gid, mtime_ns, xattrs, content)

    def _other(self, fd: int, status: os.stat_result, frame: _Frame, name: str) -> Inode | None:
        """What is no regular file; None if it is not wanted."""
        device = stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode)
        if device and not self._options.devices:
            return None
        # The link of /proc leads to what is open, and if that is a symbolic link not further.
        xattrs = self._xattrs(f"/proc/self/fd/{fd}") if self._has_proc else self._xattrs_of_path(frame, name, status)
        common = status.st_mode, 1, status.st_uid, status.st_gid, self._time(status), xattrs
        if stat.S_ISLNK(status.st_mode):
            return Symlink(*common, os.fsencode(os.readlink("", dir_fd=fd)))
        return Special(*common, status.st_rdev if device else 0)

    def _time(self, status: os.stat_result) -> int:
        return 0 if self._options.use_epoch else status.st_mtime_ns

    def _xattrs(self, where: int | str, *, follow_symlinks: bool = True) -> Xattrs:
        if not self._options.read_xattrs:
            return NO_XATTRS
        try:
            names = os.listxattr(where, follow_symlinks=follow_symlinks)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return NO_XATTRS
            raise
        if not names:
            return NO_XATTRS
        found = tuple(sorted(self._pairs(where, names, follow_symlinks)))
        return self._xattr_sets.setdefault(found, found)

    def _xattrs_of_path(self, frame: _Frame, name: str, status: os.stat_result) -> Xattrs:
        """The attributes of what is no regular file, where /proc does not lead to it."""
        path = frame.path(name)
        xattrs = self._xattrs(path, follow_symlinks=False)
        now = os.stat(path, follow_symlinks=False)
        if (now.st_dev, now.st_ino, now.st_ctime_ns) != (status.st_dev, status.st_ino, status.st_ctime_ns):
            refuse_changed(path)
        return xattrs

    def _pairs(self, where: int | str, names: list[str], follow_symlinks: bool) -> Iterator[tuple[bytes, bytes]]:
        keep = self._options.keep_xattr
        for name in names:
            raw = os.fsencode(name)
            if keep is None or keep(raw):
                yield raw, os.getxattr(where, name, follow_symlinks=follow_symlinks)


@contextmanager
def _named(path: Callable[[], str]) -> Iterator[None]:
    """Errors within the block are about *path*, whatever descriptor the call was made with."""
    try:
        yield
    except OSError as error:
        error.filename = path()
        raise
