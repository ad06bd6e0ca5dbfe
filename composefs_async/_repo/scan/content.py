"""The content of scanned files: digests of many at a time, with or without storing them.

Owns batches of open files, and noticing that a file changed meanwhile.  Does not own walking over directories
(`scan`), nor the threads (`scan_batches`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final, NamedTuple, NoReturn

from ... import fsverity
from ..._sys import files, verity
from ...digest import Algorithm, ObjectId
from ...errors import AlgorithmMismatchError, IntegrityError, VerityMissingError, VerityNotSupportedError
from ...tree.inodes import ExternalFile
from .. import batch, objects
from ..metadata import Metadata
from ..state import RepoState
from .workers import Batched, Workers

__all__ = [
    "Batches",
    "Contents",
    "FlatState",
    "OpenFile",
    "digest_contents",
    "measure_file",
    "refuse_changed",
    "store_contents",
]

_MAX_FILES: Final = 32
"""In a batch, or fewer (`Workers.share`); with the limit of running batches this bounds the open descriptors."""
_MAX_BYTES: Final = 8 << 20
_READ_SIZE: Final = 1 << 20


class OpenFile:
    """A regular file to be read, and the inode that gets its digest."""

    __slots__ = ("content", "fd", "inode", "path", "status")

    def __init__(self, fd: int, status: os.stat_result, inode: ExternalFile, path: Callable[[], str]) -> None:
        self.fd = fd
        self.status = status
        """When it was opened."""
        self.inode = inode
        self.path = path
        """For errors."""
        self.content: bytes | None = None
        """If it has been read already."""

    def check_unchanged(self) -> None:
        """Raise IntegrityError if the file is not as it was when it was opened."""
        now, then = os.fstat(self.fd), self.status
        if (now.st_size, now.st_mtime_ns, now.st_ctime_ns) != (then.st_size, then.st_mtime_ns, then.st_ctime_ns):
            refuse_changed(self.path())


class Contents(NamedTuple):
    """What is done with the content of files."""

    work: Callable[[Sequence[OpenFile]], list[ObjectId]]
    """Returns the digests of files in their order; called from several threads."""
    read_max: int = 0
    """Files of up to so many bytes have been read before."""


def refuse_changed(path: str) -> NoReturn:
    raise IntegrityError(f"{path} changed while it was read; scan again when nothing writes there")


# -- batches -----------------------------------------------------------------------------------


class Batches(Batched[list[OpenFile], list[ObjectId]]):
    """Gives files to worker threads, which find the digests of their inodes.

    Owns the descriptors of the files from `add` on.
    """

    def __init__(self, contents: Contents, workers: Workers) -> None:
        super().__init__(workers)
        self._contents = contents
        self._files: list[OpenFile] = []
        self._size = 0
        self._max_files = workers.share(_MAX_FILES)

    def add(self, file: OpenFile) -> None:
        """Take over *file*; its inode has a digest after the block."""
        self._files.append(file)
        size = file.status.st_size
        if size <= self._contents.read_max:
            file.content = _read(file)
        self._size += size
        if len(self._files) >= self._max_files or self._size >= _MAX_BYTES:
            self.begin()

    def take_batch(self) -> list[OpenFile]:
        files, self._files, self._size = self._files, [], 0
        return files

    def submit(self, collected: list[OpenFile]) -> Future[list[ObjectId]]:
        return self.workers.submit(self._contents.work, collected)

    def answer(self, collected: list[OpenFile], result: list[ObjectId]) -> None:
        for file, object_id in zip(collected, result, strict=True):
            file.check_unchanged()
            file.inode.digest = object_id

    def close(self, collected: list[OpenFile]) -> None:
        for file in collected:
            os.close(file.fd)


# -- what is done with content -----------------------------------------------------------------


def digest_contents(algorithm: Algorithm) -> Contents:
    """Only compute digests."""

    def digest(opened: Sequence[OpenFile]) -> list[ObjectId]:
        return _digest_native(opened, algorithm) if batch.NATIVE else _digest_python(opened, algorithm)

    return Contents(digest)


def _digest_native(files: Sequence[OpenFile], algorithm: Algorithm) -> list[ObjectId]:
    from ..._native._core import digest_files

    found: list[ObjectId] = []
    for file, outcome in zip(files, digest_files([file.fd for file in files], algorithm.number), strict=True):
        if isinstance(outcome, int):
            raise OSError(outcome, os.strerror(outcome), file.path())
        found.append(ObjectId(outcome))
    return found


def _digest_python(files: Sequence[OpenFile], algorithm: Algorithm) -> list[ObjectId]:
    found: list[ObjectId] = []
    for file in files:
        hasher = fsverity.Hasher(algorithm)
        offset = 0
        while piece := os.pread(file.fd, _READ_SIZE, offset):
            hasher.update(piece)
            offset += len(piece)
        found.append(hasher.id())
    return found


def store_contents(state: RepoState) -> Contents:
    """Store the files as objects.  Not durable before a flush of the file system."""
    _ = state.objects_fd  # opened now, not when there may be too many

    def store(files: Sequence[OpenFile]) -> list[ObjectId]:
        read = [file for file in files if file.content is not None]
        stored = batch.results(batch.store_batch(state, [file.content for file in read if file.content is not None]))
        ids = {file: each.id for file, each in zip(read, stored, strict=True)}
        for file in read:
            file.content = None
        return [ids.get(file) or _store_large(state, file) for file in files]

    return Contents(store, batch.MAX_BYTES)


def _read(file: OpenFile) -> bytes:
    size = file.status.st_size
    content = os.pread(file.fd, size + 1, 0)
    while content and len(content) < size and (piece := os.pread(file.fd, size + 1 - len(content), len(content))):
        content += piece
    if len(content) != size:
        refuse_changed(file.path())
    return content


def _store_large(state: RepoState, file: OpenFile) -> ObjectId:
    tmpfile = objects.create_object_tmpfile(state)
    try:
        size = files.copy_content(file.fd, tmpfile.fd)
    except BaseException:
        tmpfile.discard()
        raise
    if size != file.status.st_size:
        tmpfile.discard()
        refuse_changed(file.path())
    return objects.finalize_object_tmpfile(state, tmpfile.fd, size).id


class FlatState(RepoState):
    """Objects directly below a directory (``XX/REST``), as ``mkcomposefs --digest-store`` keeps them.

    They are protected by fs-verity where the file system can do it.
    """

    def __init__(self, path: str, algorithm: Algorithm) -> None:
        """Open the directory *path*, made with its parents if it is not there; `close` it."""
        os.makedirs(path, 0o755, exist_ok=True)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        super().__init__(path, fd, Metadata.new(algorithm, None), secure=False)

    def _open_objects(self) -> int:
        return os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)


def measure_file(path: str | os.PathLike[str], algorithm: Algorithm) -> ObjectId:
    """The digest by which the kernel guards the file at *path*, or if it does not, the computed one."""
    with files.opened(os.fspath(path), os.O_RDONLY) as fd:
        with contextlib.suppress(VerityMissingError, VerityNotSupportedError, AlgorithmMismatchError):
            return verity.measure(fd, algorithm, os.fspath(path))
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
        inode = ExternalFile(status.st_mode, 1, 0, 0, 0, (), status.st_size, None)
        file = OpenFile(fd, status, inode, lambda: os.fspath(path))
        (found,) = digest_contents(algorithm).work([file])
        file.check_unchanged()
        return found
