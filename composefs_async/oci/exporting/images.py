"""An image as it leaves: its layers in some form, and the manifest that says which; blocks.

Owns changing manifests. One whose layers leave as it has them stays as it is, to the byte; any other is a new one, of
OCI's media types, with all annotations of the old one and its digest in `ORIGINAL`. The config never changes, and so
neither the image id nor any diff_id.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...digest import sha256_content_digest
from ...errors import OciError
from ..catalogue import OciImage
from ..documents import OCI_MANIFEST_TYPE, Descriptor
from .layers import OutLayer

__all__ = ["ORIGINAL", "OutImage", "out_image"]

ORIGINAL = "org.composefs.original.manifest.digest"
"""The annotation of a new manifest that has the digest of the one that it was made of."""

_OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
_OF_PACKING = ("io.github.containers.zstd-chunked.", "containerd.io/snapshot/stargz/", "io.containers.estargz.")


@dataclass(frozen=True, slots=True)
class OutImage:
    """What leaves."""

    name: str | None
    """The tag in the repository."""
    manifest: Descriptor
    manifest_raw: bytes = field(repr=False)
    original_digest: str
    config: Descriptor
    config_raw: bytes = field(repr=False)
    layers: tuple[OutLayer, ...]
    diff_ids: tuple[str, ...]


def out_image(name: str | None, image: OciImage, layers: Sequence[OutLayer]) -> OutImage:
    """The image with its layers as they leave."""
    manifest, diff_ids = image.manifest, image.config.diff_ids if image.config is not None else ()
    raw, media_type, config = manifest.raw, manifest.media_type, manifest.config
    if any(layer.changed for layer in layers):
        raw, media_type = _changed(image, layers), OCI_MANIFEST_TYPE
    digest = sha256_content_digest(raw) if raw is not manifest.raw else manifest.digest
    described = Descriptor(media_type, digest, len(raw))
    return OutImage(name, described, raw, manifest.digest, config, image.config_raw, tuple(layers), tuple(diff_ids))


def _changed(image: OciImage, layers: Sequence[OutLayer]) -> bytes:
    if image.config is None:
        raise OciError(f"manifest {image.manifest.digest}", "it is an artifact, whose blobs leave as they are")
    document = json.loads(image.manifest.raw)
    document["mediaType"] = OCI_MANIFEST_TYPE
    document["config"]["mediaType"] = _OCI_CONFIG
    for entry, layer in zip(document["layers"], layers, strict=True):
        entry["mediaType"] = layer.descriptor.media_type
        entry["digest"], entry["size"] = layer.descriptor.digest, layer.descriptor.size
        annotations = entry.get("annotations") or {}
        kept = {key: value for key, value in annotations.items() if not key.startswith(_OF_PACKING)}
        if kept != annotations:
            entry["annotations"] = kept
    document["annotations"] = {**(document.get("annotations") or {}), ORIGINAL: image.manifest.digest}
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
