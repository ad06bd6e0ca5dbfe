"""The JSON documents of a store: references, manifests, configs, its description; bytes in, values out, no I/O.

Owns their canonical form (sorted keys, no blanks, UTF-8, so that equal content has an equal digest), their limits and
what a reader checks.  Does not own the list of what is condemned (`condemned`).
"""

from __future__ import annotations

import base64
import binascii
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..digest import Algorithm, ObjectId
from ..errors import FormatError, InvalidNameError, StoreFormatError
from ..naming import decode_tag, encode_tag
from ..oci.jsondoc import JsonObject
from .digests import blob_key, canonical, check_digest, digest_of, verify
from .json_access import child_of, children_of, objects_of, parse, text_of, texts_of, whole_of

__all__ = [
    "Config",
    "Descriptor",
    "Manifest",
    "Ref",
    "blob_key",
    "build_manifest",
    "canonical",
    "check_digest",
    "digest_of",
    "encode_deleted_ref",
    "encode_ref",
    "name_of_ref",
    "parse_config",
    "parse_manifest",
    "parse_ref",
    "ref_key",
    "verify",
]

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.composefs-async.config.v1+json"
TABLE_TYPE = "application/vnd.composefs-async.table.v1+zstd"
PACK_TYPE = "application/vnd.composefs-async.pack.v1"
ARTIFACT_TYPES: dict[ArtifactKind, str] = {
    "image": "application/vnd.composefs-async.image.v1",
    "layer": "application/vnd.composefs-async.layer.v1",
}
SALT = "io.composefs-async.salt"
WRITE_ID = "io.composefs-async.write-id"
PREVIOUS = "io.composefs-async.previous"
REF_NAME = "org.opencontainers.image.ref.name"
CREATED = "org.opencontainers.image.created"

REF_LIMIT = 128 << 10
MANIFEST_LIMIT = 4 << 20
CONFIG_LIMIT = 16 << 20
EMBEDDED_MANIFEST = 64 << 10
"""A manifest of up to so many bytes stands in the reference itself."""
EMBEDDED_CONFIG = 32 << 10
MAX_BLOBS = 4096
NAME_LIMIT = 200
"""Bytes of the encoded name of a reference."""

ArtifactKind = Literal["image", "layer"]

_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")
_MAX_SIZE = (1 << 63) - 1


# -- values ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Points at a blob of the store."""

    media_type: str
    digest: str
    size: int
    """In bytes."""
    data: bytes | None = field(default=None, repr=False)
    """The blob itself, if it is small and stands in the document."""

    def members(self) -> dict[str, Any]:
        """The descriptor as JSON has it."""
        found: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.data is not None:
            found["data"] = base64.b64encode(self.data).decode()
        return found


@dataclass(frozen=True, slots=True)
class Config:
    """What an artifact is, and which names the receiver makes."""

    kind: ArtifactKind
    algorithm: Algorithm
    objects: int
    size: int
    """Bytes of all objects together."""
    root: str
    """Name of the stream, or id of the EROFS image, from which everything is reached."""
    streams: Mapping[str, ObjectId]
    images: Mapping[str, int]
    """Sizes in bytes by the ids in hexadecimal."""
    salt: str = ""

    @property
    def root_id(self) -> ObjectId:
        """Id of the object behind *root*."""
        found = self.streams.get(self.root)
        return ObjectId.from_hex(self.root) if found is None else found

    def encode(self) -> bytes:
        """The canonical bytes."""
        members: dict[str, Any] = {
            "version": 1,
            "kind": self.kind,
            "algorithm": self.algorithm.text,
            "objects": self.objects,
            "size": self.size,
            "root": self.root,
            "names": {
                "streams": {name: found.hex() for name, found in self.streams.items()},
                "images": {name: {"size": size} for name, size in self.images.items()},
            },
        }
        if self.salt:
            members["salt"] = self.salt
        return canonical(members)


@dataclass(frozen=True, slots=True)
class Manifest:
    """An artifact of the store."""

    raw: bytes = field(repr=False)
    digest: str
    kind: ArtifactKind
    config: Descriptor
    table: Descriptor
    blobs: tuple[Descriptor, ...]
    """In the order of their numbers in the table."""
    subject: str | None
    """Digest of the OCI manifest that the image came from."""
    annotations: Mapping[str, str]

    @property
    def needed(self) -> list[str]:
        """Digests of everything that the artifact consists of, itself first."""
        return [self.digest, self.config.digest, self.table.digest, *(blob.digest for blob in self.blobs)]


@dataclass(frozen=True, slots=True)
class Ref:
    """What a name in the store means."""

    name: str
    write_id: str
    digest: str = ""
    """Of the manifest; empty if the name has been removed."""
    size: int = 0
    manifest: bytes | None = field(default=None, repr=False)
    """The manifest itself, if it is small; its digest has been compared."""
    previous: str = ""
    created: str = ""

    @property
    def deleted(self) -> bool:
        """The name has been removed."""
        return not self.digest


# -- references --------------------------------------------------------------------------------


def ref_key(name: str) -> str:
    """The key of the reference *name* in a store.

    Raises:
        InvalidNameError: it is empty, ``.`` or ``..``, too long, or has control characters.
    """
    if any(ord(char) < 0x20 or ord(char) == 0x7F for char in name):
        raise InvalidNameError(name, "it contains control characters")
    encoded = encode_tag(name)
    try:
        length = len(encoded.encode())
    except UnicodeEncodeError:
        raise InvalidNameError(name, "it is not valid UTF-8") from None
    if not encoded or encoded in (".", ".."):
        raise InvalidNameError(name, "it is empty" if not encoded else f"{name!r} is not a name")
    if length > NAME_LIMIT:
        raise InvalidNameError(name, f"its encoded form has {length} bytes, more than {NAME_LIMIT}")
    return f"refs/{encoded}"


def name_of_ref(key: str) -> str:
    """The name of the reference with that key."""
    return decode_tag(key.removeprefix("refs/"))


def encode_ref(name: str, manifest: Manifest, *, previous: str = "", created: str = "", write_id: str = "") -> bytes:
    """A reference to *manifest*; *write_id* tells this write from all others."""
    annotations = {REF_NAME: name, WRITE_ID: write_id or str(uuid.uuid4())}
    if previous:
        annotations[PREVIOUS] = previous
    if created:
        annotations[CREATED] = created
    data = manifest.raw if len(manifest.raw) <= EMBEDDED_MANIFEST else None
    members = Descriptor(MANIFEST_TYPE, manifest.digest, len(manifest.raw), data).members()
    return canonical({**members, "artifactType": ARTIFACT_TYPES[manifest.kind], "annotations": annotations})


def encode_deleted_ref(write_id: str = "") -> bytes:
    """What takes the place of a reference that is removed."""
    return canonical({"deleted": True, "write-id": write_id or str(uuid.uuid4())})


def parse_ref(raw: bytes, name: str) -> Ref:
    """Read a reference.

    Raises:
        StoreFormatError, DigestMismatchError
    """
    what = f"reference {name}"
    document = parse(raw, what, REF_LIMIT)
    if document.members.get("deleted") is True:
        return Ref(name, text_of(document, "write-id"))
    descriptor = _descriptor(document, what, MANIFEST_TYPE, MANIFEST_LIMIT)
    annotations = texts_of(document, "annotations")
    return Ref(
        name,
        annotations.get(WRITE_ID, ""),
        descriptor.digest,
        descriptor.size,
        descriptor.data,
        annotations.get(PREVIOUS, ""),
        annotations.get(CREATED, ""),
    )


# -- manifests and configs ---------------------------------------------------------------------


def build_manifest(
    config: Config,
    table: Descriptor,
    blobs: Sequence[Descriptor],
    *,
    subject: Mapping[str, Any] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Manifest:
    """The manifest of an artifact, whose config is embedded if it is small."""
    encoded = config.encode()
    descriptor = Descriptor(
        CONFIG_TYPE, digest_of(encoded), len(encoded), encoded if len(encoded) <= EMBEDDED_CONFIG else None
    )
    members: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPES[config.kind],
        "config": descriptor.members(),
        "layers": [each.members() for each in (table, *blobs)],
    }
    if subject:
        members["subject"] = dict(subject)
    if annotations:
        members["annotations"] = dict(annotations)
    raw = canonical(members)
    return parse_manifest(raw, digest_of(raw))


def parse_manifest(raw: bytes, digest: str) -> Manifest:
    """Read a manifest, after comparing its digest.

    Raises:
        DigestMismatchError, StoreFormatError
    """
    verify("manifest", raw, digest)
    what = f"manifest {digest}"
    document = parse(raw, what, MANIFEST_LIMIT)
    kinds: dict[str, ArtifactKind] = {media_type: kind for kind, media_type in ARTIFACT_TYPES.items()}
    kind = kinds.get(text_of(document, "artifactType"))
    if kind is None or document.members.get("schemaVersion") != 2:
        raise StoreFormatError(what, "it is no artifact of composefs-async")
    config = child_of(document, "config", what)
    layers = children_of(document, "layers", what)
    if not layers or len(layers) > MAX_BLOBS + 1:
        raise StoreFormatError(what, f"it has {len(layers)} layers, not between 1 and {MAX_BLOBS + 1}")
    blobs = tuple(_descriptor(layer, what, PACK_TYPE, _MAX_SIZE) for layer in layers[1:])
    if len({blob.digest for blob in blobs}) != len(blobs):
        raise StoreFormatError(what, "a blob is listed twice")
    subject = document.members.get("subject")
    return Manifest(
        raw,
        digest,
        kind,
        _descriptor(config, what, CONFIG_TYPE, CONFIG_LIMIT),
        _descriptor(layers[0], what, TABLE_TYPE, _MAX_SIZE),
        blobs,
        str(subject.get("digest", "")) or None if isinstance(subject, dict) else None,
        texts_of(document, "annotations"),
    )


def parse_config(raw: bytes, digest: str) -> Config:
    """Read a config, after comparing its digest.

    Raises:
        DigestMismatchError, StoreFormatError
    """
    verify("config", raw, digest)
    what = f"config {digest}"
    document = parse(raw, what, CONFIG_LIMIT)
    if document.members.get("version") != 1:
        raise StoreFormatError(what, "it is not of version 1")
    kind = text_of(document, "kind")
    if kind not in ("image", "layer"):
        raise StoreFormatError(what, f"the kind {kind!r} is unknown")
    try:
        algorithm = Algorithm.parse(text_of(document, "algorithm"))
        names = child_of(document, "names", what)
        streams = {name: _object_id(text, algorithm) for name, text in texts_of(names, "streams").items()}
        images = {
            _object_id(name, algorithm).hex(): whole_of(JsonObject(what, members), "size")
            for name, members in objects_of(names, "images").items()
        }
        config = Config(
            "layer" if kind == "layer" else "image",
            algorithm,
            whole_of(document, "objects"),
            whole_of(document, "size"),
            text_of(document, "root"),
            streams,
            images,
            text_of(document, "salt"),
        )
        config.root_id.require(algorithm)
    except (ValueError, FormatError) as error:
        raise error if isinstance(error, StoreFormatError) else StoreFormatError(what, str(error)) from None
    if config.root not in streams and config.root not in images:
        raise StoreFormatError(what, f"its root {config.root} is not among its names")
    return config


def _object_id(text: str, algorithm: Algorithm) -> ObjectId:
    found = ObjectId.from_hex(text)
    if found.algorithm is not algorithm or text != found.hex():
        raise FormatError(f"not an object id of {algorithm.text}: {text[:160]!r}")
    return found


# -- descriptors ------------------------------------------------------------------------------


def _descriptor(document: JsonObject, what: str, media_type: str, limit: int) -> Descriptor:
    if text_of(document, "mediaType") != media_type:
        raise StoreFormatError(what, f"a descriptor is not of the type {media_type}")
    digest, size = text_of(document, "digest"), whole_of(document, "size")
    if not _SHA256.fullmatch(digest):
        raise StoreFormatError(what, f"{digest[:160]!r} is no sha256 digest")
    if size > limit:
        raise StoreFormatError(what, f"{digest} has {size} bytes, more than the limit of {limit}")
    data = None
    if encoded := text_of(document, "data"):
        try:
            data = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            raise StoreFormatError(what, f"the data of {digest} is not base64") from None
        verify("embedded data", data, digest)
        if len(data) != size:
            raise StoreFormatError(what, f"the data of {digest} has {len(data)} bytes, not {size}")
    return Descriptor(media_type, digest, size, data)
