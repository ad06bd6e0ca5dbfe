"""What images a repository holds, and their tags.

Owns listing, opening and tagging images.  Does not own importing (`image_pull`), looking into layers
(`stored_layers`), nor what documents mean (`documents`).

Functions here block; ``x_async`` runs ``x`` in a worker thread.  Documents are verified against the digests they are
known by and bounded in size; a repository that somebody else made is safe to look at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from .._aio.hops import hop
from .._aio.operations import async_operation, operation
from ..digest import ObjectId, check_content_digest
from ..errors import ComposefsError, FormatError, InvalidNameError, OciError, StreamNotFoundError
from ..naming import (
    IMAGE_REFS,
    REFERRERS,
    TAGS,
    boot_image_ref,
    config_ref,
    config_stream,
    decode_tag,
    digest_of_manifest_stream,
    encode_tag,
    image_ref,
    manifest_stream,
    tag_reference,
)
from ..repository import Repository
from ..splitstream import OCI_CONFIG, OCI_MANIFEST
from . import legacy
from .documents import ImageConfig, Manifest, parse_config, parse_manifest, verify_content
from .jsondoc import DOCUMENT_LIMIT

__all__ = [
    "ImageSummary",
    "OciImage",
    "images",
    "images_async",
    "open_image",
    "open_image_async",
    "referrers",
    "referrers_async",
    "resolve",
    "resolve_async",
    "tag",
    "tag_async",
    "untag",
    "untag_async",
]


_PREFIX: Final = re.compile(r"@?(?:sha256:)?([0-9a-f]{6,63})", re.ASCII)
"""Of a digest, where it means the one image whose digest begins so."""


@dataclass(frozen=True, slots=True)
class OciImage:
    """An image or artifact whose manifest and config have been verified."""

    manifest: Manifest
    config: ImageConfig | None
    """None for an artifact."""
    config_raw: bytes = field(repr=False)
    manifest_id: ObjectId | None
    """Id of the manifest's stream; None if none was stored, as in January 2026, and *manifest* stands in for it."""
    config_id: ObjectId
    layers: dict[str, ObjectId]
    """Streams by diff_id, or by layer digest for an artifact, in the order of the config."""
    images: dict[str, ObjectId]
    """EROFS images by the name of their reference, ``composefs.image…``."""

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the layers, lowest first: diff_ids, or digests for an artifact; a layer can be there twice."""
        if self.config is not None:
            return self.config.diff_ids
        return tuple(layer.digest for layer in self.manifest.layers)

    def image(self, version: int) -> ObjectId | None:
        """The EROFS image in format *version* (0, 1 or 2), if it has been made."""
        return self.images.get(image_ref(version))

    def boot_image(self, version: int) -> ObjectId | None:
        """Id of the bootable EROFS image of the default layout, or None."""
        return self.images.get(boot_image_ref(version))


@dataclass(frozen=True, slots=True)
class ImageSummary:
    """One tag."""

    name: str
    manifest_digest: str
    is_container: bool = False
    architecture: str = ""
    os: str = ""
    created: str | None = None
    layer_count: int = 0
    referrer_count: int = 0
    error: str | None = None
    """Why the image cannot be opened; the fields above it are empty then."""
    without_manifest: bool = False
    """It is from January 2026: the digest is that of the manifest that `images.ensure_images` will make."""
    size: int = 0
    """Size of the layers as they were shipped, in bytes."""


# -- images ------------------------------------------------------------------------------------


@operation
def images(repo: Repository) -> list[ImageSummary]:
    """All tags, sorted by name; one whose image is broken is in the list, with its error."""
    referrers = _referrer_counts(repo)
    found = {}
    for reference, stream in repo.named_streams(TAGS):
        digest = digest_of_manifest_stream(stream)
        if digest is not None and "/" not in reference:
            name = decode_tag(reference)
            found[name] = _summary(repo, name, f"@{digest}", digest, referrers.get(digest, 0))
    for name in legacy.references(repo).keys() - found.keys():
        found[name] = _summary(repo, name, name, "", 0)
    return sorted(found.values(), key=lambda image: image.name)


@async_operation
async def images_async(repo: Repository) -> list[ImageSummary]:
    """List the tagged images, sorted by name, in a worker thread; async twin of `images`."""
    return await hop(images, repo)


def _summary(repo: Repository, name: str, known_as: str, digest: str, referrers: int) -> ImageSummary:
    try:
        image = open_image(repo, known_as)
    except (ComposefsError, OSError) as error:
        return ImageSummary(name, digest, referrer_count=referrers, error=str(error), without_manifest=not digest)
    config = image.config
    platform = config.platform if config else None
    return ImageSummary(
        name,
        image.manifest.digest,
        config is not None,
        platform.architecture if platform else "",
        platform.os if platform else "",
        config.created if config else None,
        len(image.manifest.layers),
        referrers,
        without_manifest=image.manifest_id is None,
        size=sum(each.size for each in image.manifest.layers),
    )


def _referrer_counts(repo: Repository) -> dict[str, int]:
    counts: dict[str, int] = {}
    for reference, _ in repo.named_streams(REFERRERS):
        subject = decode_tag(reference.partition("/")[0])
        counts[subject] = counts.get(subject, 0) + 1
    return counts


@operation
def referrers(repo: Repository, manifest_digest: str) -> list[str]:
    """Digests of the manifests that are recorded as referring to *manifest_digest*, sorted."""
    check_content_digest(manifest_digest)
    found = repo.named_streams(f"{REFERRERS}/{encode_tag(manifest_digest)}")
    return [digest for _, stream in found if (digest := digest_of_manifest_stream(stream))]


@async_operation
async def referrers_async(repo: Repository, manifest_digest: str) -> list[str]:
    """List the digests of the manifests that refer to a manifest, in a worker thread; async twin of `referrers`."""
    return await hop(referrers, repo, manifest_digest)


@operation
def open_image(repo: Repository, name: str) -> OciImage:
    """The image with the tag *name*, or with the manifest digest *name* (``@sha256:…`` or ``sha256:…``).

    The first six or more digits of a manifest digest are enough if no other tagged image's begins with them.

    An image of January 2026 goes by its reference; see `january` for the manifest that it has then.

    Raises:
        StreamNotFoundError: there is none.
        InvalidNameError: it can be neither.
        DigestMismatchError, OciError, SplitstreamError: it is damaged.
    """
    digest = _manifest_digest(repo, name)
    if digest is None:
        return _open_without_manifest(repo, name)
    manifest_id = repo.has_stream(manifest_stream(digest))
    if manifest_id is None:
        raise StreamNotFoundError(digest, "manifest")
    raw, refs = _document(repo, f"manifest {digest}", manifest_id, OCI_MANIFEST)
    verify_content(f"manifest {digest}", raw, digest)
    manifest = parse_manifest(raw, digest)
    config_id = refs.get(config_ref(manifest.config.digest))
    if config_id is None:
        raise OciError(f"manifest {digest}", f"its stream does not refer to its config {manifest.config.digest}")
    config_raw, config_refs = _document(repo, f"config {manifest.config.digest}", config_id, OCI_CONFIG)
    verify_content(f"config {manifest.config.digest}", config_raw, manifest.config.digest)
    config = parse_config(config_raw, manifest.config.digest) if manifest.is_container else None
    names = config.diff_ids if config else tuple(layer.digest for layer in manifest.layers)
    layers = _require_layers(manifest.config.digest, names, {**refs, **config_refs})
    images = {key: config_refs[key] for key in sorted(config_refs.keys() & IMAGE_REFS)}
    return OciImage(manifest, config, config_raw, manifest_id, config_id, layers, images)


def _open_without_manifest(repo: Repository, reference: str) -> OciImage:
    digest = legacy.references(repo).get(reference)
    if digest is None:
        raise StreamNotFoundError(reference, "image")
    config_id = repo.has_stream(config_stream(digest))
    if config_id is None:
        raise StreamNotFoundError(config_stream(digest))
    raw, refs = _document(repo, f"config {digest}", config_id, OCI_CONFIG)
    verify_content(f"config {digest}", raw, digest)
    config = parse_config(raw, digest)
    layers = _require_layers(digest, config.diff_ids, refs)
    manifest = legacy.stand_in_manifest(repo, config, layers)
    images = {key: refs[key] for key in sorted(refs.keys() & IMAGE_REFS)}
    return OciImage(manifest, config, raw, None, config_id, layers, images)


def _require_layers(config_digest: str, names: Iterable[str], refs: Mapping[str, ObjectId]) -> dict[str, ObjectId]:
    if missing := [layer for layer in names if layer not in refs]:
        raise OciError(f"config {config_digest}", f"its stream does not refer to the layer {missing[0]}")
    return {layer: refs[layer] for layer in names}


@async_operation
async def open_image_async(repo: Repository, name: str) -> OciImage:
    """Open an image by its name or digest in a worker thread; async twin of `open_image`."""
    return await hop(open_image, repo, name)


def _manifest_digest(repo: Repository, name: str) -> str | None:
    if name.startswith("@"):
        prefix = _PREFIX.fullmatch(name)
        return _begins_with(repo, name, prefix[1]) if prefix else _digest(name, name[1:])
    wanted = tag_reference(name).removeprefix(f"{TAGS}/")
    stream = dict(repo.named_streams(TAGS)).get(wanted)
    digest = digest_of_manifest_stream(stream) if stream else None
    if digest is None and (prefix := _PREFIX.fullmatch(name)):
        digest = _begins_with(repo, name, prefix[1])
    if digest is None and name.partition(":")[0] in ("sha256", "sha384", "sha512"):
        digest = _digest(name, name)
    return digest


def _begins_with(repo: Repository, name: str, digits: str) -> str | None:
    """The manifest digest of the tagged image that begins with *digits*, or None."""
    digests = {digest for _, stream in repo.named_streams(TAGS) if (digest := digest_of_manifest_stream(stream))}
    found = sorted(digest for digest in digests if digest.partition(":")[2].startswith(digits))
    if len(found) > 1:
        raise InvalidNameError(name, f"it is the beginning of {len(found)} digests: {', '.join(found[:3])}")
    return found[0] if found else None


def _digest(name: str, digest: str) -> str:
    try:
        return check_content_digest(digest)
    except FormatError:
        raise InvalidNameError(name, "it is no content digest") from None


def _document(repo: Repository, name: str, stream_id: ObjectId, content_type: int) -> tuple[bytes, dict[str, ObjectId]]:
    """Payload and named references of a stream; the payload may be an object or, from January 2026, inline."""
    with repo.open_stream(name, stream_id, content_type) as reader:
        payload = reader.payload(lambda found: [repo.read_object(found, max_size=DOCUMENT_LIMIT)], limit=DOCUMENT_LIMIT)
        return payload, dict(reader.named_refs)


@operation
def resolve(repo: Repository, name: str) -> str:
    """The manifest digest of the image that *name* means, as `open_image` has it; a whole digest need not be there.

    Raises:
        StreamNotFoundError: there is no such image, or it has no manifest yet.
        InvalidNameError: it can be no name, or begins several digests.
    """
    digest = _manifest_digest(repo, name)
    if digest is None:
        raise StreamNotFoundError(name, "image")
    return digest


@async_operation
async def resolve_async(repo: Repository, name: str) -> str:
    """Return the manifest digest that a name means, like `resolve`, in a worker thread."""
    return await hop(resolve, repo, name)


@operation
def tag(repo: Repository, manifest_digest: str, name: str) -> None:
    """Name the image with that manifest; durable on return.

    Raises:
        StreamNotFoundError: there is no such manifest.
        InvalidNameError
    """
    try:
        repo.name_stream(manifest_stream(manifest_digest), tag_reference(name))
    except StreamNotFoundError:
        raise StreamNotFoundError(manifest_digest, "manifest") from None


@async_operation
async def tag_async(repo: Repository, manifest_digest: str, name: str) -> None:
    """Name an image, durably on return, in a worker thread; async twin of `tag`."""
    await hop(tag, repo, manifest_digest, name)


@operation
def untag(repo: Repository, name: str) -> None:
    """Remove a tag, durably; what it led to stays until garbage is collected.

    Raises:
        StreamNotFoundError: there is no such tag.
    """
    if not repo.unname_stream(tag_reference(name)):
        raise StreamNotFoundError(name, "tag")


@async_operation
async def untag_async(repo: Repository, name: str) -> None:
    """Remove the name of an image in a worker thread; async twin of `untag`."""
    await hop(untag, repo, name)
