"""OCI's JSON documents as frozen values: index, manifest, image config; bytes in, values out, no I/O.

Owns what counts as valid, and says so with an `OciError` that names the document.  Docker's schema 2 is
understood everywhere.  Does not own JSON as such (`jsondoc`: its limits and its strictness hold here),
choosing between manifests (`platforms`), nor where bytes come from.

Decisions where OCI leaves room:

* A document that is a manifest and an index at once, or that calls itself something else than its
  descriptor does, is an error (CVE-2021-41190).
* Digests that are going to be verified must be sha256, sha384 or sha512.  An index may list others, since
  most of its entries are never read.
* Unknown members are ignored; known ones must have the right type, or be null where they may be absent.
* An index need not say its schemaVersion, as other programs do not ask for it; what lists no manifests is none.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from ..digest import check_content_digest
from ..errors import DigestMismatchError, FormatError, OciError
from .jsondoc import DOCUMENT_LIMIT, JsonObject, brief, parse_json
from .platforms import Platform

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = [
    "CONTAINER_CONFIG_TYPES",
    "DOCUMENT_LIMIT",
    "INDEX_TYPES",
    "MANIFEST_TYPES",
    "OCI_INDEX_TYPE",
    "OCI_LAYER_TYPE",
    "OCI_MANIFEST_TYPE",
    "REF_NAME",
    "Descriptor",
    "ImageConfig",
    "ImageLayer",
    "Index",
    "LayerCompression",
    "Manifest",
    "content_hasher",
    "image_layers",
    "layer_compression",
    "parse_config",
    "parse_index",
    "parse_manifest",
    "verify_content",
]

REF_NAME = "org.opencontainers.image.ref.name"
"""The annotation of an index entry that holds its tag (OCI image specification, annotations.md)."""

OCI_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
"""Media type of a layer that is not packed."""
OCI_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPES = frozenset({OCI_INDEX_TYPE, "application/vnd.docker.distribution.manifest.list.v2+json"})
MANIFEST_TYPES = frozenset({OCI_MANIFEST_TYPE, "application/vnd.docker.distribution.manifest.v2+json"})
CONTAINER_CONFIG_TYPES = frozenset(
    {"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"}
)
"""A manifest with another config is an artifact: it has no tree and no image is made of it."""

LayerCompression: TypeAlias = Literal["none", "gzip", "zstd"]

_OCI_LAYER = "application/vnd.oci.image.layer"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs"
# OCI image specification, layer.md; github.com/distribution/distribution, manifest/schema2; the zstd one of
# Docker's is containerd's and podman's.  Foreign and non-distributable layers are tars like all others.
_LAYER_TYPES: dict[str, LayerCompression] = {
    f"{_OCI_LAYER}.v1.tar": "none",
    f"{_OCI_LAYER}.v1.tar+gzip": "gzip",
    f"{_OCI_LAYER}.v1.tar+zstd": "zstd",
    f"{_OCI_LAYER}.nondistributable.v1.tar": "none",
    f"{_OCI_LAYER}.nondistributable.v1.tar+gzip": "gzip",
    f"{_OCI_LAYER}.nondistributable.v1.tar+zstd": "zstd",
    f"{_DOCKER_LAYER}.diff.tar": "none",
    f"{_DOCKER_LAYER}.diff.tar.gzip": "gzip",
    f"{_DOCKER_LAYER}.diff.tar.zstd": "zstd",
    f"{_DOCKER_LAYER}.foreign.diff.tar": "none",
    f"{_DOCKER_LAYER}.foreign.diff.tar.gzip": "gzip",
    f"{_DOCKER_LAYER}.foreign.diff.tar.zstd": "zstd",
}
_VERIFIABLE = frozenset({"sha256", "sha384", "sha512"})
_MAX_DIGEST = 255 - len("oci-manifest-")  # a longer one could not name a stream
_MAX_SIZE = (1 << 63) - 1  # sizes are int64 in OCI (descriptor.md)


# -- values ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Points at a blob.  The digest has the right syntax but nothing has been verified."""

    media_type: str
    digest: str
    size: int
    """In bytes."""
    annotations: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    platform: Platform | None = None
    artifact_type: str | None = None
    urls: tuple[str, ...] = ()
    """Where else the blob may be had; never followed by this package."""
    data: bytes = field(default=b"", repr=False)
    """The blob itself, if the document has it; not compared with the digest."""

    @property
    def tag(self) -> str | None:
        """The name of the entry in an image directory."""
        return self.annotations.get(REF_NAME)


@dataclass(frozen=True, slots=True)
class Index:
    """A list of manifests, or of further indexes."""

    raw: bytes = field(repr=False)
    name: str
    """What error messages call it."""
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A container image or an artifact.  Its config and layers have digests that can be verified."""

    raw: bytes = field(repr=False)
    digest: str
    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    artifact_type: str | None = None
    subject: Descriptor | None = None
    """The manifest that this one refers to."""
    annotations: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)

    @property
    def is_container(self) -> bool:
        """Whether it has a file tree; false for artifacts."""
        return self.config.media_type in CONTAINER_CONFIG_TYPES


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The config of a container image."""

    raw: bytes = field(repr=False)
    digest: str
    platform: Platform | None
    """None if the operating system or the architecture is missing."""
    diff_ids: tuple[str, ...]
    """Digests of the uncompressed layers, lowest first; all can be verified."""
    created: str | None = None
    """As it stands there, usually in RFC 3339's form; not checked."""
    labels: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)


@dataclass(frozen=True, slots=True)
class ImageLayer:
    """A layer under the name it has in a repository."""

    name: str
    """The diff_id; for a layer of an artifact its own digest."""
    descriptor: Descriptor
    compression: LayerCompression | None
    """None for what is no tar archive; only artifacts have such layers."""


# -- digests -----------------------------------------------------------------------------------


def content_hasher(what: str, digest: str) -> _Hash:
    """A new hash object for the algorithm of *digest*.

    Raises:
        OciError: *digest* is malformed, or of an algorithm that cannot be verified.
    """
    return hashlib.new(_verifiable(what, digest).partition(":")[0])


def verify_content(what: str, content: bytes, digest: str) -> None:
    """Compare *content* with the digest it is known by.

    Raises:
        DigestMismatchError: it is something else.
        OciError: as `content_hasher`.
    """
    hasher = content_hasher(what, digest)
    hasher.update(content)
    found = f"{digest.partition(':')[0]}:{hasher.hexdigest()}"
    if found != digest:
        raise DigestMismatchError(what, digest, found)


# -- layers ------------------------------------------------------------------------------------


def layer_compression(media_type: str) -> LayerCompression | None:
    """How a tar layer of that media type is packed; None if it is no tar layer."""
    return _LAYER_TYPES.get(media_type)


def image_layers(manifest: Manifest, config: ImageConfig | None) -> tuple[ImageLayer, ...]:
    """The layers under the names they have in a repository, lowest first; *config* is None for artifacts.

    Raises:
        OciError: manifest and config disagree in the number of layers, or a layer of a container image is
            no tar.  Nothing must be stored then, since a layer's name would promise what it is not.
    """
    if config is None:
        return tuple(ImageLayer(layer.digest, layer, layer_compression(layer.media_type)) for layer in manifest.layers)
    what = f"manifest {manifest.digest}"
    if len(manifest.layers) != len(config.diff_ids):
        raise OciError(
            what, f"it has {len(manifest.layers)} layers, but its config {config.digest} has {len(config.diff_ids)}"
        )
    for layer in manifest.layers:
        if layer_compression(layer.media_type) is None:
            raise OciError(what, f"layer {layer.digest} is no tar: {brief(layer.media_type)}")
    return tuple(
        ImageLayer(diff_id, layer, layer_compression(layer.media_type))
        for diff_id, layer in zip(config.diff_ids, manifest.layers, strict=True)
    )


# -- documents ---------------------------------------------------------------------------------


def parse_index(raw: bytes, name: str, *, media_type: str | None = None, limit: int = DOCUMENT_LIMIT) -> Index:
    """Parse an image index or a Docker manifest list.

    Args:
        name: what error messages call it; a path or ``index sha256:…``.
        media_type: of the descriptor that led here, if one did.
        limit: on the size, in bytes.

    Raises:
        OciError: it is not valid.
    """
    document = parse_json(raw, name, limit=limit)
    _check_kind(document, INDEX_TYPES, media_type, foreign=("config", "layers"))
    entries = document.children("manifests")
    if entries is None:
        raise OciError(name, "it has no manifests")
    manifests = tuple(_descriptor(entry, verifiable=False) for entry in entries)
    return Index(raw, name, manifests, document.texts("annotations"))


def parse_manifest(raw: bytes, digest: str, *, media_type: str | None = None, limit: int = DOCUMENT_LIMIT) -> Manifest:
    """Parse a manifest.  That *raw* has *digest* is not checked here: see `verify_content`.

    Args:
        media_type: of the descriptor that led here, if one did.
        limit: on the size, in bytes.

    Raises:
        OciError: it is not valid.
    """
    name = f"manifest {digest}"
    document = parse_json(raw, name, limit=limit)
    found = _check_kind(document, MANIFEST_TYPES, media_type, foreign=("manifests",)) or OCI_MANIFEST_TYPE
    config, layers, subject = document.child("config"), document.children("layers"), document.child("subject")
    if config is None or layers is None:
        raise OciError(name, f"it has no {'config' if config is None else 'layers'}")
    return Manifest(
        raw,
        digest,
        found,
        _descriptor(config),
        tuple(map(_descriptor, layers)),
        document.get("artifactType", str) or None,
        None if subject is None else _descriptor(subject, verifiable=False),
        document.texts("annotations"),
    )


def parse_config(raw: bytes, digest: str, *, limit: int = DOCUMENT_LIMIT) -> ImageConfig:
    """Parse the config of a container image.  That *raw* has *digest* is not checked here.

    Raises:
        OciError: it is not valid.
    """
    name = f"config {digest}"
    document = parse_json(raw, name, limit=limit)
    rootfs, settings = document.child("rootfs"), document.child("config")
    if rootfs is None or rootfs.get("type", str) not in ("layers", None):
        raise OciError(name, "it has no rootfs of layers")
    return ImageConfig(
        raw,
        digest,
        _platform(document),
        tuple(_verifiable(name, diff_id) for diff_id in rootfs.list_of("diff_ids", str) or ()),
        document.get("created", str),
        {} if settings is None else settings.texts("Labels"),
    )


# -- parts of documents -------------------------------------------------------------------------


def _check_kind(
    document: JsonObject, expected: frozenset[str], given: str | None, foreign: tuple[str, ...]
) -> str | None:
    """The media type, if it is one of those expected and nothing contradicts it."""
    name, stated = document.name, document.get("mediaType", str) or None
    version = document.get("schemaVersion", int)
    if version != 2 and not (version is None and expected is INDEX_TYPES):
        raise OciError(name, f"schemaVersion is {version}, only 2 is supported")
    for media_type in filter(None, (given, stated)):
        if media_type not in expected:
            raise OciError(name, f"its media type {brief(media_type)} is none of {', '.join(sorted(expected))}")
    if given and stated and given != stated:
        raise OciError(name, f"it calls itself {stated}, its descriptor says {given}")
    for key in foreign:
        if document.members.get(key) is not None:
            raise OciError(name, f"it has {key!r}, so that it is two kinds of document at once")
    return stated or given


def _descriptor(document: JsonObject, *, verifiable: bool = True) -> Descriptor:
    media_type, digest, size = document.get("mediaType", str), document.get("digest", str), document.get("size", int)
    if not media_type or digest is None or size is None:
        raise OciError(document.name, "a descriptor lacks mediaType, digest or size")
    check = _verifiable if verifiable else _digest
    check(document.name, digest)
    if not 0 <= size <= _MAX_SIZE:
        raise OciError(document.name, f"the size of {digest} is {size}")
    platform = document.child("platform")
    return Descriptor(
        media_type,
        digest,
        size,
        document.texts("annotations"),
        None if platform is None else _platform(platform),
        document.get("artifactType", str) or None,
        tuple(document.list_of("urls", str) or ()),
        _embedded(document.get("data", str)),
    )


def _embedded(text: str | None) -> bytes:
    """The content of a descriptor's ``data``; none if it is not base64, since the blob can be had elsewhere."""
    try:
        return base64.b64decode(text or "", validate=True)
    except ValueError:
        return b""


def _platform(document: JsonObject) -> Platform | None:
    system, architecture = document.get("os", str), document.get("architecture", str)
    if not system or not architecture:
        return None
    return Platform(system, architecture, document.get("variant", str) or None)


def _verifiable(what: str, digest: str) -> str:
    algorithm = _digest(what, digest).partition(":")[0]
    if algorithm not in _VERIFIABLE:
        raise OciError(what, f"digest {digest!r} cannot be verified: only sha256, sha384 and sha512 can")
    return digest


def _digest(what: str, text: str) -> str:
    if len(text) > _MAX_DIGEST:
        raise OciError(what, f"not a content digest: {brief(text)}")
    try:
        return check_content_digest(text)
    except FormatError as error:
        raise OciError(what, str(error)) from None
