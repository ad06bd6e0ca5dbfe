"""Images in an OCI image directory (OCI image specification, image-layout.md): ``oci:DIR``.

Owns the references, and a source of images over a directory.  Does not own finding an image in it (`resolving`), nor
files (`store`).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..._aio.hops import hop, opening_hop
from ...errors import ImageNotFoundError, InvalidNameError, OciError
from ...naming import LayoutReference, parse_layout_reference
from ..documents import Descriptor
from ..jsondoc import DOCUMENT_LIMIT
from ..limits import Limits
from ..platforms import Platform
from .base import Blob, LocalBlob, ResolvedImage
from .resolving import Resolving, Wanted
from .store import BlobStore, DirectoryStore, blob_name, check_size

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["OciLayoutSource", "check_reference", "locate", "open_reference", "opened_blob"]


def locate(text: str) -> LayoutReference:
    """Tell directory and tag in ``oci:DIR[:TAG]`` apart by the directories that there are.  Blocks.

    An image directory counts before any other directory.

    Raises:
        OciError: *text* is no such reference.
    """
    for is_directory in (_is_image_directory, os.path.isdir):
        reference = parse_layout_reference(text, is_directory)
        if is_directory(reference.directory):
            break
    return reference


def _is_image_directory(path: str) -> bool:
    return os.path.isfile(os.path.join(path, "oci-layout"))


class OciLayoutSource:
    """An OCI image directory as a source of images; an `ImageSource`.

    Nothing is kept open between calls.  Files are read in worker threads.

    Args:
        tag: of the image that is meant where `resolve` is not told.
        digest: the same, by the digest of its manifest or of an index.
        position: the same, by its place in index.json, from 0.
        document_limit: on the size of each manifest, index and config, in bytes.
    """

    def __init__(
        self,
        directory: str | PathLike[str],
        *,
        tag: str | None = None,
        digest: str | None = None,
        position: int | None = None,
        document_limit: int = DOCUMENT_LIMIT,
    ) -> None:
        self._directory = Path(directory)
        self._store = DirectoryStore(directory)
        self._default = tag, digest, position
        self._limit = document_limit

    @property
    def directory(self) -> Path:
        """Where the images are."""
        return self._directory

    @property
    def is_bound(self) -> bool:
        """Whether the source was made for one image of the directory."""
        return self._default != (None, None, None)

    async def resolve(
        self,
        *,
        tag: str | None = None,
        digest: str | None = None,
        platform: Platform | None = None,
        position: int | None = None,
    ) -> ResolvedImage:
        """Find one image and read its documents, like `ImageSource.resolve`.

        Of tag, digest and *position*, the index of an entry of index.json, at most one can be given.  Without them it
        is the image that the source was made for, or else all entries count.
        """
        if [tag, digest, position].count(None) == 3:
            tag, digest, position = self._default
        reference = LayoutReference(str(self._directory), tag, digest, position)
        if [tag, digest, position].count(None) < 2:
            raise OciError(str(reference), "give a tag or a digest, not both")
        return await hop(self._resolve, str(reference), Wanted(tag, digest, position), platform)

    def _resolve(self, reference: str, wanted: Wanted, platform: Platform | None) -> ResolvedImage:
        if not self._directory.exists():
            raise ImageNotFoundError(reference, reason="there is no such directory")
        if not (self._directory / "oci-layout").is_file():
            raise OciError(str(self._directory), "not an OCI image directory: it has no file oci-layout")
        return Resolving(self._store, reference, self._limit).resolve(wanted, platform)

    def open_blob(self, descriptor: Descriptor) -> AbstractAsyncContextManager[Blob]:
        """Open a blob, as `ImageSource.open_blob` says; it is always a `LocalBlob`."""
        return opened_blob(self._store, blob_name(descriptor.digest), descriptor)


@asynccontextmanager
async def opened_blob(store: BlobStore, name: str, descriptor: Descriptor) -> AsyncIterator[LocalBlob]:
    """A blob of *store* for the time of the block, whose size is what the descriptor says.

    Raises:
        OciError: it has another size.
        TransportError: it is not there.
    """

    def opened(stack: ExitStack) -> LocalBlob:
        blob = stack.enter_context(store.open(name))
        check_size(descriptor, blob.size)
        return blob

    with ExitStack() as stack:
        yield await opening_hop(lambda _: None, opened, stack)


def check_reference(reference: str) -> None:
    """Check the spelling of ``oci:DIR[:TAG]``, ``oci:DIR:@INDEX`` or ``oci:DIR@DIGEST``.  Blocks.

    Raises:
        InvalidNameError: *reference* is not spelled so.
    """
    _located(reference)


@asynccontextmanager
async def open_reference(reference: str, limits: Limits) -> AsyncIterator[OciLayoutSource]:
    """The image directory, and the image in it, that *reference* means.

    Raises:
        InvalidNameError: as `check_reference`.
    """
    place = await hop(_located, reference)
    named = {"tag": place.tag, "digest": place.digest}
    yield OciLayoutSource(place.directory, **named, position=place.position, document_limit=limits.document_size)


def _located(reference: str) -> LayoutReference:
    try:
        return locate(reference)
    except OciError as error:
        raise InvalidNameError(reference, error.reason) from None
