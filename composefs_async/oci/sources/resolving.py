"""From the names in an image layout, in a directory or an archive, to one image whose documents are verified.

Owns the way through ``oci-layout``, ``index.json``, indexes inside it, manifest and config (OCI image specification,
image-layout.md).  Does not own the choice among platforms (`platforms`), where bytes are (`store`), nor layers.

Safe for untrusted layouts: digests are checked to be hexadecimal before they become names, and what one resolve may
read is bounded, so that an index of indexes ends.  Blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ...errors import ImageNotFoundError, OciError, TransportError
from ..documents import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_INDEX_TYPE,
    OCI_MANIFEST_TYPE,
    Descriptor,
    ImageConfig,
    Manifest,
    image_layers,
    parse_config,
    parse_index,
    parse_manifest,
    verify_content,
)
from ..jsondoc import DOCUMENT_LIMIT, brief, parse_json
from ..platforms import Candidate, Platform, choose
from .base import ResolvedImage
from .familiar import normalized_name
from .store import BlobStore, MissingError, blob_name, check_size

__all__ = ["LISTED", "Resolving", "Wanted", "listing"]

LISTED = 10
"""As many names as an error message lists."""

_MAX_DEPTH = 4  # of indexes; index.json is the first
_READ_BUDGET = 4 * DOCUMENT_LIMIT  # bytes of documents that one resolve may read together
_OPEN_COST = 4096  # bytes that a document counts besides its own
_CONTAINERD_NAME = (
    "io.containerd.image.name"  # the whole name, where ref.name has the tag alone (containerd, Docker 25)
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which image of a layout: at most one of the members is given."""

    tag: str | None = None
    digest: str | None = None
    """Digest of a manifest or an index."""
    position: int | None = None
    """In index.json, from 0."""


@dataclass(slots=True)
class Resolving:
    """One resolve; counts what it reads.

    Args:
        reference: what messages call the image that is looked for.
        limit: on the size of each document, in bytes.
    """

    store: BlobStore
    reference: str
    limit: int
    budget: int = 0
    missing: list[TransportError] = field(default_factory=list[TransportError])
    """What stands in an index and is not there."""

    def __post_init__(self) -> None:
        self.budget = max(_READ_BUDGET, 4 * self.limit)

    def resolve(self, wanted: Wanted, platform: Platform | None) -> ResolvedImage:
        """Find the image and read its documents.

        Raises:
            As `ImageSource.resolve`.
        """
        self.check_layout()
        if wanted.digest is not None:
            return self.by_digest(wanted.digest, platform)
        entries = self._entries(wanted)
        named = wanted.tag is not None or wanted.position is not None
        return self.image(self._choose(entries, platform, tagged=named))

    def by_digest(self, digest: str, platform: Platform | None) -> ResolvedImage:
        """The image whose manifest, or an index with it, has that digest.

        Raises:
            As `ImageSource.resolve`.
        """
        return self.image(self._by_digest(digest, platform))

    def check_layout(self) -> None:
        """Look at the file that says what the layout is."""
        path = self.store.path("oci-layout")
        version = parse_json(self._read("oci-layout"), path).get("imageLayoutVersion", str)
        if not (version or "").startswith("1."):
            raise OciError(path, f"layout version {brief(version or '')} is not supported, only 1.x is")

    def entries(self) -> tuple[Descriptor, ...]:
        """What stands in index.json."""
        return parse_index(self._read("index.json"), self.store.path("index.json"), limit=self.limit).manifests

    def manifests(self) -> Iterator[Descriptor]:
        """All manifests that index.json, or an index in it, lists."""
        for entry in self.entries():
            yield from (inner for inner, _ in self._expand(entry, None, 1) if inner.media_type in MANIFEST_TYPES)

    # -- choosing ------------------------------------------------------------------------------

    def _entries(self, wanted: Wanted) -> list[Descriptor]:
        """Return the entries of index.json that are *wanted*: of a tag, at a position, or all."""
        entries, position = self.entries(), wanted.position
        if position is not None:
            if position >= len(entries):
                raise ImageNotFoundError(self.reference, reason=f"index.json has {len(entries)} entries, from 0")
            return [entries[position]]
        if wanted.tag is None:
            return list(entries)
        found = _named(entries, wanted.tag)
        names = {entry.annotations.get(_CONTAINERD_NAME, "") for entry in found}
        if len(names) > 1:
            raise OciError(self.reference, f"several images have that tag: {listing(sorted(names))}; say which by name")
        if entries and not found:
            raise ImageNotFoundError(self.reference, reason=f"there is no such tag; {_tags(entries)}")
        return found

    def _by_digest(self, digest: str, platform: Platform | None) -> Descriptor:
        """The manifest of that digest, or the fitting one of the index of that digest."""
        name = blob_name(digest)
        if not self.store.has(name):
            raise ImageNotFoundError(self.reference, reason=f"{self.store.path(name)} is missing")
        raw = self._read(name)
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
                self.reference, f"there is no manifest of a known type, only {', '.join(list(kinds)[:LISTED])}"
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
            except MissingError as error:
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
        except MissingError as error:
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

    def image(self, entry: Descriptor) -> ResolvedImage:
        """The image of a manifest."""
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
        raw = self._read(blob_name(descriptor.digest))
        check_size(descriptor, len(raw), what)
        verify_content(what, raw, descriptor.digest)
        return raw

    def _read(self, name: str) -> bytes:
        raw = self.store.read(name, self.limit)
        self.budget -= len(raw) + _OPEN_COST
        if self.budget < 0:
            raise OciError(self.reference, "its manifests and indexes are too many to read")
        return raw


def _named(entries: Sequence[Descriptor], tag: str) -> list[Descriptor]:
    """By the tag as it stands there; else by the whole name, which containerd writes besides; else by a short form."""
    if found := [entry for entry in entries if entry.tag == tag]:
        return found
    if found := [entry for entry in entries if entry.annotations.get(_CONTAINERD_NAME) == tag]:
        return found
    whole = normalized_name(tag)
    names = ((entry, entry.annotations.get(_CONTAINERD_NAME) or entry.tag or "") for entry in entries)
    return [entry for entry, name in names if whole is not None and ":" in name and normalized_name(name) == whole]


def _tags(entries: Sequence[Descriptor]) -> str:
    tags = sorted({entry.tag for entry in entries if entry.tag})
    return f"there are: {listing(tags)}" if tags else "no entry has a tag"


def listing(names: Sequence[str]) -> str:
    """Names for an error message, not too many."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{', '.join(names[:LISTED])}{more}"
