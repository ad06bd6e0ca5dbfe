"""A store in a directory: the bytes that a web server can serve as they are, on local disks and NFS alike.

Blobs appear by rename.  References change under a lock (flock) of the directory; before one changes, the file system
is flushed, so that a reference never leads to what a power loss can take.  The version of a key is the sha256 of
its content.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..._sys import files, locks
from ...errors import BlobMissingError, StoreError
from .base import BlobInfo, Buffer, PreconditionError, Stored, Version

__all__ = ["DirectoryStore"]

_PIECE = 1 << 20
_FILE_MODE, _DIRECTORY_MODE = 0o644, 0o755
_LOCK = "gc"
"""The directory whose descriptor carries the lock; made with the store."""


class DirectoryStore:
    """The store below *path*, which need not exist before something is written."""

    def __init__(self, path: str | os.PathLike[str], *, lock_timeout: float = 30.0) -> None:
        self.path: str = os.fspath(path)
        self.url: str = f"file://{os.path.abspath(self.path)}"
        self._lock_timeout = lock_timeout

    def get(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield a blob, or *length* bytes of it from *start* on; `BlobMissingError` if it is missing."""
        try:
            fd = os.open(self._file(key), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            raise BlobMissingError(self.url, key) from None
        except OSError as error:
            raise self._failed(key, error) from error
        return self._pieces(fd, key, start, length)

    def _pieces(self, fd: int, key: str, start: int, length: int | None) -> Iterator[bytes]:
        at, left = start, length
        try:
            while (left is None or left > 0) and (
                piece := os.pread(fd, _PIECE if left is None else min(_PIECE, left), at)
            ):
                at += len(piece)
                left = None if left is None else left - len(piece)
                yield piece
        except OSError as error:
            raise self._failed(key, error) from error
        finally:
            os.close(fd)

    def put(self, key: str, data: Buffer | Path) -> None:
        """Store a blob by an atomic rename."""
        try:
            self._replace(key, data)
        except OSError as error:
            raise self._failed(key, error) from error

    def _replace(self, key: str, data: Buffer | Path) -> None:
        path = self._file(key)
        directory = os.path.dirname(path)
        os.makedirs(directory, _DIRECTORY_MODE, exist_ok=True)
        with files.opened(directory, os.O_RDONLY | os.O_DIRECTORY) as dir_fd:
            tmpfile = files.Tmpfile.create(".", _FILE_MODE, dir_fd=dir_fd)
            try:
                if isinstance(data, Path):
                    with files.opened(os.fspath(data), os.O_RDONLY) as source:
                        files.copy_content(source, tmpfile.fd)
                else:
                    files.write_all(tmpfile.fd, data)
                tmpfile.replace(os.path.basename(path), dir_fd=dir_fd)
            finally:
                tmpfile.discard()

    def swap(self, key: str, data: bytes, expected: Version | None) -> Version:
        """Replace a document under a lock if it still has the version *expected*."""
        try:
            with self._locked():
                found = self._content(key)
                if (None if found is None else _version(found)) != expected:
                    raise PreconditionError(self.url, f"{key} has changed")
                self._flush()
                self._replace(key, data)
                self._flush()
                return _version(data)
        except OSError as error:
            raise self._failed(key, error) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        directory = os.path.join(self.path, _LOCK)
        os.makedirs(directory, _DIRECTORY_MODE, exist_ok=True)
        with files.opened(directory, os.O_RDONLY | os.O_DIRECTORY) as fd:
            if not locks.lock(fd, exclusive=True, timeout=self._lock_timeout):
                raise StoreError(self.url, f"another process has held its lock for {self._lock_timeout:g} seconds")
            yield

    def _flush(self) -> None:
        with files.opened(self.path, os.O_RDONLY | os.O_DIRECTORY) as fd:
            files.syncfs(fd)

    def _content(self, key: str) -> bytes | None:
        try:
            return Path(self._file(key)).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read(self, key: str, limit: int) -> Stored | None:
        """Return a document of at most *limit* bytes with its version; None if it is missing."""
        try:
            with files.opened(self._file(key), os.O_RDONLY | os.O_NONBLOCK) as fd:
                status = os.fstat(fd)
                content = bytearray()
                while len(content) <= limit and (piece := os.read(fd, min(_PIECE, limit + 1 - len(content)))):
                    content += piece
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._failed(key, error) from error
        if len(content) > limit:
            raise StoreError(self.url, f"{key} has more than {limit} bytes")
        return Stored(bytes(content), _version(content), status.st_mtime)

    def head(self, key: str) -> BlobInfo | None:
        """Return the size and age of a blob; None if it is missing."""
        try:
            status = os.stat(self._file(key))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._failed(key, error) from error
        return BlobInfo(key, status.st_size, status.st_mtime)

    def list(self, prefix: str, after: str = "") -> Iterator[BlobInfo]:
        """Yield the blobs whose keys begin with *prefix*, sorted, after the key *after*."""
        directory = prefix.rpartition("/")[0]
        try:
            return iter([each for each in self._below(directory) if each.key.startswith(prefix) and each.key > after])
        except OSError as error:
            raise self._failed(prefix, error) from error

    def _below(self, directory: str) -> Iterator[BlobInfo]:
        """All files below a directory, sorted; temporary ones are left out."""
        try:
            with os.scandir(os.path.join(self.path, directory)) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in found:
            key = f"{directory}/{entry.name}" if directory else entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from self._below(key)
            elif not entry.name.startswith("."):
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    continue
                yield BlobInfo(key, status.st_size, status.st_mtime)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete blobs; those that are missing are skipped."""
        for key in keys:
            try:
                os.unlink(self._file(key))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise self._failed(key, error) from error

    def close(self) -> None:
        """Do nothing: no descriptor stays open between calls."""

    def _file(self, key: str) -> str:
        if any(part in ("", ".", "..") or "\0" in part for part in key.split("/")):
            raise StoreError(self.url, f"{key!r} is no key")
        return os.path.join(self.path, key)

    def _failed(self, key: str, error: OSError) -> StoreError:
        return StoreError(self.url, f"{key}: {error.strerror or error}")


def _version(content: bytes | bytearray) -> Version:
    return hashlib.sha256(content).hexdigest()
