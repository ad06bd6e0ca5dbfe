"""Images in archives: ``oci-archive:FILE``, ``docker-archive:FILE``, and ``archive:FILE`` for either, by its content.

Owns the references, and opening the file: an uncompressed archive in a regular file is indexed and read where its
members are; a pipe, a socket, or a compressed archive is read once, without a temporary file (`oci.one_pass`).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import replace

from ..._aio.hops import hop, opening_hop
from ...digest import check_content_digest
from ...errors import FormatError, InvalidNameError, OciError
from ..documents import Descriptor
from ..importing.decompress import HEAD_SIZE, Compression, detect
from ..importing.one_pass import OnePassArchive
from ..limits import Limits
from ..platforms import Platform
from .archive_image import ArchiveWanted, FoundImage, find_image
from .arriving import FileBytes, PipeBytes, open_input
from .base import Blob, BlockingBlob, ImageSource, LocalBlob, ResolvedImage
from .members import ArchiveStore
from .plain import PlainReader, is_packed, unpacked_size
from .store import blob_name, check_size

__all__ = ["ArchiveSource", "check_reference", "open_reference"]

_DIGEST_SUFFIX = re.compile(r"(?P<file>.*)@(?P<digest>sha(?:256|384|512):[^/]*)", re.DOTALL)
_POSITION = re.compile(r"@([0-9]{1,9})")


def _parse(reference: str) -> tuple[str, ArchiveWanted]:
    """The file and the image; the file ends at the first colon."""
    transport, _, rest = reference.partition(":")
    digest = None
    if found := _DIGEST_SUFFIX.fullmatch(rest):
        if transport == "docker-archive":
            raise InvalidNameError(reference, "an image of a docker-archive has no digest; say @ and its position")
        rest, digest = found["file"], found["digest"]
        try:
            check_content_digest(digest)
        except FormatError as error:
            raise InvalidNameError(reference, str(error)) from None
    file, colon, name = rest.partition(":")
    if not file:
        raise InvalidNameError(reference, f"the file is missing: {transport}:FILE[:NAME]")
    if colon and not name:
        raise InvalidNameError(reference, f"the name after {file!r} is empty")
    if digest is not None and name:
        raise InvalidNameError(reference, "give a name or a digest, not both")
    wanted = ArchiveWanted(transport, reference, digest=digest)
    if not name.startswith("@"):
        return file, replace(wanted, name=name or None)
    position = _POSITION.fullmatch(name)
    if position is None:
        raise InvalidNameError(reference, f"{name[1:]!r} is no position in the archive, which counts from 0")
    return file, replace(wanted, position=int(position[1]))


def check_reference(reference: str) -> None:
    """Check the spelling of ``TRANSPORT:FILE[:NAME]``, ``TRANSPORT:FILE:@INDEX`` or ``oci-archive:FILE@DIGEST``.

    Raises:
        InvalidNameError: *reference* is not spelled so.
    """
    _parse(reference)


@asynccontextmanager
async def open_reference(reference: str, limits: Limits) -> AsyncIterator[ImageSource]:
    """Open the archive that *reference* means; one that can be read but once is a `OnePassArchive`.

    Raises:
        InvalidNameError: as `check_reference`.
        ImageNotFoundError: there is no such file.
        TarError, OciError: it is no archive.
    """
    file, wanted = _parse(reference)
    with ExitStack() as stack:
        yield await opening_hop(lambda _: None, _open, stack, file, wanted, limits)


def _open(stack: ExitStack, file: str, wanted: ArchiveWanted, limits: Limits) -> ImageSource:
    colon = "; a file ends at the first colon: give one with a colon as /dev/stdin" if wanted.name else ""
    fd = open_input(file, wanted.reference, colon)
    stack.callback(os.close, fd)
    status = os.fstat(fd)
    if stat.S_ISDIR(status.st_mode):
        raise OciError(wanted.reference, "it is a directory, not an archive: use oci: or dir:")
    if not stat.S_ISREG(status.st_mode):
        return OnePassArchive(PipeBytes(fd, file), wanted, limits)
    start = os.lseek(fd, 0, os.SEEK_CUR)
    if detect(os.pread(fd, HEAD_SIZE, start)) is not Compression.NONE:
        return OnePassArchive(FileBytes(fd, file, start), wanted, limits)
    return ArchiveSource(ArchiveStore(fd, file, start), wanted, limits)


class ArchiveSource:
    """An uncompressed archive in a regular file as an `ImageSource`.

    Args:
        store: of its members; stays open.
        wanted: the image that is meant where `resolve` is not told.
    """

    def __init__(self, store: ArchiveStore, wanted: ArchiveWanted, limits: Limits) -> None:
        self._store, self._wanted, self._limits = store, wanted, limits
        self._members: dict[str, str] = {}

    async def resolve(
        self, *, tag: str | None = None, digest: str | None = None, platform: Platform | None = None
    ) -> ResolvedImage:
        """Find one image and read its documents, like `ImageSource.resolve`."""
        wanted = self._wanted
        if tag is not None or digest is not None:
            wanted = replace(wanted, name=tag, digest=digest, position=None)
        found = await hop(self._find, wanted, platform)
        self._members.update(found.members)
        return found.image

    def _find(self, wanted: ArchiveWanted, platform: Platform | None) -> FoundImage:
        return find_image(self._store, wanted, platform, self._limits.document_size, self._unpacked_size)

    def _unpacked_size(self, name: str) -> int:
        with self._store.open(name) as blob:
            return unpacked_size(blob, self._limits) if is_packed(blob) else blob.size

    def open_blob(self, descriptor: Descriptor) -> AbstractAsyncContextManager[Blob]:
        """Open a blob of a resolved image, like `ImageSource.open_blob`."""
        return self._open_blob(descriptor)

    @asynccontextmanager
    async def _open_blob(self, descriptor: Descriptor) -> AsyncIterator[Blob]:
        with ExitStack() as stack:
            yield await opening_hop(lambda _: None, self._opened_blob, stack, descriptor)

    def _opened_blob(self, stack: ExitStack, descriptor: Descriptor) -> Blob:
        name = self._members.get(descriptor.digest) or blob_name(descriptor.digest)
        blob: LocalBlob = stack.enter_context(self._store.open(name))
        if name != blob_name(descriptor.digest) and is_packed(blob):
            # The manifest that was made of it speaks of what it unpacks to.
            return BlockingBlob(PlainReader(blob, self._limits).readinto, descriptor.size)
        check_size(descriptor, blob.size)
        return blob
