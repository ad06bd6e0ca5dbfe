"""The documents of a docker-archive: ``manifest.json``, and the image that it names where the archive has no manifest.

Owns choosing among the images of ``manifest.json``, and the OCI manifest that is made of what it says, which is the one
that Docker 25 and later write for the same image, so that an image has the same digest whichever way it came.  No I/O.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from ...digest import sha256_content_digest
from ...errors import ImageNotFoundError, OciError
from ..documents import (
    OCI_LAYER_TYPE,
    OCI_MANIFEST_TYPE,
    ImageConfig,
    Manifest,
    image_layers,
    parse_manifest,
)
from ..jsondoc import parse_json_list
from .base import ResolvedImage
from .familiar import normalized_name
from .resolving import listing

__all__ = ["DockerImage", "choose_image", "made_image", "parse_docker_manifest"]

_OCI_CONFIG = "application/vnd.oci.image.config.v1+json"


@dataclass(frozen=True, slots=True)
class DockerImage:
    """An element of ``manifest.json``."""

    config: str
    """Name of the member that is the config."""
    tags: tuple[str, ...]
    layers: tuple[str, ...]
    """Names of the members that are the layers, lowest first."""


def parse_docker_manifest(raw: bytes, name: str, limit: int) -> list[DockerImage]:
    """Parse ``manifest.json``.

    Raises:
        OciError: it is not valid.
    """
    found = []
    for item in parse_json_list(raw, name, limit=limit):
        config, layers = item.get("Config", str), item.list_of("Layers", str)
        if not config or layers is None:
            raise OciError(name, f"an image has no {'Layers' if config else 'Config'}")
        found.append(DockerImage(config, tuple(item.list_of("RepoTags", str) or ()), tuple(layers)))
    if not found:
        raise OciError(name, "it lists no image")
    return found


def choose_image(images: Sequence[DockerImage], reference: str, name: str | None, position: int | None) -> DockerImage:
    """The image of that name or position, or the only one.

    Raises:
        ImageNotFoundError: there is none.
        OciError: neither was given, and there are several.
    """
    if position is not None:
        if position >= len(images):
            raise ImageNotFoundError(reference, reason=f"it has {len(images)} images, from @0; {_names(images)}")
        return images[position]
    if name is not None:
        whole = normalized_name(name)
        for image in images:
            if name in image.tags or (whole and whole in map(normalized_name, image.tags)):
                return image
        raise ImageNotFoundError(reference, reason=f"there is no such image; {_names(images)}")
    if len({(image.config, image.layers) for image in images}) > 1:
        raise OciError(reference, f"it has {len(images)} images, {_names(images)}; name one")
    return images[0]


def _names(images: Sequence[DockerImage]) -> str:
    return listing([f"@{at} {' '.join(image.tags) or 'without a name'}" for at, image in enumerate(images)])


def made_image(reference: str, config: ImageConfig, sizes: Sequence[int]) -> ResolvedImage:
    """An image with a manifest that is made of its config.

    Args:
        sizes: of the unpacked layers, in bytes, in the order of the config.
    """
    layers = [
        {"mediaType": OCI_LAYER_TYPE, "digest": diff_id, "size": size}
        for diff_id, size in zip(config.diff_ids, sizes, strict=True)
    ]
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST_TYPE,
        "config": {"mediaType": _OCI_CONFIG, "digest": config.digest, "size": len(config.raw)},
        "layers": layers,
    }
    raw = json.dumps(document, separators=(",", ":")).encode()
    manifest: Manifest = parse_manifest(raw, sha256_content_digest(raw))
    return ResolvedImage(reference, manifest, config, config.raw, image_layers(manifest, config), manifest_made=True)
