"""Images in the directories of containers/image, ``dir:PATH``: a manifest, and each blob under its digest.

Owns their file names and their version (containers/image, directory/directory_transport.go).  Signatures are ignored.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..._aio.hops import hop
from ...digest import sha256_content_digest
from ...errors import ImageNotFoundError, InvalidNameError, OciError
from ..documents import Descriptor
from ..jsondoc import DOCUMENT_LIMIT, brief
from ..limits import Limits
from ..platforms import Platform
from .base import LocalBlob, ResolvedImage
from .layout import opened_blob
from .resolving import Resolving
from .store import DirectoryStore, blob_name

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["DirectorySource", "check_reference", "open_reference"]

_VERSION = re.compile(r"Directory Transport Version: 1\.([0-9]{1,4})\n?")
_NEWEST = 2
_VERSION_LIMIT = 64  # bytes


def check_reference(reference: str) -> None:
    """Check the spelling of ``dir:PATH``.

    Raises:
        InvalidNameError: the path is missing.
    """
    if not reference.partition(":")[2]:
        raise InvalidNameError(reference, "the path is missing: dir:PATH")


@asynccontextmanager
async def open_reference(reference: str, limits: Limits) -> AsyncIterator[DirectorySource]:
    """The image in a directory.

    Raises:
        InvalidNameError: as `check_reference`.
    """
    check_reference(reference)
    yield DirectorySource(reference.partition(":")[2], document_limit=limits.document_size)


class DirectorySource:
    """A directory with one image, or an index and what it lists, as an `ImageSource`."""

    def __init__(self, directory: str | PathLike[str], *, document_limit: int = DOCUMENT_LIMIT) -> None:
        self._directory, self._limit = Path(directory), document_limit
        self._store: _Files | None = None

    async def resolve(
        self, *, tag: str | None = None, digest: str | None = None, platform: Platform | None = None
    ) -> ResolvedImage:
        """Find the image and read its documents, like `ImageSource.resolve`; it has no tag."""
        return await hop(self._resolve, tag, digest, platform)

    def _resolve(self, tag: str | None, digest: str | None, platform: Platform | None) -> ResolvedImage:
        reference = f"dir:{self._directory}"
        if not self._directory.is_dir():
            raise ImageNotFoundError(reference, reason="there is no such directory")
        if tag is not None:
            raise ImageNotFoundError(reference, reason="images in such directories have no tags")
        self._store = store = _Files(self._directory, reference, self._limit)
        return Resolving(store, reference, self._limit).by_digest(digest or store.manifest_digest, platform)

    def open_blob(self, descriptor: Descriptor) -> AbstractAsyncContextManager[LocalBlob]:
        """Open a blob of the image, like `ImageSource.open_blob`."""
        return self._open_blob(descriptor)

    @asynccontextmanager
    async def _open_blob(self, descriptor: Descriptor) -> AsyncIterator[LocalBlob]:
        if self._store is None:
            await self.resolve()
        assert self._store is not None
        async with opened_blob(self._store, blob_name(descriptor.digest), descriptor) as blob:
            yield blob


class _Files(DirectoryStore):
    """The files by the names that they would have in an OCI layout."""

    def __init__(self, directory: Path, reference: str, limit: int) -> None:
        super().__init__(directory)
        self._check_version(reference)
        self.manifest_digest: str = sha256_content_digest(self.read("manifest.json", limit))

    def _check_version(self, reference: str) -> None:
        if not self.has("version"):  # skopeo takes it without one
            return
        text = self.read("version", _VERSION_LIMIT).decode(errors="replace")
        found = _VERSION.fullmatch(text)
        if found is None or int(found[1]) > _NEWEST:
            raise OciError(reference, f"version {brief(text.strip())} of such directories is not supported")

    def file(self, name: str) -> Path:
        if not name.startswith("blobs/"):
            return super().file(name)
        algorithm, digits = name.split("/")[1:]
        if f"{algorithm}:{digits}" == self.manifest_digest:
            return super().file("manifest.json")
        plain = digits if algorithm == "sha256" else f"{algorithm}-{digits}"
        instance = super().file(f"{plain}.manifest.json")
        return instance if instance.exists() else super().file(plain)
