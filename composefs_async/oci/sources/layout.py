"""Images in an OCI image directory (OCI image specification, image-layout.md).

Owns the way from a tag or digest to verified documents: ``oci-layout``, ``index.json``, indexes inside it,
manifest, config.  Does not own the choice among platforms (`platforms`) nor reading layers.

Safe for an untrusted directory: digests are checked to be hexadecimal before they become paths, only
regular files are opened, and what one resolve may read is bounded, so that an index of indexes ends.  Links
are followed, since build tools make such directories of links to their caches.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ..._aio.hops import hop, opening_hop
from ..._sys import files
from ...errors import ImageNotFoundError, InvalidNameError, OciError, TransportError
from ...naming import LayoutReference, parse_layout_reference
from ..documents import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_INDEX_TYPE,
    OCI_MANIFEST_TYPE,
    Descriptor,
    ImageConfig,
    Manifest,
    content_hasher,
    image_layers,
    parse_config,
    parse_index,
    parse_manifest,
    verify_content,
)
from ..jsondoc import DOCUMENT_LIMIT, brief, parse_json
from ..limits import Limits
from ..platforms import Candidate, Platform, choose
from .base import Blob, LocalBlob, ResolvedImage

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["OciLayoutSource", "check_reference", "locate", "open_reference"]

_MAX_DEPTH = 4  # of indexes; index.json is the first
_READ_BUDGET = 4 * DOCUMENT_LIMIT  # bytes of documents that one resolve may read together
_OPEN_COST = 4096  # bytes that a document counts besides its own
_LISTED = 10  # as many names as an error message lists


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


class _MissingError(TransportError):
    """A file of an image directory is not there."""


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
        self._default = tag, digest, position
        self._limit = document_limit

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
        resolving = _Resolving(self._directory, self._limit, str(reference), max(_READ_BUDGET, 4 * self._limit))
        return await hop(resolving.resolve, reference, platform)

    def open_blob(self, descriptor: Descriptor) -> AbstractAsyncContextManager[Blob]:
        """As `ImageSource.open_blob`; it is always a `LocalBlob`."""
        return self._open_blob(descriptor)

    @asynccontextmanager
    async def _open_blob(self, descriptor: Descriptor) -> AsyncIterator[Blob]:
        path = _blob_path(self._directory, descriptor.digest)
        with await opening_hop(lambda late: late.close(), _open_sized, path, descriptor) as file:
            yield LocalBlob(file.fileno(), descriptor.size, str(path))


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


@dataclass(slots=True)
class _Resolving:
    """One resolve, blocking; counts what it reads."""

    directory: Path
    limit: int
    reference: str
    budget: int
    missing: list[TransportError] = field(default_factory=list[TransportError])
    """What stands in an index and is not there."""

    def resolve(self, wanted: LayoutReference, platform: Platform | None) -> ResolvedImage:
        self._check_layout()
        if wanted.digest is not None:
            return self._image(self._by_digest(wanted.digest, platform))
        entries = self._entries(wanted)
        named = wanted.tag is not None or wanted.position is not None
        return self._image(self._choose(entries, platform, tagged=named))

    def _check_layout(self) -> None:
        path = self.directory / "oci-layout"
        if not self.directory.exists():
            raise ImageNotFoundError(self.reference, reason="there is no such directory")
        if not path.is_file():
            raise OciError(str(self.directory), "not an OCI image directory: it has no file oci-layout")
        version = parse_json(self._read(path), str(path)).get("imageLayoutVersion", str)
        if not (version or "").startswith("1."):
            raise OciError(str(path), f"layout version {brief(version or '')} is not supported, only 1.x is")

    # -- choosing ------------------------------------------------------------------------------

    def _entries(self, wanted: LayoutReference) -> list[Descriptor]:
        """Return the entries of index.json that are *wanted*: of a tag, at a position, or all."""
        path, position = self.directory / "index.json", wanted.position
        entries = parse_index(self._read(path), str(path), limit=self.limit).manifests
        if position is not None:
            if position >= len(entries):
                raise ImageNotFoundError(self.reference, reason=f"index.json has {len(entries)} entries, from 0")
            return [entries[position]]
        found = [entry for entry in entries if wanted.tag is None or entry.tag == wanted.tag]
        if entries and not found:
            raise ImageNotFoundError(self.reference, reason=f"there is no such tag; {_tags(entries)}")
        return found

    def _by_digest(self, digest: str, platform: Platform | None) -> Descriptor:
        """The manifest of that digest, or the fitting one of the index of that digest."""
        path = _blob_path(self.directory, digest)
        if not path.exists():
            raise ImageNotFoundError(self.reference, reason=f"{path} is missing")
        raw = self._read(path)
        verify_content(self.reference, raw, digest)
        members = parse_json(raw, self.reference, limit=self.limit).members
        kinds, usual = (INDEX_TYPES, OCI_INDEX_TYPE) if "manifests" in members else (MANIFEST_TYPES, OCI_MANIFEST_TYPE)
        stated = members.get("mediaType")
        media_type = stated if isinstance(stated, str) and stated in kinds else usual
        descriptor = Descriptor(media_type, digest, len(raw))
        if kinds is MANIFEST_TYPES and platform is None:
            return descriptor
        return self._choose([descriptor], platform, tagged=True)

    def _choose(self, entries: list[Descriptor], platform: Platform | None, *, tagged: bool) -> Descriptor:
        manifests = [(entry, tag) for top in entries for entry, tag in self._expand(top, top.tag, 1)]
        known = [(entry, tag) for entry, tag in manifests if entry.media_type in MANIFEST_TYPES]
        if not manifests and self.missing:
            raise self.missing[0]
        if manifests and not known:
            kinds = dict.fromkeys(brief(entry.media_type) for entry, _ in manifests)
            raise OciError(
                self.reference, f"there is no manifest of a known type, only {', '.join(list(kinds)[:_LISTED])}"
            )
        entries, candidates = self._candidates(known)
        try:
            return entries[candidates.index(choose(candidates, platform, what=self.reference, tagged=tagged))]
        except ImageNotFoundError as error:
            if not self.missing:
                raise
            if not candidates:
                raise self.missing[0] from None
            reason = f"{error.reason}; of {len(self.missing)} more it cannot be told: {self.missing[0]}"
            raise ImageNotFoundError(self.reference, reason=reason) from None

    def _candidates(self, manifests: list[tuple[Descriptor, str | None]]) -> tuple[list[Descriptor], list[Candidate]]:
        """Return what there is to choose from; entries that are missing, and say no platform, are left out."""
        entries: list[Descriptor] = []
        candidates: list[Candidate] = []
        for entry, tag in manifests:
            try:
                platform = entry.platform or self._platform(entry)
            except _MissingError as error:
                self.missing.append(error)
                continue
            entries.append(entry)
            candidates.append(Candidate(entry.digest, platform, tag))
        return entries, candidates

    def _expand(self, entry: Descriptor, tag: str | None, depth: int) -> Iterator[tuple[Descriptor, str | None]]:
        """The entry itself, or those of the index it points at; *tag* is that of the outermost one.

        An index cannot contain itself, since it is verified; deep and wide ones end at the bounds.
        """
        if entry.media_type not in INDEX_TYPES:
            yield entry, tag
            return
        if depth >= _MAX_DEPTH:
            raise OciError(self.reference, f"indexes inside indexes are nested deeper than {_MAX_DEPTH}")
        name = f"index {entry.digest}"
        try:
            raw = self._document(name, entry)
        except _MissingError as error:
            self.missing.append(error)
            return
        index = parse_index(raw, name, media_type=entry.media_type, limit=self.limit)
        for inner in index.manifests:
            yield from self._expand(inner, tag, depth + 1)

    def _platform(self, entry: Descriptor) -> Platform | None:
        """Of a manifest whose descriptor does not tell."""
        manifest = self._manifest(entry)
        return self._config(manifest).platform if manifest.is_container else None

    # -- documents -----------------------------------------------------------------------------

    def _image(self, entry: Descriptor) -> ResolvedImage:
        manifest = self._manifest(entry)
        if not manifest.is_container:
            raw = self._document(f"config {manifest.config.digest}", manifest.config)
            return ResolvedImage(self.reference, manifest, None, raw, image_layers(manifest, None))
        config = self._config(manifest)
        return ResolvedImage(self.reference, manifest, config, config.raw, image_layers(manifest, config))

    def _manifest(self, entry: Descriptor) -> Manifest:
        raw = self._document(f"manifest {entry.digest}", entry)
        return parse_manifest(raw, entry.digest, media_type=entry.media_type, limit=self.limit)

    def _config(self, manifest: Manifest) -> ImageConfig:
        raw = self._document(f"config {manifest.config.digest}", manifest.config)
        return parse_config(raw, manifest.config.digest, limit=self.limit)

    def _document(self, what: str, descriptor: Descriptor) -> bytes:
        """The verified content of a small blob."""
        if descriptor.size > self.limit:
            raise OciError(what, f"it has {descriptor.size} bytes, more than the limit of {self.limit}")
        raw = self._read(_blob_path(self.directory, descriptor.digest))
        _check_size(what, len(raw), descriptor)
        verify_content(what, raw, descriptor.digest)
        return raw

    def _read(self, path: Path) -> bytes:
        with files.naming(str(path)), _open_regular(path) as file:
            raw = file.read(self.limit + 1)
        if len(raw) > self.limit:
            raise OciError(str(path), f"it is larger than the limit of {self.limit} bytes")
        self.budget -= len(raw) + _OPEN_COST
        if self.budget < 0:
            raise OciError(self.reference, "its manifests and indexes are too many to read")
        return raw


# -- files -------------------------------------------------------------------------------------


def _blob_path(directory: Path, digest: str) -> Path:
    """Where a blob is.  Any digest but an algorithm and hexadecimal digits that can be verified is refused."""
    content_hasher(f"blob {digest}", digest)
    algorithm, _, digits = digest.partition(":")
    return directory / "blobs" / algorithm / digits


def _open_regular(path: Path) -> BinaryIO:
    """Open a file for reading.

    Raises:
        TransportError: it is missing, or no regular file (opening a pipe would wait for a writer).
    """
    try:
        if not path.is_file():
            if path.exists():
                raise TransportError(f"{path} is not a regular file")
            raise _MissingError(f"{path} is missing")
        return open(path, "rb")
    except FileNotFoundError:
        raise _MissingError(f"{path} is missing") from None


def _open_sized(path: Path, descriptor: Descriptor) -> BinaryIO:
    file = _open_regular(path)
    try:
        with files.naming(str(path)):
            size = file.seek(0, 2)
            file.seek(0)
        _check_size(f"blob {descriptor.digest}", size, descriptor)
    except BaseException:
        file.close()
        raise
    return file


def _check_size(what: str, found: int, descriptor: Descriptor) -> None:
    if found != descriptor.size:
        raise OciError(what, f"it has {found} bytes, its descriptor says {descriptor.size}")


def _tags(entries: tuple[Descriptor, ...]) -> str:
    tags = sorted({entry.tag for entry in entries if entry.tag})
    more = f" and {len(tags) - _LISTED} more" if len(tags) > _LISTED else ""
    return f"there are: {', '.join(tags[:_LISTED])}{more}" if tags else "no entry has a tag"
