"""Where the documents and blobs of an image are, by name: the interface, and a directory.

Owns opening files of an untrusted directory: only regular ones are opened, and links are followed, since build tools
make image directories of links to their caches.  Does not own what is in them (`resolving`).  Everything here blocks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from ..._sys import files
from ...errors import OciError, TransportError
from ..documents import Descriptor, content_hasher
from .base import LocalBlob

__all__ = ["BlobStore", "DirectoryStore", "MissingError", "blob_name", "check_size"]


class MissingError(TransportError):
    """Nothing of that name is there."""


class BlobStore(Protocol):
    """Byte strings by name; names are relative paths, such as ``index.json`` and ``blobs/sha256/…``."""

    def path(self, name: str) -> str:
        """What messages call *name*."""
        ...

    def has(self, name: str) -> bool:
        """Whether there is anything of that name."""
        ...

    def read(self, name: str, limit: int) -> bytes:
        """The content of a document.

        Raises:
            MissingError: it is not there.
            TransportError: it is no regular file.
            OciError: it is larger than *limit* bytes.
        """
        ...

    def open(self, name: str) -> AbstractContextManager[LocalBlob]:
        """A blob, whole and as it is, for the time of the block.

        Raises:
            MissingError, TransportError
        """
        ...


class DirectoryStore:
    """A `BlobStore` of the files of a directory."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory: Path = Path(directory)

    def file(self, name: str) -> Path:
        """The file of that name."""
        return self.directory / name

    def path(self, name: str) -> str:
        """Return what messages call the file *name*."""
        return str(self.file(name))

    def has(self, name: str) -> bool:
        """True if the directory has a file *name*."""
        return self.file(name).exists()

    def read(self, name: str, limit: int) -> bytes:
        """Return the content of the file *name*, of at most *limit* bytes."""
        with files.naming(self.path(name)), _open_regular(self.file(name)) as file:
            raw = file.read(limit + 1)
        if len(raw) > limit:
            raise OciError(self.path(name), f"it is larger than the limit of {limit} bytes")
        return raw

    @contextmanager
    def open(self, name: str) -> Iterator[LocalBlob]:
        """Open the regular file *name*, which is closed on leaving."""
        path = self.file(name)
        with _open_regular(path) as file:
            with files.naming(str(path)):
                size = os.fstat(file.fileno()).st_size
            yield LocalBlob(file.fileno(), size, str(path))


def _open_regular(path: Path) -> BinaryIO:
    """Open a file for reading.

    Raises:
        TransportError: it is missing, or no regular file (opening a pipe would wait for a writer).
    """
    try:
        if not path.is_file():
            if path.exists():
                raise TransportError(f"{path} is not a regular file")
            raise MissingError(f"{path} is missing")
        return open(path, "rb")
    except FileNotFoundError:
        raise MissingError(f"{path} is missing") from None


def blob_name(digest: str) -> str:
    """Where a blob is in an image layout.  Any digest but one that can be verified is refused."""
    content_hasher(f"blob {digest}", digest)
    algorithm, _, digits = digest.partition(":")
    return f"blobs/{algorithm}/{digits}"


def check_size(descriptor: Descriptor, found: int, what: str = "") -> None:
    """Compare a size with what the descriptor says.

    Raises:
        OciError: it is another one.
    """
    if found != descriptor.size:
        raise OciError(
            what or f"blob {descriptor.digest}", f"it has {found} bytes, its descriptor says {descriptor.size}"
        )
